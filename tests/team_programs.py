"""Programs of Python functions for the executor, and teams to run them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np

from qwencli.backends.cpu.backend import kernels_of
from qwencli.backends.cpu.memory import address_of
from qwencli.backends.cpu.team import Team
from qwencli.kernels import isa
from qwencli.kernels.arguments import ROW

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
Function = Callable[[int], object]


class Program:
    """Rows, group by group, and whatever they have the addresses of."""

    alive: ClassVar[list[Program]] = []
    """All programs of a test: they have to live as long as the team."""

    def __init__(self) -> None:
        self.alive.append(self)
        self.rows, self.keep = ROW.zeros(0), []
        self.counts: list[np.ndarray] = []
        """The number of chunks of each row of Python functions."""

    def group(self, *rows: dict[str, int]) -> None:
        """Rows without their group."""
        first = len(self.rows)
        unknown = {"data": 0, "chunk_bytes": 0, "following": 0}
        packed = [ROW.pack(**row, first=first, last=0, **unknown) for row in rows]
        self.rows = np.concatenate([self.rows, *packed])
        self.rows["last"][-1] = 1

    def call(self, *functions: tuple[Function, int]) -> None:
        """A group of Python functions of a chunk's number, each with its number of chunks."""
        rows = []
        for function, n in functions:
            kernel = KERNEL(lambda args, chunk, scratch, function=function: function(chunk) and None)
            self.counts.append(np.array([n]))
            self.keep.append(kernel)
            address = ctypes.cast(kernel, ctypes.c_void_p).value or 0
            rows.append({"kernel": address, "args": 0, "count": self.counts[-1].ctypes.data, "divisor": 1})
        self.group(*rows)


@contextmanager
def teams() -> Iterator[Callable[[int], Team]]:
    """A function that makes a team of n threads. All are closed at the end; only then programs may go."""
    made = []

    def make(n_threads: int) -> Team:
        made.append(Team(kernels_of(isa.choose().name), n_threads, 64))
        return made[-1]

    yield make
    for each in made:
        each.close()
    Program.alive.clear()


def meeting(n: int, met: list[int]) -> Function:
    """A chunk that ends only when n threads are inside one at once."""
    barrier = threading.Barrier(n)

    def meet(chunk: int) -> None:
        met.append(barrier.wait(60))

    return meet


def alone(team: Team) -> Team:
    """Let none of a team's threads come but the one that drives the step. To be called before the first step."""
    team._threads += [threading.Thread() for _ in range(1, team.n_threads)]
    return team


def come(team: Team, thread: int) -> None:
    """Do what a thread would do that comes now to the team's step, or finds it over."""
    team._state["patience"] = 0  # then it leaves instead of waiting for the next step
    team._worker(
        address_of(team._memory), address_of(team._statuses[thread:]), address_of(team._scratch[thread])
    )


def this_thread() -> int:
    """Return the number of the thread in its team."""
    name = threading.current_thread().name
    return int(name.rpartition("-")[2]) if name.startswith("qwencli-") else 0
