"""Sequences come, go, share beginnings and are interrupted, in models that keep states, that choose experts, or both: an answer is what it
would have been alone, to the bit, and nothing stays in memory."""

import random
from contextlib import suppress
from pathlib import Path

import pytest
from random_models import write_random_model
from shapes import PRESETS

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.kv_cache import PAGE
from qwencli.backends.protocol import Batch
from qwencli.engine.engine import Engine, Sequence
from qwencli.gguf.file import GGUFFile
from qwencli.network.load import load_model
from qwencli.network.model import Model
from qwencli.sampling import SamplingParams

GREEDY = SamplingParams(temp=0)
ARCHS = ["qwen35", "qwen3moe", "qwen3next"]


@pytest.fixture(params=ARCHS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    write_random_model(tmp_path / "m.gguf", PRESETS[f"tiny-{request.param}"], "Q4_K_M")
    return load_model(GGUFFile(tmp_path / "m.gguf"))


def finish(engine: Engine, seq: Sequence) -> None:
    for _ in range(10_000):
        if seq.stop_reason:
            return
        step(engine)
    pytest.fail("the sequence does not end")


def step(engine: Engine, n_batch: int | None = None) -> None:
    with suppress(KeyboardInterrupt):
        engine.step(n_batch)


def alone(model: Model, prompt: list[int], n: int) -> list[int]:
    """The prompt and its answer."""
    engine, seq = Engine(CPUBackend(model, 1), 1024), Sequence(list(prompt), GREEDY, n)
    engine.submit(seq)
    finish(engine, seq)
    return seq.tokens


class Interrupted(CPUBackend):
    """Ctrl-C comes now and then, before or after a step."""

    def __init__(self, model: Model, seed: int) -> None:
        super().__init__(model, 2)
        self.rnd = random.Random(seed)

    def sample(self, batch: Batch, draws: list) -> list:
        moment = self.rnd.random()
        if moment < 0.08:
            raise KeyboardInterrupt
        chosen = super().sample(batch, draws)
        if moment > 0.92:
            raise KeyboardInterrupt
        return chosen


@pytest.mark.parametrize("seed", range(3))
def test_answers_in_a_crowd(model: Model, seed: int) -> None:
    rnd = random.Random(seed)
    engine = Engine(Interrupted(model, seed), 1024, rnd.choice([3, 64, 65, 512]), rnd.choice([200, 2000]))
    known = [[rnd.randrange(512) for _ in range(200)]]
    sequences: list[Sequence] = []
    for _ in range(60):
        chance = rnd.random()
        if chance < 0.3 and len(engine.running) < 4:
            begin = rnd.choice(known)
            cut = rnd.choice([len(begin), rnd.randrange(1, len(begin) + 1), PAGE, 2 * PAGE])
            prompt = begin[:cut] + [rnd.randrange(512) for _ in range(rnd.choice([0, 1, 5, 40, 130]))]
            sequences.append(Sequence(prompt, GREEDY, rnd.choice([1, 3, 20])))
            engine.submit(sequences[-1])
        elif chance < 0.35 and engine.running:
            engine.cancel(rnd.choice(engine.running))
        else:
            step(engine, rnd.choice([None, None, 1, 7]))
        known += [seq.tokens for seq in sequences if seq.stop_reason and seq.tokens not in known]
    for seq in sequences:
        finish(engine, seq)
        assert seq.error is None
        if seq.generated:
            assert seq.tokens == alone(model, seq.tokens[: seq.n_prompt], len(seq.generated))
    assert sum(seq.n_cached for seq in sequences) > PAGE
    while engine.prefixes.make_room():
        pass
    cache = engine.backend.cache
    for pool in cache._pages, cache._states:
        assert len(pool._free) == pool.n_used


def test_a_next_turn_computes_only_what_is_new(model: Model) -> None:
    rnd = random.Random(1)
    engine, prompt = Engine(CPUBackend(model, 2), 1024, n_kept=1024), [rnd.randrange(512) for _ in range(300)]
    first = Sequence(prompt, GREEDY, 20)
    engine.submit(first)
    finish(engine, first)
    turn = Sequence([*first.tokens, 1, 2, 3], GREEDY, 5)
    engine.submit(turn)
    assert turn.n_cached == len(first.tokens) - 1, "all but the last token, which nothing was computed for"
    finish(engine, turn)
    assert turn.tokens == alone(model, turn.tokens[: turn.n_prompt], 5)
    other = Sequence([*prompt[:290], 1, 2, 3], GREEDY, 5)
    engine.submit(other)
    assert 290 // PAGE * PAGE <= other.n_cached <= 290, (
        "from the last border of a page on at least, where the state is kept"
    )
    finish(engine, other)
    assert other.tokens == alone(model, other.tokens[: other.n_prompt], 5)
