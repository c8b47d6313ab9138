"""The executor and its threads, on kernels that are Python functions: what ran, how often, in which order, what interruptions leave."""
from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from qwencli.backends import team as team_module
from qwencli.backends.cpu import kernels_of
from qwencli.backends.team import LAST_EPOCH, Team
from qwencli.kernels.isa import choose
from qwencli.kernels.layout import ROW_WORDS, Word

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class Program:
    """Rows of `chunks` chunks each, put into groups by their numbers, that write down (row, chunk) as they run."""

    def __init__(self, chunks: Sequence[int], groups: Sequence[int] | None = None, then: Callable[[], None] = lambda: None) -> None:
        groups = groups or range(len(chunks))
        self.ran: list[tuple[int, int]] = []
        self.threads: set[int] = set()

        def kernel(args: int, chunk: int, scratch: int) -> None:
            self.threads.add(threading.get_ident())
            self.ran.append((args, chunk))
            then()

        self._kernel = KERNEL(kernel)
        self.counts = np.array(chunks, np.int64)
        self.rows = np.zeros((len(chunks), ROW_WORDS), np.int64)
        address = ctypes.cast(self._kernel, ctypes.c_void_p).value
        for i, group in enumerate(groups):
            first = list(groups).index(group)
            last = list(groups[i + 1:i + 2]) != [group]
            self.rows[i] = address, i, self.counts.ctypes.data + 8 * i, 1, first, last
        self.groups = groups

    def check(self) -> None:
        """Each chunk ran once, and no group began before the one before it was done."""
        assert sorted(self.ran) == [(row, chunk) for row, n in enumerate(self.counts) for chunk in range(n)]
        order = [self.groups[row] for row, _ in self.ran]
        assert order == sorted(order)
        self.ran.clear()


@pytest.fixture(params=[1, 2, 5])
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    team = Team(kernels_of(choose().name), request.param, 64)
    yield team
    team.close()


def test_programs_of_any_length_one_after_the_other(team: Team) -> None:
    rs = np.random.RandomState(0)
    programs = [Program(rs.randint(0, 5, n), np.sort(rs.randint(0, max(1, n // 2), n)).tolist()) for n in (3, 1, 20, 7, 0, 60, 2)]
    for _ in range(20):
        for program in programs:
            program.counts[:] = rs.randint(0, 5, len(program.counts))
            team.run(program.rows)
            program.check()


def test_all_threads_work_and_come_back_when_they_were_parked(team: Team) -> None:
    program = Program([20], then=lambda: time.sleep(1e-3))
    for _ in range(2):
        program.threads.clear()
        for _ in range(100):
            team.run(program.rows)
            if len(program.threads) == team.n_threads:
                break
        assert len(program.threads) == team.n_threads
        time.sleep(0.2)  # the patience of a thread without work is shorter


def test_the_number_of_steps_has_no_end(team: Team) -> None:
    program = Program([3, 2, 4])
    team.run(program.rows)
    program.check()
    team._quiesce()
    team._publish(team._address(Word.EPOCH), LAST_EPOCH - 5, 0)
    for _ in range(6):
        team.run(program.rows)
        program.check()
    assert team._state[Word.EPOCH] < 20


class Interrupted(BaseException):
    pass


def raising(method: Callable[..., None], errors: list[type[BaseException]]) -> Callable[..., None]:
    """A method that raises the errors, one at each call, before it does anything."""
    def call(*args: int) -> None:
        if errors:
            raise errors.pop()
        method(*args)
    return call


def run_interrupted(team: Team, program: Program, **errors: list[type[BaseException]]) -> None:
    """Run a program while methods of the team raise."""
    with pytest.MonkeyPatch.context() as patch:
        for name, left in errors.items():
            patch.setattr(team, name, raising(getattr(team, name), left))
        team.run(program.rows)


@pytest.mark.parametrize("where", ["_step", "_wake"])
@pytest.mark.parametrize("while_aborting", [0, 2])
def test_an_interruption_leaves_no_thread_in_the_step(team: Team, monkeypatch: pytest.MonkeyPatch, where: str, while_aborting: int) -> None:
    monkeypatch.setattr(team_module, "BUDGET", 1)
    program = Program([5, 30, 5], then=lambda: time.sleep(1e-4))
    for _ in range(5):
        team.run(program.rows)
        program.check()
        with pytest.raises(KeyboardInterrupt):
            run_interrupted(team, program, **{where: [KeyboardInterrupt], "_quiesce": [KeyboardInterrupt] * while_aborting})
        n_ran = len(program.ran)
        time.sleep(2e-3)
        assert len(program.ran) == n_ran, "a thread goes on with what was interrupted"
        assert len(set(program.ran)) == n_ran
        program.ran.clear()


def test_what_interrupts_an_abort_does_not_spoil_the_next_step(team: Team) -> None:
    program = Program([5, 3])
    team.run(program.rows)
    program.check()
    with pytest.raises(Interrupted):
        run_interrupted(team, program, _step=[KeyboardInterrupt], _quiesce=[Interrupted])
    time.sleep(2e-3)
    program.ran.clear()
    team.run(program.rows)
    program.check()
