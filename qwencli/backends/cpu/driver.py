"""The thread that drives a device's steps, on the device's CPUs, while the thread that began them only waits and handles signals."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from .team import Team, pin

T = TypeVar("T")
POLL = 0.1
"""Seconds after which a waiting thread looks for signals: on Windows waiting can't be interrupted."""


class Driver:
    """A thread that runs steps of `team`, one after the other, on `cpus`."""

    def __init__(self, team: Team, cpus: Collection[int]) -> None:
        self._team = team
        self._thread = ThreadPoolExecutor(1, "qwencli-driver", pin, (cpus,))

    def begin(self, step: Callable[[], T]) -> Future[T]:
        """Have the thread run a step."""
        return self._thread.submit(step)

    def finish(self, begun: Future[T]) -> T:
        """Wait for a step, and return what it returns or raise what it raises. If the wait is interrupted (Ctrl-C), the step is ended."""
        try:
            while not wait([begun], POLL).done:
                pass
        except BaseException:
            with self._team.cancelled():
                while not begun.done():
                    try:
                        wait([begun], POLL)
                    except KeyboardInterrupt:
                        continue
            raise
        return begun.result()
