"""The thread that drives a device's steps, on the device's CPUs, while the thread that began them only waits and handles signals."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from .team import Team, pin

T = TypeVar("T")
POLL = 0.1
"""Seconds after which a waiting thread looks for signals: on Windows waiting can't be interrupted."""


class Driver:
    """A thread that runs steps of `team`, one after the other, on `cpus`."""

    def __init__(self, team: Team, cpus: Collection[int]) -> None:
        self._team = team
        self._thread = ThreadPoolExecutor(1, "qwencli-driver", pin, (cpus,))
        self._owner: int | None = None
        """The thread that has begun a step and not finished it yet."""

    def begin(self, step: Callable[[], T]) -> Future[T]:
        """Have the thread run a step."""
        self._owner = threading.get_ident()  # before there is a step: Ctrl-C may come in between
        return self._thread.submit(step)

    def finish(self, begun: Future[T]) -> T:
        """Wait for a step, and return what it returns or raise what it raises. If the wait is interrupted (Ctrl-C), the step is ended."""
        try:
            _wait_for(begun)
        except BaseException:
            self.end_lost()
            raise
        self._owner = None
        return begun.result()

    def end_lost(self) -> None:
        """End the step that this thread has begun and not finished, if there is one: Ctrl-C came before or while it waited. Such a step
        would still write to memory that belongs to others by now. If this is interrupted, it can be called again."""
        if self._owner == threading.get_ident():
            with self._team.cancelled():
                _wait_for(self._thread.submit(int))
            self._owner = None


def _wait_for(future: Future[Any]) -> None:
    while not wait([future], POLL).done:
        pass
