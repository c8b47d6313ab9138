"""The engine's contract: what is generated, when and why it stops, and that nothing is left behind.

The tokens to expect are the naive twin's. Weights and prompts are such that the likeliest token leads by 0.05 at least, so that a backend
may round in its own way.
"""

from collections.abc import Callable
from pathlib import Path

import naive
import numpy as np
import pytest
import tiny_models
from engine_runs import finish

from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.engine.engine import Engine, Sequence
from qwencli.errors import InputError
from qwencli.gguf.file import GGUFFile
from qwencli.network.load import load_model
from qwencli.sampling import SamplingParams

CONFIG = tiny_models.config(num_hidden_layers=2)
WEIGHTS = tiny_models.weights(CONFIG, 20)
N_NEW = 12
PROMPTS = [
    np.random.RandomState(seed).randint(0, CONFIG["vocab_size"], n).tolist()
    for seed, n in ((205, 5), (190, 90), (301, 1), (764, 64))
]
GREEDY = SamplingParams(temp=0)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return [naive.greedy(CONFIG, WEIGHTS, prompt, N_NEW) for prompt in PROMPTS]


@pytest.fixture
def engine(tmp_path: Path) -> Callable[..., Engine]:
    def make(n_ctx: int = 128, n_batch: int = 512) -> Engine:
        tiny_models.write_gguf(tmp_path / "m.gguf", CONFIG, WEIGHTS)
        return Engine(NumpyBackend(load_model(GGUFFile(tmp_path / "m.gguf"))), n_ctx, n_batch)

    return make


def greedy(prompt: list[int], max_tokens: int | None = N_NEW, end_ids: tuple[int, ...] = ()) -> Sequence:
    return Sequence(list(prompt), GREEDY, max_tokens, end_ids)


@pytest.mark.parametrize("n_batch", [1, 7, 64, 512])
def test_prompts_in_chunks_of_any_size(
    engine: Callable[..., Engine], expected: list[list[int]], n_batch: int
) -> None:
    e = engine(n_batch=n_batch)
    for prompt, tokens in zip(PROMPTS, expected):
        seq = greedy(prompt)
        finish(e, seq)
        assert seq.generated == tokens
        assert seq.tokens == prompt + tokens
        assert seq.stop_reason == "length"


@pytest.mark.parametrize("n_batch", [3, 40, 512])
def test_sequences_at_once_give_the_tokens_of_each_alone(
    engine: Callable[..., Engine], expected: list[list[int]], n_batch: int
) -> None:
    e, sequences = engine(n_batch=n_batch), [greedy(prompt) for prompt in PROMPTS]
    finish(e, *sequences)
    assert [seq.generated for seq in sequences] == expected


def test_a_sequence_may_join_while_others_run(
    engine: Callable[..., Engine], expected: list[list[int]]
) -> None:
    e, sequences = engine(n_batch=32), [greedy(prompt) for prompt in PROMPTS]
    for seq in sequences:
        e.submit(seq)
        for _ in range(3):
            e.step()
    while any(seq.stop_reason is None for seq in sequences):
        e.step()
    assert [seq.generated for seq in sequences] == expected


def test_a_step_returns_the_tokens_that_it_produced(
    engine: Callable[..., Engine], expected: list[list[int]]
) -> None:
    e, (a, b) = engine(n_batch=16), (greedy(PROMPTS[0]), greedy(PROMPTS[1]))
    e.submit(a)
    e.submit(b)
    produced: dict[Sequence, list[int]] = {a: [], b: []}
    while a.stop_reason is None or b.stop_reason is None:
        for seq, token in e.step():
            produced[seq].append(token)
            assert seq.generated == produced[seq]
    assert [produced[a], produced[b]] == expected[:2]
    assert e.step() == []


def test_a_long_prompt_does_not_halt_those_that_generate(engine: Callable[..., Engine]) -> None:
    e, short, long = engine(n_batch=16), greedy(PROMPTS[0]), greedy(PROMPTS[1])
    e.submit(short)
    e.step()
    e.submit(long)
    done = []
    while not long.generated:
        assert [seq for seq, _ in e.step()][:1] == [short]
        done.append(long.n_prompt_done)
    assert done == [15, 30, 45, 60, 75, 90]


def test_progress_of_a_prompt(engine: Callable[..., Engine]) -> None:
    e, seq = engine(n_batch=40), greedy(PROMPTS[1])
    e.submit(seq)
    assert seq.n_prompt_done == 0
    done = []
    for _ in range(4):
        e.step()
        done.append(seq.n_prompt_done)
    assert done == [40, 80, 90, 90]


# Why it stops


def test_an_end_token_ends_the_answer_and_is_no_part_of_it(
    engine: Callable[..., Engine], expected: list[list[int]]
) -> None:
    tokens = expected[0]
    assert len(set(tokens)) == N_NEW
    never = next(token for token in range(CONFIG["vocab_size"]) if token not in tokens)
    for n in (0, 5):
        seq = greedy(PROMPTS[0], end_ids=(never, tokens[n]))
        finish(engine(), seq)
        assert (seq.generated, seq.stop_reason) == (tokens[:n], "eos")


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_as_many_tokens_as_asked_for(
    engine: Callable[..., Engine], expected: list[list[int]], max_tokens: int
) -> None:
    e, seq = engine(), greedy(PROMPTS[0], max_tokens)
    finish(e, seq)
    assert (seq.generated, seq.stop_reason) == (expected[0][:max_tokens], "length")
    assert e.running == []


def test_the_context_bounds_prompt_and_answer(
    engine: Callable[..., Engine], expected: list[list[int]]
) -> None:
    seq = greedy(PROMPTS[0], max_tokens=None)
    finish(engine(n_ctx=13), seq)
    assert (seq.generated, seq.stop_reason) == (expected[0][:8], "context")
    assert len(seq.tokens) == 13


def test_where_both_bounds_are_met_at_once_it_is_the_length(engine: Callable[..., Engine]) -> None:
    seq = greedy(PROMPTS[0], max_tokens=8)
    finish(engine(n_ctx=13), seq)
    assert seq.stop_reason == "length"


@pytest.mark.parametrize("n_steps", [0, 2, 8])
def test_cancel_before_and_in_prompt_and_answer(
    engine: Callable[..., Engine], expected: list[list[int]], n_steps: int
) -> None:
    e, seq, other = engine(n_batch=32), greedy(PROMPTS[1]), greedy(PROMPTS[0])
    e.submit(seq)
    e.submit(other)
    for _ in range(n_steps):
        e.step()
    generated = list(seq.generated)
    assert bool(generated) == (n_steps == 8)
    e.cancel(seq)
    assert (seq.generated, seq.stop_reason) == (generated, "cancelled")
    assert seq not in e.running
    while other.stop_reason is None:
        assert all(s is other for s, _ in e.step())
    assert (seq.generated, other.generated) == (generated, expected[0])


def test_cancel_takes_a_reason_and_leaves_what_is_done_alone(engine: Callable[..., Engine]) -> None:
    e, seq, done = engine(), greedy(PROMPTS[0]), greedy(PROMPTS[2])
    finish(e, done)
    e.cancel(done)
    assert done.stop_reason == "length"
    e.submit(seq)
    e.cancel(seq, "stop")
    e.cancel(seq)
    assert seq.stop_reason == "stop"


# What is left over


def test_memory_is_used_again(engine: Callable[..., Engine]) -> None:
    e = engine(n_batch=32)
    used = []
    for _ in range(5):
        sequences = [greedy(prompt) for prompt in PROMPTS]
        finish(e, *sequences[:3])
        e.submit(sequences[3])
        e.step()
        e.cancel(sequences[3])
        used.append(e.backend.cache.n_pages)
    assert used[0] > 0
    assert len(set(used)) == 1
    assert e.running == []


def test_a_context_costs_nothing_until_it_is_filled(engine: Callable[..., Engine]) -> None:
    small, large = engine(n_ctx=32), engine(n_ctx=2**20)
    for e in (small, large):
        finish(e, greedy(PROMPTS[0]))
    assert small.backend.cache.n_pages == large.backend.cache.n_pages


# Sampling


def test_a_seeded_sequence_is_the_same_alone_and_among_others(engine: Callable[..., Engine]) -> None:
    def sampled(seed: int) -> Sequence:
        return Sequence(list(PROMPTS[0]), SamplingParams(temp=1.5, seed=seed), 20)

    alone, again, together = sampled(5), sampled(5), [sampled(6), sampled(5), sampled(7)]
    finish(engine(), alone)
    finish(engine(n_batch=2), again)
    finish(engine(), *together)
    assert alone.generated == again.generated == together[1].generated
    assert len({tuple(seq.generated) for seq in together}) == 3


# What cannot be run


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "the prompt is empty"),
        ([1] * 20, "the prompt has 20 tokens, more than the context of 16"),
        ([1, 72], "outside the vocabulary of 72"),
        ([-1], "outside the vocabulary of 72"),
    ],
)
def test_prompts_that_are_refused(engine: Callable[..., Engine], tokens: list[int], message: str) -> None:
    e, seq = engine(n_ctx=16), greedy(tokens)
    with pytest.raises(InputError, match=message):
        e.submit(seq)
    assert e.running == []
    assert e.step() == []
