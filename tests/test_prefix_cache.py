"""What a sequence takes over from others that began alike, and tokens that an answer is made to go on with. Tokens to expect are the naive
twin's, as in test_engine.py."""

from collections.abc import Callable
from pathlib import Path

import naive
import numpy as np
import pytest
import tiny_models
from engine_runs import finish

from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import Batch
from qwencli.engine.engine import Engine, Sequence
from qwencli.errors import InputError, QwenError
from qwencli.gguf.file import GGUFFile
from qwencli.network.load import load_model
from qwencli.sampling import SamplingParams

CONFIG = tiny_models.config(num_hidden_layers=2)
WEIGHTS = tiny_models.weights(CONFIG, 20)
PROMPT = np.random.RandomState(190).randint(0, CONFIG["vocab_size"], 90).tolist()
GREEDY = SamplingParams(temp=0)
MAKE = Callable[..., Engine]


@pytest.fixture
def engine(tmp_path: Path) -> MAKE:
    def make(n_kept: int, n_batch: int = 512) -> Engine:
        tiny_models.write_gguf(tmp_path / "m.gguf", CONFIG, WEIGHTS)
        return Engine(Counting(load_model(GGUFFile(tmp_path / "m.gguf"))), 256, n_batch, n_kept)

    return make


class Counting(NumpyBackend):
    """Counts the tokens that are computed."""

    n_computed = 0

    def sample(self, batch: Batch, draws: list) -> list:
        self.n_computed += len(batch.tokens)
        return super().sample(batch, draws)


def run(engine: Engine, tokens: list[int], n: int = 8) -> tuple[list[int], int]:
    """The answer, and how many tokens were computed for it."""
    seq, before = Sequence(list(tokens), GREEDY, n), engine.backend.n_computed
    finish(engine, seq)
    assert seq.n_cached == len(tokens) - (engine.backend.n_computed - before - (n - 1))
    return seq.generated, engine.backend.n_computed - before


def test_a_next_turn_computes_only_what_is_new(engine: MAKE) -> None:
    e = engine(n_kept=256)
    answer, n = run(e, PROMPT)
    assert (answer, n) == (naive.greedy(CONFIG, WEIGHTS, PROMPT, 8), 90 + 7)
    turn = PROMPT + answer + [5, 6, 7]
    answer, n = run(e, turn)
    assert answer == naive.greedy(CONFIG, WEIGHTS, turn, 8)
    assert n == 1 + 3 + 7, "the last answer's last token, which nothing was computed for, and what follows"


@pytest.mark.parametrize("common", [0, 1, 63, 64, 65, 89])
def test_another_end_takes_over_what_is_common(engine: MAKE, common: int) -> None:
    e = engine(n_kept=256)
    run(e, PROMPT)
    other = PROMPT[:common] + [(token + 1) % CONFIG["vocab_size"] for token in PROMPT[common:]]
    answer, n = run(e, other)
    assert answer == naive.greedy(CONFIG, WEIGHTS, other, 8)
    assert n == 90 - common + 7


def test_the_same_prompt_needs_its_last_token_alone(engine: MAKE) -> None:
    e = engine(n_kept=256)
    answer, _ = run(e, PROMPT)
    assert run(e, PROMPT) == (answer, 1 + 7)


def test_nothing_is_kept_without_room(engine: MAKE) -> None:
    e = engine(n_kept=0)
    run(e, PROMPT)
    assert run(e, PROMPT)[1] == 90 + 7
    assert e.prefixes.kept == []


def test_the_one_used_longest_ago_goes_first(engine: MAKE) -> None:
    e = engine(n_kept=200)  # for two of them
    a, b, c = ([i, *PROMPT[1:]] for i in (1, 2, 3))
    for prompt in a, b, a, c:
        run(e, prompt)
    assert run(e, a)[1] == 1 + 7
    assert run(e, b)[1] == 90 + 7


def test_running_sequences_share_what_they_have_computed(engine: MAKE) -> None:
    e, first, second = (
        engine(n_kept=0, n_batch=40),
        Sequence(list(PROMPT), GREEDY, 8),
        Sequence(list(PROMPT), GREEDY, 8),
    )
    e.submit(first)
    e.step()
    e.submit(second)
    assert second.n_cached == 40
    while second.stop_reason is None or first.stop_reason is None:
        e.step()
    assert first.generated == second.generated == naive.greedy(CONFIG, WEIGHTS, PROMPT, 8)


def test_kept_sequences_make_room_where_memory_ends(engine: MAKE, monkeypatch: pytest.MonkeyPatch) -> None:
    e = engine(n_kept=256)
    run(e, PROMPT)
    pages = e.backend.cache.n_pages

    def scarce(page: int) -> None:
        if page >= pages:
            raise QwenError("no memory")

    monkeypatch.setattr(e.backend.cache, "_make_page", scarce)
    other = [(token + 1) % CONFIG["vocab_size"] for token in PROMPT]
    assert run(e, other)[0] == naive.greedy(CONFIG, WEIGHTS, other, 8)


def test_an_answer_goes_on_with_given_tokens(engine: MAKE) -> None:
    e, seq = engine(n_kept=0), Sequence(PROMPT[:20], GREEDY, 12)
    e.submit(seq)
    for _ in range(3):
        e.step()
    begin = naive.greedy(CONFIG, WEIGHTS, PROMPT[:20], 3)
    e.extend(seq, [5, 6])
    while seq.stop_reason is None:
        e.step()
    assert seq.generated == [*begin, 5, 6, *naive.greedy(CONFIG, WEIGHTS, [*PROMPT[:20], *begin, 5, 6], 7)]


def test_given_tokens_obey_the_limits(engine: MAKE) -> None:
    e, seq = engine(n_kept=0), Sequence(PROMPT[:20], GREEDY, 2)
    e.submit(seq)
    with pytest.raises(InputError, match="outside the vocabulary"):
        e.extend(seq, [10**6])
    e.extend(seq, [1, 2, 3])
    assert (seq.generated, seq.stop_reason) == ([1, 2], "length")
    e.extend(seq, [4])
    assert seq.generated == [1, 2]
