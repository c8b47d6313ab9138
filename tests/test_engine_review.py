"""What the engine keeps through thick and thin: pages, turns, and its state when a step is interrupted.

The backend is a stand-in that computes nothing but checks where a step would write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qwencli.backends.kv_cache import PAGE, KVCache, KVSequence
from qwencli.backends.protocol import Batch
from qwencli.engine.engine import Engine, Sequence
from qwencli.errors import InputError, QwenError
from qwencli.sampling import SamplingParams
from qwencli.sampling.sampler import Draw

GREEDY = SamplingParams(temp=0)
N_VOCAB = 10


class Backend:
    """Counts. `before` and `after` are called in each step, the latter once it is committed. `max_pages` is all the memory."""

    def __init__(self, max_pages: int = 10**6) -> None:
        self.model: Any = SimpleNamespace(
            config=SimpleNamespace(n_vocab=N_VOCAB), graph=None, check_generates=lambda: None
        )
        self.cache = KVCache(make_page=self.make_page)
        self.max_pages = max_pages
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        self.draws: list[Draw] = []
        self.sequences: list[Sequence] = []

    def run(self, fetch: Any, batch: Batch | None = None, feed: Any = None) -> Any:
        raise AssertionError("the engine asks for tokens alone")

    def sample(self, batch: Batch, draws: list[Draw]) -> list[int]:
        for piece in batch.segments:
            first, last = piece.seq.length // PAGE, (piece.seq.length + len(piece.tokens) - 1) // PAGE
            for page in piece.seq.pages[first : last + 1]:
                assert self.owners()[page] <= 1, "a step writes to a page that belongs to several sequences"
        self.before()
        batch.reserve(self.cache)  # as backends do, for those who use them without an engine
        batch.commit(self.cache)
        self.after()
        self.draws += draws
        return [(int(batch.tokens[i]) + 1) % N_VOCAB for i in batch.outputs]

    def make_page(self, page: int) -> None:
        if page >= self.max_pages:
            raise QwenError("no memory")

    def copy_page(self, source: int, target: int) -> None:
        owners = self.owners()
        assert owners[target] == 0, "a copy goes to a page that belongs to nobody yet"

    def owners(self) -> Counter[int]:
        return Counter(page for seq in self.sequences for page in seq.kv.pages)


@pytest.mark.parametrize("seed", range(30))
def test_pages_are_written_by_one_and_free_in_the_end(seed: int) -> None:
    rs = np.random.RandomState(seed)
    backend = Backend(max_pages=rs.choice([12, 10**6]))
    engine = Engine(
        backend, n_ctx=400, n_batch=int(rs.choice([1, 5, 64, 512])), n_kept=int(rs.choice([0, 300, 2000]))
    )

    def fail() -> None:
        if rs.randint(20) == 0:
            raise rs.choice([KeyboardInterrupt, QwenError])

    backend.before = backend.after = fail
    for _ in range(150):
        action = rs.randint(10)
        if action < 2:
            parent = (
                backend.sequences[rs.randint(len(backend.sequences))]
                if backend.sequences and rs.randint(2)
                else None
            )
            begin = parent.tokens[: rs.randint(len(parent.tokens) + 1)] if parent else []
            seq = Sequence(
                begin + rs.randint(0, N_VOCAB, rs.randint(1, 200)).tolist(),
                GREEDY,
                rs.choice([None, 0, 3, 70]),
            )
            if len(seq.tokens) <= engine.n_ctx:
                backend.sequences.append(seq)
                engine.submit(seq)
        elif action == 2 and engine.running:
            engine.cancel(engine.running[rs.randint(len(engine.running))])
        else:
            with suppress(KeyboardInterrupt, QwenError):
                engine.step()
        for seq in backend.sequences:
            assert seq.kv.length <= len(seq.kv.pages) * PAGE
            assert len(seq.tokens) <= engine.n_ctx
            assert all((a + 1) % N_VOCAB == b for a, b in zip(seq.tokens[seq.n_prompt - 1 :], seq.generated))
            assert bool(seq.kv.pages) <= (seq in engine.running)
    backend.before = backend.after = lambda: None
    for _ in range(20000):
        if not engine.running:
            break
        engine.step()
    assert engine.running == []
    assert all(seq.stop_reason for seq in backend.sequences)
    while engine.prefixes.make_room():
        pass
    one = KVSequence()
    n_pages = backend.cache.n_pages
    backend.max_pages = n_pages  # some were asked for when there was no memory
    backend.cache.reserve(one, n_pages * PAGE)
    assert sorted(one.pages) == list(range(n_pages)), "pages were lost, or freed twice"


@pytest.fixture
def backend() -> Backend:
    return Backend()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_what_is_kept_makes_room_where_there_is_no_memory() -> None:
    backend = Backend(max_pages=3)
    engine = Engine(backend, n_ctx=400, n_kept=400)
    for begin in [1], [2], [1] * 65:  # the last finds no memory for a copy of a page either
        seq = Sequence(begin + [3] * (130 - len(begin)), GREEDY, 3)
        engine.submit(seq)
        while seq.stop_reason is None:
            engine.step()
        assert (seq.stop_reason, seq.error) == ("length", None)


def test_each_step_reserves_once_for_each_sequence(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(backend, n_ctx=400, n_batch=100)
    reserved: list[KVSequence] = []
    reserve = backend.cache.reserve
    monkeypatch.setattr(backend.cache, "reserve", lambda seq, n: (reserved.append(seq), reserve(seq, n)))
    sequences = [Sequence([i] * 90, GREEDY, 3) for i in range(3)]
    for seq in sequences:
        engine.submit(seq)
    while engine.running:
        reserved.clear()
        engine.step()
        assert len(set(reserved)) == len(reserved)


@pytest.mark.parametrize("error", [KeyboardInterrupt, QwenError])
def test_a_page_that_cannot_be_copied_is_not_lost(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Ctrl-C ends the request, without memory the page is computed again."""

    def fail(source: int, target: int) -> None:
        raise error

    engine, first, second = (
        Engine(backend, n_ctx=400, n_kept=400),
        Sequence([1] * 100, GREEDY, 1),
        Sequence([1] * 100, GREEDY, 1),
    )
    engine.submit(first)
    engine.step()
    monkeypatch.setattr(backend, "copy_page", fail)
    with pytest.raises(KeyboardInterrupt) if error is KeyboardInterrupt else nullcontext():
        engine.submit(second)
    assert second.n_cached == (PAGE if error is QwenError else 0)
    engine.cancel(second)
    while engine.prefixes.make_room():
        pass
    one = KVSequence()
    backend.cache.reserve(one, 2 * PAGE)
    assert sorted(one.pages) == [0, 1]


@pytest.mark.parametrize("n_kept", [0, 400])
def test_what_was_not_computed_is_not_kept(backend: Backend, n_kept: int) -> None:
    """Neither the pages of a step that was not done, nor a sequence that waited."""
    engine = Engine(backend, n_ctx=400, n_batch=200, n_kept=n_kept)
    half, waits = Sequence([1] * 300, GREEDY), Sequence([2], GREEDY)
    engine.submit(half)
    engine.step()
    engine.submit(waits)
    backend.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.cancel(half)
    engine.cancel(waits)
    assert [(len(kept.tokens), len(kept.kv.pages)) for kept in engine.prefixes.kept] == (
        [(200, 4)] if n_kept else []
    )


def test_an_answer_is_no_longer_after_ctrl_c_at_its_last_token(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, seq = Engine(backend, n_ctx=400), Sequence([1] * 5, GREEDY, 3)
    engine.submit(seq)
    engine.step()
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_finish", lambda seq, reason: interrupt())
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert len(seq.generated) == 3
    engine.step()
    assert (seq.stop_reason, len(seq.generated), engine.running) == ("length", 3, [])


def test_a_position_that_is_computed_again_is_shared_with_nobody(backend: Backend) -> None:
    engine, first = Engine(backend, n_ctx=400), Sequence([1] * PAGE, GREEDY, 3)
    second = Sequence([1] * (PAGE + 9), GREEDY, 3)
    backend.sequences = [first, second]
    engine.submit(first)
    backend.after = interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    backend.after = lambda: None
    engine.submit(second)
    while first.stop_reason is None or second.stop_reason is None:
        engine.step()
    assert (len(first.generated), len(second.generated)) == (3, 3)


def test_a_prompt_that_fills_the_context_leaves_no_room_for_an_answer(backend: Backend) -> None:
    engine, seq = Engine(backend, n_ctx=16), Sequence([1] * 16, GREEDY)
    engine.submit(seq)
    while seq.stop_reason is None:
        engine.step()
    assert (len(seq.tokens), seq.stop_reason) == (16, "context")


def test_progress_is_true_of_a_prompt_that_was_cancelled(backend: Backend) -> None:
    engine, seq = Engine(backend, n_ctx=64, n_batch=4), Sequence([1] * 16, GREEDY)
    engine.submit(seq)
    engine.step()
    engine.cancel(seq)
    assert seq.n_prompt_done == 4


def test_with_more_sequences_than_a_step_holds_each_has_its_turn(backend: Backend) -> None:
    engine, sequences = Engine(backend, n_ctx=640, n_batch=3), [Sequence([i], GREEDY) for i in range(8)]
    for seq in sequences:
        engine.submit(seq)
    for _ in range(80):
        engine.step()
    assert [len(seq.generated) for seq in sequences] == [30] * 8


def test_short_prompts_that_keep_coming_do_not_stop_a_long_one(backend: Backend) -> None:
    engine, long = Engine(backend, n_ctx=640, n_batch=8), Sequence([1] * 100, GREEDY)
    engine.submit(long)
    for _ in range(200):
        engine.submit(Sequence([2] * 8, GREEDY, max_tokens=1))
        engine.step()
    assert long.n_prompt_done == 100


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, QwenError])
def test_an_interrupted_step_can_be_done_again(
    backend: Backend, where: str, error: type[BaseException]
) -> None:
    engine, seq = Engine(backend, n_ctx=64), Sequence([1, 2, 3], SamplingParams(temp=1, seed=5), 9)
    engine.submit(seq)

    def fail() -> None:
        raise error

    for i in range(9):
        if i % 3 == 1:
            setattr(backend, where, fail)
            with pytest.raises(error):
                engine.step()
            setattr(backend, where, lambda: None)
        engine.step()
    assert seq.generated == [4, 5, 6, 7, 8, 9, 0, 1, 2]
    chances = [draw.chance for draw in backend.draws]
    assert chances == [seq.sampler.draw([], i).chance for i in range(9)], (
        "a random number belongs to its place in the answer"
    )
    assert len(set(chances)) == 9


def test_a_sequence_is_taken_once(backend: Backend) -> None:
    engine, seq = Engine(backend, n_ctx=64), Sequence([1, 2], GREEDY, 2)
    engine.submit(seq)
    for _ in range(3):
        with pytest.raises(InputError, match="submitted before"):
            engine.submit(seq)
        engine.step()
    assert (seq.generated, seq.stop_reason) == ([3, 4], "length")
