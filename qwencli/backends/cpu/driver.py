"""The thread that drives a device's steps, on its CPUs and with its priority. Whoever began them only waits and handles signals.

The waiting thread may be interrupted by Ctrl-C at any time. So it uses nothing that is made of several locks, as concurrent.futures is:
what an interrupt leaves locked there is locked for good.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

from .team import Team, settle

T = TypeVar("T")
POLL = 0.1
"""Seconds after which a waiting thread looks for signals: on Windows waiting can't be interrupted."""


class Step(Generic[T]):
    """Something to run, and what came of it."""

    def __init__(self, run: Callable[[], T]) -> None:
        self._run = run
        self._result: T | None = None
        self._error: BaseException | None = None
        self._is_done = False
        self._end = threading.Lock()
        self._end.acquire()

    def run(self) -> None:
        try:
            self._result = self._run()
        except BaseException as error:
            self._error = error
        # before the lock: a thread that was interrupted when it had the lock doesn't look at it again
        self._is_done = True
        self._end.release()

    def wait(self) -> None:
        """Wait until it is done. If this is interrupted, it can be called again."""
        while not self._is_done:
            self._end.acquire(timeout=POLL)

    def result(self) -> T:
        """Return what it returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return cast(T, self._result)


class Driver:
    """A thread that runs steps of `team`, one after the other, on `cpus` if these are given, and with `priority`."""

    def __init__(self, team: Team, cpus: Collection[int] | None, priority: int) -> None:
        self._team = team
        self._steps: SimpleQueue[Step[Any] | None] = SimpleQueue()
        self._owner: int | None = None
        """The thread that has begun a step and not finished it yet."""
        arguments = self._steps, cpus, priority
        thread = threading.Thread(target=_drive, args=arguments, name="qwencli-driver", daemon=True)
        weakref.finalize(self, _end, self._steps, thread)
        thread.start()

    def begin(self, run: Callable[[], T]) -> Step[T]:
        """Have the thread run a step."""
        self._owner = threading.get_ident()  # before there is a step: Ctrl-C may come in between
        return self._put(run)

    def finish(self, step: Step[T]) -> T:
        """Wait for a step, and return what it returns or raise what it raises. If the wait is interrupted (Ctrl-C), the step is ended."""
        try:
            step.wait()
        except BaseException:
            self.end_lost()
            raise
        self._owner = None
        return step.result()

    def end_lost(self) -> None:
        """End the step that this thread has begun and not finished, if there is one: Ctrl-C came before or while it waited. Such a step
        would still write to memory that belongs to others by now. If this is interrupted, it can be called again."""
        if self._owner == threading.get_ident():
            with self._team.cancelled():
                self._put(int).wait()  # which runs when all before it have ended
            self._owner = None

    def _put(self, run: Callable[[], T]) -> Step[T]:
        step = Step(run)
        self._steps.put(step)
        return step


def _drive(steps: SimpleQueue[Step[Any] | None], cpus: Collection[int] | None, priority: int) -> None:
    """The main function of the thread."""
    settle(cpus, priority)
    while (step := steps.get()) is not None:
        step.run()
        del step  # it has the backend, and the thread ends when nobody has that any more


def _end(steps: SimpleQueue[Step[Any] | None], thread: threading.Thread) -> None:
    """End the thread, when its driver is no longer used or at exit."""
    steps.put(None)
    if thread.is_alive() and thread is not threading.current_thread():
        thread.join(1.0)
