"""How the executor divides a row's chunks among threads: each has a share, and loses it if it doesn't come or is held up."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from random_models import random_model
from team_programs import Program, alone, come, meeting, teams, this_thread

from qwencli.backends.cpu import team as team_module
from qwencli.backends.cpu.backend import CPUBackend, kernels_of
from qwencli.backends.cpu.stopwatch import Stopwatch
from qwencli.backends.cpu.team import Team
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.kernels import isa

BUDGETS = [1, 2, 5, 64]
Teams = Callable[[int], Team]


@pytest.fixture
def team() -> Iterator[Teams]:
    with teams() as make:
        yield make


def changing(*totals: int) -> tuple[Program, list[tuple[int, int]], Callable[[Team, int], None]]:
    """A program whose rows write down (row, chunk); the list; and a function that runs it and checks that each chunk is done once."""
    p, done = Program(), []
    for row, total in enumerate(totals):
        p.call((lambda chunk, row=row: done.append((row, chunk)), total))

    def check(t: Team, budget: int = 64) -> None:
        done.clear()
        t.run(p.rows, budget)
        assert sorted(done) == [(row, chunk) for row, (n,) in enumerate(p.counts) for chunk in range(n)]

    return p, done, check


@pytest.mark.parametrize("n_threads", [2, 3])
def test_each_thread_does_its_own_neighbouring_chunks(team: Teams, n_threads: int) -> None:
    """All threads are in a chunk at once, one after the other, so none can help."""
    p, t, done, size = Program(), team(n_threads), defaultdict(list), 5
    meet = meeting(n_threads, [])

    def chunk_of_share(chunk: int) -> None:
        done[this_thread()].append(chunk)
        meet(chunk)

    p.call((chunk_of_share, n_threads * size))
    for _ in range(3):
        done.clear()
        t.run(p.rows)
        assert done == {i: list(range(size * i, size * (i + 1))) for i in range(n_threads)}


@pytest.mark.parametrize("budget", BUDGETS)
def test_who_does_not_come_loses_its_share(team: Teams, budget: int) -> None:
    """The one that came does its own first, then the others', and in few chunks there are no shares."""
    t, (p, done, check) = alone(team(3)), changing(12, 5, 0, 13)
    for _ in range(3):
        check(t, budget)
        assert done == sorted(done)
        p.counts[0][0] += 1


@pytest.mark.parametrize("totals", [(0, 40), (1, 40), (3, 40), (40, 3), (40, 41), (4, 0)])
def test_who_comes_after_a_step_does_nothing(team: Teams, totals: tuple[int, int]) -> None:
    """Also when the number of chunks is that of the next step by then, and shares come into being that the step didn't have."""
    t, (p, done, check) = alone(team(2)), changing(40, 40)
    check(t)
    for before, after in (totals, totals[::-1]):
        for count in p.counts:
            count[0] = before
        check(t)
        for count in p.counts:
            count[0] = after
        done.clear()
        come(t, 1)
        assert done == []
        check(t)


def test_only_what_a_thread_holds_is_waited_for(team: Teams) -> None:
    """A thread is held up in its first chunk until all others, of both rows, are done."""
    p, t, done = Program(), team(2), []
    inside, others_done = threading.Event(), threading.Event()

    def chunk_of(row: str) -> Callable[[int], None]:
        def do(chunk: int) -> None:
            if this_thread() == 1 and not inside.is_set():
                inside.set()
                done.append(("waited", others_done.wait(20)))
                return
            inside.wait(20)
            done.append((row, chunk))
            if len(done) == 7:
                others_done.set()

        return do

    p.call((chunk_of("a"), 4), (chunk_of("b"), 4))
    t.run(p.rows)
    assert done[-1] == ("waited", True)
    assert sorted(done[:-1]) == [("a", 0), ("a", 1), ("a", 3), *(("b", i) for i in range(4))]


@pytest.mark.parametrize("n_threads", [1, 2, 3, 7])
def test_each_chunk_is_done_once_whatever_their_number(team: Teams, n_threads: int) -> None:
    """It changes from step to step."""
    t, (p, _, check) = team(n_threads), changing(0, 0)
    for i, n in enumerate(np.random.default_rng(n_threads).permutation(41)):
        p.counts[0][0], p.counts[1][0] = n, 40 - n
        check(t, BUDGETS[i % len(BUDGETS)])


@pytest.mark.parametrize("n", [1, 5, 14, 20, 39, 40])
def test_an_aborted_step_leaves_shares_behind_that_are_opened_anew(team: Teams, n: int) -> None:
    """With the number of chunks of the next step, after n of 40 in three shares are done."""
    t, (p, done, check) = alone(team(3)), changing(40)
    check(t)
    step = t._step
    assert step

    def interrupted(memory: int, budget: int, scratch: int) -> None:
        step(memory, n, scratch)
        raise KeyboardInterrupt

    for total in 7, 41, 3, 0, 40:
        p.counts[0][0] = 40
        t._step = interrupted
        done.clear()
        with pytest.raises(KeyboardInterrupt):
            t.run(p.rows)
        assert done == [(0, i) for i in range(n)]
        t._step = step
        come(t, 1)
        assert len(done) == n
        p.counts[0][0] = total
        check(t)


def test_a_thread_is_woken_after_waking_it_was_interrupted(team: Teams) -> None:
    p, met, t = Program(), [], team(2)
    p.call((meeting(2, met), 2))
    t.run(p.rows)
    while not t._statuses["parked"][1]:
        time.sleep(0.001)
    bed = t._beds[1]

    class Interrupted:
        def locked(self) -> bool:
            t._beds[1] = bed
            raise KeyboardInterrupt

    t._beds[1] = Interrupted()  # type: ignore[call-overload]
    with pytest.raises(KeyboardInterrupt):
        t.run(p.rows)
    t.run(p.rows)
    assert sorted(met) == [0, 0, 1, 1]


def test_words_for_claims_are_made_again_if_that_was_interrupted(
    team: Teams, monkeypatch: pytest.MonkeyPatch
) -> None:
    t, (_, _, small), (large, _, check) = team(2), changing(3), changing(*range(20))
    small(t)

    results = iter([True, False])

    def interrupted(n_bytes: int) -> np.ndarray:
        if not next(results):
            raise KeyboardInterrupt
        return made(n_bytes)

    made = team_module.aligned_zeros
    with monkeypatch.context() as patch:
        patch.setattr(team_module, "aligned_zeros", interrupted)
        with pytest.raises(KeyboardInterrupt):
            t.run(large.rows)
    assert t._state["claims"] == t._claims.ctypes.data or not len(t._claims)
    small(t)
    check(t)
    assert t._state["claims"] == t._claims.ctypes.data


@pytest.mark.parametrize("total", [0, 4])
@pytest.mark.parametrize("data", [1, -1, 2**47 - 64, 2**62, -(2**62)])
def test_any_address_may_be_prefetched(team: Teams, data: int, total: int) -> None:
    """One thread after the other waits while the other sleeps, and prefetches for its share of the following row."""
    p, t, done, met = Program(), team(2), [], []
    meet = meeting(2, met)

    def sleeping(thread: int) -> Callable[[int], None]:
        def sleep(chunk: int) -> None:
            meet(chunk)
            if this_thread() == thread:
                time.sleep(0.002)

        return sleep

    for thread in 0, 1:
        p.call((sleeping(thread), 2))
    p.call((done.append, total))
    p.rows["following"] = 2, 2, 0
    p.rows["data"][2], p.rows["chunk_bytes"][2] = data, 2**40 + 1
    t.run(p.rows)
    assert len(met) == 4
    assert sorted(done) == list(range(total))


def test_following_rows_are_the_next_with_weights(tmp_path: Path) -> None:
    """Also between the rows that read the clock."""
    backend = CPUBackend(random_model(tmp_path, "F16"), 1)
    backend.run([LOGITS], Batch([Segment(KVSequence(), [1], 1)]))
    (program,) = backend._programs.made
    rows = program.rows
    assert np.count_nonzero(rows["data"]) > 10
    timed = Stopwatch(kernels_of(isa.choose().name), rows).rows
    for found in rows, timed:
        following = 0
        for row in found[::-1]:
            if (
                row["last"] and row["kernel"] != timed["kernel"][0]
            ):  # a clock row has nobody waiting for weights
                assert row["following"] == following
            if row["data"]:
                following = next(i for i, other in enumerate(found) if other["data"] == row["data"])
    assert np.array_equal(timed["data"][1::2], rows["data"])
    assert not timed["following"][0::2].any()
