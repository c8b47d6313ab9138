"""The executor: rows of a group side by side, groups one after the other, on any number of threads, whatever interrupts it."""

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from kernel_calls import packed
from random_models import random_model
from team_programs import Function, Program, meeting, teams

from qwencli.backends.cpu.backend import CPUBackend, kernels_of
from qwencli.backends.cpu.team import LAST_EPOCH, Team
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.kernels import isa
from qwencli.kernels.arguments import GATHER


@pytest.fixture
def team() -> Iterator[Callable[[int], Team]]:
    with teams() as make:
        yield make


class Shuffles(Program):
    """Groups of rows that gather: each row takes its part of a buffer from all parts of the one before, in its own order."""

    def __init__(self, n_groups: int, n_parts: int = 4, part: int = 6, n_cols: int = 3) -> None:
        super().__init__()
        rng = np.random.default_rng(n_groups)
        gather = kernels_of(isa.choose().name).load([GATHER.spec()])[GATHER.spec()]
        n = n_parts * part
        self.count, none = np.array([part]), np.array([0])
        self.orders = np.array([rng.permutation(n) for _ in range(n_groups)], np.int32).reshape(
            n_groups, n_parts, part
        )
        self.buffers = np.zeros((n_groups + 1, n, n_cols), np.float32)
        self.buffers[0] = rng.standard_normal((n, n_cols))
        self.keep += [none]
        for g in range(n_groups):
            rows = []
            for i in range(n_parts):
                args = packed(
                    GATHER,
                    count=self.count,
                    unit=1,
                    x=self.buffers[g],
                    ids=self.orders[g, i],
                    n_cols=n_cols,
                    out=self.buffers[g + 1, i * part :],
                )
                self.keep.append(args)
                row = {"kernel": gather, "args": args.ctypes.data, "count": self.count.ctypes.data}
                rows.append(row | {"divisor": 1})
                if g % 5 == i:  # a row with nothing to do
                    rows.append({"kernel": 0, "args": 0, "count": none.ctypes.data, "divisor": 1})
            self.group(*rows)

    def check(self, team: Team, n: int, n_threads: int | None = None) -> None:
        """Run it on the first n of each part's places."""
        self.count[0], self.buffers[1:] = n, 0
        team.run(self.rows, n_threads=n_threads)
        expected = self.buffers[0]
        for order, found in zip(self.orders, self.buffers[1:]):
            kept = np.zeros((*order.shape, expected.shape[1]), np.float32)
            kept[:, :n] = expected[order[:, :n]]
            expected = kept.reshape(expected.shape)
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("n_threads", [1, 2, 3, 8])
def test_each_group_sees_the_results_of_the_one_before(team: Callable[[int], Team], n_threads: int) -> None:
    """Thousands of rows of a few bytes, again and again, with counts that change from step to step; steps of few rows between them."""
    long, short, t = Shuffles(600), Shuffles(3), team(n_threads)
    for i in range(24):
        long.check(t, (6, 1, 0, 3, 5, 6)[i % 6])
        for n in range(7):
            short.check(t, n)
    for _ in range(300):
        short.check(t, 6)


def test_steps_of_other_numbers_of_threads_in_turn(team: Callable[[int], Team]) -> None:
    """Those that take no part in a step may come to it late, or sleep through several."""
    long, short, t = Shuffles(200), Shuffles(3), team(6)
    rng = np.random.default_rng(3)
    for n_threads in rng.integers(1, 7, 40).tolist():
        long.check(t, 6, n_threads)
        for few in rng.integers(1, 7, 30).tolist():
            short.check(t, 6, few)


@pytest.mark.parametrize(("n_threads", "n_members"), [(1, 5), (2, 5), (4, 5), (5, 5)])
def test_only_the_first_threads_take_part(
    team: Callable[[int], Team], n_threads: int, n_members: int
) -> None:
    """Chunks that wait until all n threads are inside one end only if n take part; nobody else is ever inside one."""
    p, met, t = Program(), [], team(n_members)
    names: set[str] = set()
    meet = meeting(n_threads, met)

    def note(chunk: int) -> None:
        names.add(threading.current_thread().name)
        meet(chunk)

    p.call((note, n_threads * 8))
    for _ in range(20):
        t.run(p.rows, n_threads=n_threads)
        t.run(p.rows, n_threads=n_threads)
    assert len(names) == n_threads
    assert names - {threading.current_thread().name} == {f"qwencli-{i}" for i in range(1, n_threads)}


@pytest.mark.parametrize("n_threads", [1, 2, 7])
def test_each_chunk_is_done_once(team: Callable[[int], Team], n_threads: int) -> None:
    p, t, done = Program(), team(n_threads), []

    def note(name: str) -> Function:
        return lambda chunk: done.append((name, chunk))

    p.call((note("a"), 100), (note("b"), 0), (note("c"), 1))
    p.call((note("d"), 65))
    for _ in range(5):
        done.clear()
        t.run(p.rows)
        assert sorted(done[:101]) == [*(("a", i) for i in range(100)), ("c", 0)]
        assert sorted(done[101:]) == [("d", i) for i in range(65)]


def test_rows_of_a_group_and_chunks_of_a_row_run_side_by_side(team: Callable[[int], Team]) -> None:
    p, met, t = Program(), [], team(3)
    rows = meeting(3, met)
    p.call((rows, 1), (rows, 1), (rows, 1))
    p.call((meeting(3, met), 3))
    t.run(p.rows)
    assert sorted(met) == [0, 0, 1, 1, 2, 2]


def parked(t: Team) -> bool:
    return bool(t._statuses["parked"][1:].all())


def test_threads_without_work_are_parked_and_woken(team: Callable[[int], Team]) -> None:
    p, met, t = Program(), [], team(4)
    p.call((meeting(4, met), 4))
    for round_ in range(1, 4):
        t.run(p.rows)
        assert len(met) == 4 * round_
        deadline = time.monotonic() + 60
        while not parked(t):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_steps_are_numbered_anew_when_numbers_end(team: Callable[[int], Team]) -> None:
    t, p = team(3), Shuffles(5)
    p.check(t, 6)
    t._state["epoch"] = LAST_EPOCH - 5
    for _ in range(8):
        p.check(t, 6)
    assert 0 < t._state["epoch"] < 100


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("n_threads", [1, 2, 8])
def test_an_interrupted_step_leaves_the_team_ready(team: Callable[[int], Team], n_threads: int) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    t, p = team(n_threads), Shuffles(300)
    p.check(t, 6)

    def run_on(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        for _ in range(100_000):
            t.run(p.rows)

    def abort(original: Callable[[], None] = t._abort) -> None:
        original()
        inside.append(bool(t._statuses["step"][1:].any()))

    inside: list[
        bool
    ] = []  # whether a thread was, after an abort; there is none where the signal comes between two steps
    t._abort = abort  # type: ignore[method-assign]
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(15):
            with pytest.raises(KeyboardInterrupt):
                run_on(0.0005 * (i + 1))
            p.check(t, 6)
        assert inside
        assert not any(inside)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def own_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("qwencli-")}


def wait_for_end(threads: set[threading.Thread]) -> None:
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("n_seconds", [0, 0.3])
def test_threads_end_with_their_team(n_seconds: float) -> None:
    """Busy waiting or parked."""
    before = own_threads()
    t, p = Team(kernels_of(isa.choose().name), 5, 64), Shuffles(3)
    p.check(t, 6)
    threads = own_threads() - before
    assert len(threads) == 4
    time.sleep(n_seconds)
    del t
    gc.collect()
    wait_for_end(threads)


def test_threads_end_with_their_backend(tmp_path: Path) -> None:
    before = own_threads()
    backend = CPUBackend(random_model(tmp_path, "F16"), 3)
    backend.run([LOGITS], Batch([Segment(KVSequence(), [1, 2, 3], 1)]))
    threads = own_threads() - before
    assert len(threads) == 2
    del backend
    gc.collect()
    wait_for_end(threads)


def test_several_backends_at_once(tmp_path: Path) -> None:
    """In threads of their own, each with its team: as alone."""
    model = random_model(tmp_path, "F16")
    prompts = [np.random.RandomState(i).randint(0, 512, 20).tolist() for i in range(3)]

    def logits(backend: CPUBackend, tokens: list[int]) -> np.ndarray:
        seq = KVSequence()
        found = [
            backend.run([LOGITS], Batch([Segment(seq, tokens[i : i + 1], 1)]))[LOGITS]
            for i in range(len(tokens))
        ]
        backend.cache.release(seq)
        return np.concatenate(found)

    expected = [logits(CPUBackend(model, 1), prompt) for prompt in prompts]
    found: list[list[np.ndarray]] = [[] for _ in prompts]

    def work(i: int) -> None:
        backend = CPUBackend(model, i + 1)
        for _ in range(5):
            found[i].append(logits(backend, prompts[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for results, right in zip(found, expected):
        assert len(results) == 5
        assert all(np.array_equal(result, right) for result in results)
