"""Interruptions at chosen places of a step: between its start and its first chunk, in its middle, while it is being aborted."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import pytest

from qwencli.backends.cpu.backend import kernels_of
from qwencli.backends.cpu.team import Team
from qwencli.kernels.arguments import ROW
from qwencli.kernels.isa import choose

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class Program:
    """Rows of `chunks` chunks each, a group each, that write down (row, chunk) as they run."""

    alive: ClassVar[list[Program]] = []
    """All programs of a test: they have to live as long as the team."""

    def __init__(self, chunks: Sequence[int], seconds: float = 0.0) -> None:
        self.alive.append(self)
        self.ran: list[tuple[int, int]] = []

        def kernel(args: int, chunk: int, scratch: int) -> None:
            self.ran.append((args, chunk))
            time.sleep(seconds)

        self._kernel = KERNEL(kernel)
        self.counts = np.array(chunks, np.int64)
        self.rows = ROW.zeros(len(chunks))
        self.rows["kernel"] = ctypes.cast(self._kernel, ctypes.c_void_p).value
        self.rows["args"] = self.rows["first"] = np.arange(len(chunks))
        self.rows["count"] = [self.counts[i:].ctypes.data for i in range(len(chunks))]
        self.rows["divisor"] = self.rows["last"] = 1

    def check(self) -> None:
        """Each chunk ran once."""
        assert sorted(self.ran) == [(row, chunk) for row, n in enumerate(self.counts) for chunk in range(n)]
        self.ran.clear()


@pytest.fixture(params=[1, 2, 5])
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    team = Team(kernels_of(choose().name), request.param, 64)
    yield team
    team.close()
    Program.alive.clear()


class Interrupted(BaseException):
    pass


def raising(method: Callable[..., None], errors: list[type[BaseException]]) -> Callable[..., None]:
    """A method that raises the errors, one at each call, before it does anything."""

    def call(*args: int) -> None:
        if errors:
            raise errors.pop()
        method(*args)

    return call


def run_interrupted(
    team: Team, program: Program, n_threads: int | None = None, **errors: list[type[BaseException]]
) -> None:
    """Run a program while methods of the team raise."""
    with pytest.MonkeyPatch.context() as patch:
        for name, left in errors.items():
            patch.setattr(team, name, raising(getattr(team, name), left))
        team.run(program.rows, n_threads=n_threads)


@pytest.mark.parametrize("n_threads", [None, 1, 3])
@pytest.mark.parametrize("where", ["_step", "_wake"])
@pytest.mark.parametrize("while_aborting", [0, 2])
def test_an_interruption_leaves_no_thread_in_the_step(
    team: Team, where: str, while_aborting: int, n_threads: int | None
) -> None:
    n_threads = n_threads and min(n_threads, team.n_threads)
    program = Program([5, 30, 5], seconds=1e-4)
    for _ in range(5):
        team.run(program.rows)
        program.check()
        with pytest.raises(KeyboardInterrupt):
            run_interrupted(
                team,
                program,
                n_threads,
                **{where: [KeyboardInterrupt], "_quiesce": [KeyboardInterrupt] * while_aborting},
            )
        n_ran = len(program.ran)
        time.sleep(2e-3)
        assert len(program.ran) == n_ran, "a thread goes on with what was interrupted"
        assert len(set(program.ran)) == n_ran
        program.ran.clear()


def test_what_interrupts_an_abort_does_not_spoil_the_next_step(team: Team) -> None:
    """Threads may still be inside the first, and write down what they have run as late as when the next begins."""
    interrupted, following = Program([5, 3]), Program([5, 3])
    team.run(interrupted.rows)
    interrupted.check()
    with pytest.raises(Interrupted):
        run_interrupted(team, interrupted, _step=[KeyboardInterrupt], _quiesce=[Interrupted])
    team.run(following.rows)
    following.check()
    assert len(set(interrupted.ran)) == len(interrupted.ran)
