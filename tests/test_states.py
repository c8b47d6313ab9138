"""States of recurrent sequences: which are kept, shared and given back, and that a next turn goes on from one."""

from pathlib import Path

import numpy as np
import pytest
from engine_runs import finish
from random_models import write_random_model
from shapes import PRESETS

from qwencli.backends.kv_cache import MOST_BORDERS, PAGE, KVCache, KVSequence, thin
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.engine.engine import Engine, Sequence
from qwencli.engine.prefix_cache import MOST_STATES
from qwencli.engine.session import load, save
from qwencli.errors import QwenError
from qwencli.gguf.file import GGUFFile
from qwencli.network.load import load_model
from qwencli.network.model import Model
from qwencli.sampling import SamplingParams

GREEDY = SamplingParams(temp=0)
PROMPT: list[int] = np.random.RandomState(35).randint(0, 256, 3 * PAGE + 8).tolist()


# --- the cache's bookkeeping ---


def advance(cache: KVCache, seq: KVSequence, *steps: int) -> None:
    for n in steps:
        cache.reserve(seq, n)
        cache.commit(seq, n)


def n_free(cache: KVCache) -> int:
    """States that nothing holds: how many sequences of one position get one that was used before."""
    before, taken = cache.n_states, []
    while cache.n_states == before:
        taken.append(KVSequence())
        cache.reserve(taken[-1], 1)
    for seq in taken:
        cache.release(seq)
    return len(taken) - 1


def test_a_step_keeps_the_last_two_states_and_the_border_behind_it() -> None:
    cache, seq = KVCache(recurrent=True), KVSequence()
    cache.reserve(seq, 150)
    assert set(seq.states) == {128, 150}
    cache.commit(seq, 150)
    assert set(seq.states) == {128, 150}
    advance(cache, seq, 1, 1, 1)
    assert set(seq.states) == {128, 152, 153}
    advance(cache, seq, 39)  # to the border: one state is both
    assert set(seq.states) == {128, 153, 192}
    advance(cache, seq, 1, 1)
    assert set(seq.states) == {128, 192, 193, 194}
    assert len(set(seq.states.values())) == 4


def test_what_is_generated_leaves_no_borders() -> None:
    cache, seq = KVCache(recurrent=True), KVSequence()
    advance(cache, seq, 60, *[1] * 80)
    assert set(seq.states) == {139, 140}


def test_other_models_have_no_states() -> None:
    cache, seq = KVCache(), KVSequence()
    advance(cache, seq, 150, 1)
    assert (seq.states, cache.n_states) == ({}, 0)
    cache.rewind(seq, 77)
    assert seq.length == 77


def test_a_step_that_failed_leaves_nothing_behind() -> None:
    cache, seq = KVCache(recurrent=True), KVSequence()
    advance(cache, seq, 100)
    held = dict(seq.states)
    cache.reserve(seq, 200)
    cache.reserve(seq, 3)  # the next one is another
    assert set(seq.states) == {*held, 103}
    cache.trim(seq)
    assert (seq.states, len(seq.pages)) == (held, 2)


@pytest.mark.parametrize("what", ["page", "state"])
def test_without_memory_nothing_is_reserved(what: str) -> None:
    scarce = False

    def make(number: int) -> None:
        if scarce:
            raise QwenError("no memory")

    cache, seq = KVCache(True, **{f"make_{what}": make}), KVSequence()
    advance(cache, seq, 100)
    held = dict(seq.states)
    cache.reserve(seq, 20)  # for a step that was not done
    scarce = True
    with pytest.raises(QwenError, match="no memory"):
        cache.reserve(seq, 200)
    assert (seq.length, len(seq.pages), seq.states) == (100, 2, held)
    scarce = False
    advance(cache, seq, 200)
    assert sorted(seq.pages) == [0, 1, 2, 3, 4]


def test_what_is_reserved_is_known() -> None:
    cache, seq = KVCache(recurrent=True), KVSequence()
    assert cache.is_reserved(seq, 0) is False, "a state for the end is missing"
    for n in 1, PAGE, 150:
        assert not cache.is_reserved(seq, n)
        cache.reserve(seq, n)
        assert cache.is_reserved(seq, n)
        assert not cache.is_reserved(seq, n + 1)
    advance(cache, seq, 150)
    assert not cache.is_reserved(seq, 1)


def test_a_sequence_to_be_filled_has_the_states_that_it_is_said_to_have() -> None:
    for states in [], [200], [128, 200], [64, 200]:
        cache, seq = KVCache(recurrent=bool(states)), KVSequence()
        cache.fill(seq, 200, states)
        assert (seq.length, len(seq.pages), list(seq.states)) == (200, 4, states)
        assert seq.borders == states[:-1]


@pytest.mark.parametrize(
    ("wanted", "found"), [(153, 153), (152, 152), (151, 128), (128, 128), (127, 0), (0, 0)]
)
def test_going_back_ends_where_there_is_a_state(wanted: int, found: int) -> None:
    cache, seq = KVCache(recurrent=True), KVSequence()
    advance(cache, seq, 150, 1, 1, 1)
    assert cache.reach(seq, wanted) == found
    cache.rewind(seq, wanted)
    assert (seq.length, max(seq.states, default=0)) == (found, found)


def test_states_are_free_when_the_last_sequence_lets_go() -> None:
    cache, first = KVCache(recurrent=True), KVSequence()
    advance(cache, first, 130)
    second = cache.share(first, 130)
    assert (second.states, second.borders, second.length) == (first.states, [128], 128)
    advance(cache, first, 1)  # writes a state of its own
    assert second.states.items() <= first.states.items()
    n = cache.n_states
    cache.release(first)
    assert n_free(cache) == n - 2
    cache.release(second)
    n = cache.n_states
    assert (second.states, n_free(cache)) == ({}, n)


def test_borders_are_thinned_evenly() -> None:
    positions = [64, 512, 1024, 1536, 1600]
    thin(positions, 4)
    assert positions == [512, 1024, 1536, 1600]
    cache, seq = KVCache(recurrent=True), KVSequence()
    advance(cache, seq, *[512] * 20)
    assert len(seq.borders) == MOST_BORDERS
    assert seq.borders[-1] == seq.length == 20 * 512
    assert max(np.diff([0, *seq.borders])) <= 8 * 512


# --- a recurrent model ---


class Counting(NumpyBackend):
    """Counts the tokens that are computed."""

    n_computed = 0

    def sample(self, batch: Batch, draws: list) -> list:
        self.n_computed += len(batch.tokens)
        return super().sample(batch, draws)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    write_random_model(path, PRESETS["tiny-qwen35"], "F16")
    return load_model(GGUFFile(path))


@pytest.fixture
def engine(model: Model) -> Engine:
    return Engine(Counting(model), 512, n_kept=512)


def run(engine: Engine, tokens: list[int], n: int = 4) -> tuple[list[int], int]:
    """The answer, and how many tokens were computed for it."""
    assert isinstance(engine.backend, Counting)
    seq, before = Sequence(list(tokens), GREEDY, n), engine.backend.n_computed
    finish(engine, seq)
    return seq.generated, engine.backend.n_computed - before


def test_a_next_turn_goes_on_from_the_end_of_the_last(model: Model, engine: Engine) -> None:
    answer, n = run(engine, PROMPT)
    assert n == len(PROMPT) + 3
    turn = [*PROMPT, *answer, 5, 6, 7]
    found, n = run(engine, turn)
    assert n == 1 + 3 + 3, "the last answer's last token, which nothing was computed for, and what follows"
    assert found == run(Engine(Counting(model), 512), turn)[0]


def test_a_turn_that_renders_the_past_otherwise_goes_on_from_a_border(model: Model, engine: Engine) -> None:
    answer, _ = run(engine, PROMPT)
    turn = [*PROMPT[:-3], 9, 9, *answer, 5]  # as where a template drops what was thought
    found, n = run(engine, turn)
    assert n == len(turn) - 3 * PAGE + 3
    assert found == run(Engine(Counting(model), 512), turn)[0]


def test_a_session_holds_the_border_before_an_answer(model: Model, engine: Engine, tmp_path: Path) -> None:
    answer, _ = run(
        engine, PROMPT, 2 * PAGE
    )  # past further borders, at which what is generated leaves no states
    save(tmp_path / "s", engine.backend, [*PROMPT, *answer], engine.prefixes.kept[-1].kv)
    fresh = Engine(Counting(model), 512, n_kept=512)
    session = load(tmp_path / "s", fresh.backend, 512)
    length = len(PROMPT) + len(answer) - 1
    assert (set(session.kv.states), session.kv.borders) == ({3 * PAGE, length}, [3 * PAGE])
    fresh.prefixes.keep(session.tokens, session.kv)
    turn = [*PROMPT[:-3], 9, 9, *answer, 5]
    found, n = run(fresh, turn)
    assert n == len(turn) - 3 * PAGE + 3
    assert found == run(Engine(Counting(model), 512), turn)[0]


def test_where_others_differ_there_is_a_state_the_next_time(engine: Engine) -> None:
    """As of a system prompt that many conversations begin with."""

    def question(n: int) -> list[int]:
        return [*PROMPT[:140], *range(n, n + 60)]

    assert [run(engine, question(n), 1)[1] for n in (1, 2, 3)] == [200, 200, 200 - 2 * PAGE]


def test_a_step_is_done_again_from_the_state_before_it(engine: Engine) -> None:
    """As when Ctrl-C comes after a step whose token was not taken."""
    seq, plain = Sequence(PROMPT[:70], GREEDY, 6), run(engine, PROMPT[:70], 6)[0]
    engine.submit(seq)
    for _ in range(3):
        engine.step()
    engine.backend.step(Batch([Segment(seq.kv, seq.tokens[seq.kv.length :], 1)]))
    assert seq.kv.length == len(seq.tokens)
    while not seq.stop_reason:
        engine.step()
    assert seq.generated == plain


def test_sequences_of_one_step_have_states_of_their_own(model: Model) -> None:
    alone = [run(Engine(Counting(model), 512), PROMPT[:n])[0] for n in (30, 90)]
    together = Engine(Counting(model), 512)
    sequences = [Sequence(PROMPT[:n], GREEDY, 4) for n in (30, 90)]
    finish(together, *sequences)
    assert [seq.generated for seq in sequences] == alone


def test_only_so_many_states_are_kept(engine: Engine) -> None:
    for first in range(MOST_STATES):
        run(engine, [first, *PROMPT[:10]], 2)
    held = {state for kept in engine.prefixes.kept for state in kept.kv.states.values()}
    assert 0 < len(held) <= MOST_STATES
    assert engine.backend.cache.n_states <= MOST_STATES + 4


def test_going_back_by_a_step_and_doing_it_again_gives_the_same(model: Model) -> None:
    """As when logits aren't finite, to find the layer where that starts."""
    backend = Counting(model)
    seq, tokens = KVSequence(), PROMPT[:20]
    backend.run([LOGITS], Batch([Segment(seq, tokens[:12], 1)]))
    first = backend.run([LOGITS], Batch([Segment(seq, tokens[12:], 1)]))[LOGITS]
    backend.cache.rewind(seq, 12)
    assert seq.length == 12
    assert np.array_equal(backend.run([LOGITS], Batch([Segment(seq, tokens[12:], 1)]))[LOGITS], first)
