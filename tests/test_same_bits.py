"""An answer has the same bits whatever the threads, the chunks of the prompt, the other sequences of the step, and what was cached."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import compile_together, random_model

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.backends.threads import Threads
from qwencli.engine.engine import Engine
from qwencli.engine.engine import Sequence as EngineSequence
from qwencli.gguf.file import GGUFFile
from qwencli.llm import LLM
from qwencli.network.load import load_model
from qwencli.network.model import Model
from qwencli.sampling import SamplingParams
from qwencli.system.host import Host

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    **{mix: (mix, {}) for mix in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q6_K", "Q5_K_M", "Q4_K_M")},
    "qwen2 Q8_0": ("Q8_0", {"arch": "qwen2", "n_head": 7, "n_head_kv": 1}),
    "qwen2 Q4_K_M": ("Q4_K_M", {"arch": "qwen2", "n_head_kv": 1, "tied": False}),
    "odd F16": (
        "F16",
        {"n_embd": 90, "n_ff": 75, "n_head": 3, "n_head_kv": 3, "head_dim": 80, "n_vocab": 301},
    ),
}
DEMOS = ("f16", "bf16", "q8_0", "q4_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k", "iq4_xs")
N_PROMPT = 280  # more than attention's split
CROWDS: tuple[tuple[int, ...], ...] = ((1, 1, 2, 1), (1, 9, 1, 3))
"""Tokens that four other sequences add to each step."""
RUNS: list[tuple[int, int, tuple[int, ...]]] = [
    (2, 512, ()),
    (2, 64, CROWDS[1]),
    (7, 7, ()),
    (3, 7, CROWDS[0]),
    (2, 1, CROWDS[0]),
    (3, 1, CROWDS[1]),
]
"""Threads, tokens of a chunk, crowd."""


def tokens_of(model: Model, seed: int, n: int) -> list[int]:
    return np.random.RandomState(seed).randint(0, model.config.n_vocab, n).tolist()


def wanted(model: Model) -> list[str]:
    return [name for name in model.graph.nodes if name.startswith("l_out-")] + [LOGITS]


def states(
    backend: CPUBackend,
    tokens: Sequence[int],
    chunk: int,
    crowd: Sequence[int] = (),
    seq: KVSequence | None = None,
) -> tuple[dict[str, np.ndarray], KVSequence]:
    """Each layer's output and the logits at the positions of `tokens` that `seq` doesn't hold yet, in steps of `chunk` amid a crowd."""
    names = wanted(backend.model)
    seq = KVSequence() if seq is None else seq
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    others = [(KVSequence(), n) for n in crowd]
    step = 0
    while seq.length < len(tokens):
        todo = tokens[seq.length : seq.length + chunk]
        pieces = [
            Segment(other, tokens_of(backend.model, 1000 * i + step, n), n)
            for i, (other, n) in enumerate(others)
        ]
        pieces.insert(len(pieces) // 2, Segment(seq, todo, len(todo)))
        start = sum(len(p.tokens) for p in pieces[: len(crowd) // 2])
        values = backend.run(names, Batch(pieces))
        for name in names:
            found[name].append(values[name][start : start + len(todo)])
        step += 1
    for other, _ in others:
        backend.cache.release(other)
    return {name: np.concatenate(parts) for name, parts in found.items()}, seq


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], first: int = 0) -> None:
    for name, value in expected.items():
        assert np.array_equal(found[name], value[first:]), name


def check_states(model: Model, runs: Sequence[tuple[int, int, Sequence[int]]]) -> None:
    tokens = tokens_of(model, 0, N_PROMPT)
    first = CPUBackend(model, 1)
    expected, seq = states(first, tokens, 512)
    assert all(np.isfinite(value).all() for value in expected.values())
    assert len(np.unique(expected[LOGITS], axis=0)) == N_PROMPT
    again, _ = states(first, tokens, 64, seq=first.cache.share(seq, 200))
    assert_same(again, expected, first=192)
    for n_threads, chunk, crowd in runs:
        found, _ = states(CPUBackend(model, n_threads), tokens, chunk, crowd)
        assert_same(found, expected)


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    models = [
        random_model(tmp_path_factory.mktemp("models"), mix, **changed) for mix, changed in SHAPES.values()
    ]
    compile_together(models, wanted)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_states_and_logits_of_random_models(tmp_path: Path, shape: str) -> None:
    mix, changed = SHAPES[shape]
    check_states(random_model(tmp_path, mix, **changed), RUNS)


@pytest.mark.parametrize("name", DEMOS)
def test_states_and_logits_of_the_demo_files(shared: Path, name: str) -> None:
    check_states(load_model(GGUFFile(shared / "models" / f"demo-{name}.gguf")), RUNS[1:4])


@pytest.mark.parametrize("isa_name", ["avx2", "generic"])
@pytest.mark.parametrize("mix", ["Q4_K_M", "F16"])
def test_states_on_lesser_instruction_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mix: str, isa_name: str
) -> None:
    monkeypatch.setenv("QWENCLI_ISA", isa_name)
    check_states(random_model(tmp_path, mix), RUNS[3:4])


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return random_model(tmp_path, "Q4_K_M")


def answers(engine: Engine, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Two sequences from each prompt, one greedy and one drawn, all at once."""
    sequences = [
        EngineSequence(list(p), s, 20)
        for p in prompts
        for s in (SamplingParams(temp=0), SamplingParams(temp=1.0, seed=7))
    ]
    for seq in sequences:
        engine.submit(seq)
    for _ in range(1000):
        engine.step()
        if not any(seq in engine.running for seq in sequences):
            break
    assert all(seq.stop_reason == "length" for seq in sequences)
    return [seq.generated for seq in sequences]


def test_answers_of_the_engine(model: Model) -> None:
    """Greedy and seeded, alone and among others, from a shared prefix, in chunks of any size, on any number of threads."""
    prompts = [tokens_of(model, seed, n) for seed, n in ((0, N_PROMPT), (1, 5), (2, 100))]
    engine = Engine(CPUBackend(model, 1), 400)
    expected = [answer for prompt in prompts for answer in answers(engine, [prompt])]
    assert len({tuple(answer) for answer in expected}) == 6
    first = frozenset({min(Host().allowed())})
    for n_threads, n_batch, threads in (
        (1, 1, Threads()),
        (2, 7, Threads(poll=0)),
        (3, 64, Threads(batch=1, priority=-1)),
        (1, 64, Threads(batch=4, numa="distribute")),
        (2, 33, Threads(batch=3, cpus=first, strict=True, poll=100)),
        (7, 512, Threads()),
    ):
        engine = Engine(CPUBackend(model, n_threads, threads=threads), 400, n_batch, n_kept=600)
        assert answers(engine, prompts) == expected
        assert answers(engine, prompts) == expected, "from what the first ones left in the cache"
        parent = EngineSequence(list(prompts[0]), SamplingParams(temp=0), 100)
        engine.submit(parent)
        while not parent.generated:
            engine.step()
        assert answers(engine, prompts[:1]) == expected[:2]
        engine.cancel(parent)
        assert answers(engine, prompts[:1]) == expected[:2]


SAMPLED: list[dict[str, Any]] = [
    {"temp": 0.0},
    {"top_k": 30},
    {"mirostat": 1, "mirostat_tau": 3.0},
    {"mirostat": 2, "mirostat_tau": 3.0},
    {"dynatemp_range": 0.5},
    {"dry_multiplier": 2.0, "dry_allowed_length": 1},
    {"xtc_probability": 0.5, "xtc_threshold": 0.01},
    {"repeat_penalty": 1.3, "frequency_penalty": 0.3, "penalty_last_n": -1, "n_probs": 2},
]


@pytest.mark.parametrize("seed", range(8))
def test_answers_with_any_samplers_and_given_tokens_amid_others(model: Model, seed: int) -> None:
    """Prompts begin alike, come at any time, and some answers are made to go on with given tokens; in the end no page is in use."""
    backend, rs = CPUBackend(model, 2), np.random.RandomState(seed)
    begin = tokens_of(model, seed, 150)
    prompts = [begin[: rs.randint(1, 151)] + tokens_of(model, i, rs.randint(6)) for i in range(6)]
    params = [
        SamplingParams(**{"temp": 1.0, "seed": i, **SAMPLED[rs.randint(len(SAMPLED))]}) for i in range(6)
    ]
    lengths, given = (
        rs.randint(2, 25, 6),
        [(rs.randint(1, 8), tokens_of(model, 99, rs.randint(70))) for _ in range(6)],
    )

    def answers(engine: Engine, which: Sequence[int]) -> dict[int, list[int]]:
        sequences = {i: EngineSequence(list(prompts[i]), params[i], int(lengths[i])) for i in which}
        coming = list(which)
        while coming or engine.running:
            if coming and (not engine.running or rs.randint(3) == 0):
                engine.submit(sequences[coming.pop()])
            engine.step()
            for i, seq in sequences.items():
                if len(seq.generated) == given[i][0]:
                    engine.extend(seq, given[i][1])
        return {i: seq.generated for i, seq in sequences.items()}

    engine = Engine(backend, 512, [3, 64, 512][seed % 3], n_kept=[0, 100, 512][seed % 4 % 3])
    alone = {i: answers(Engine(backend, 512), [i])[i] for i in range(6)}
    for _ in range(2):
        assert answers(engine, rs.permutation(6).tolist()) == alone
    while engine.prefixes.make_room():
        pass
    every = KVSequence()
    backend.cache.reserve(every, 64 * (n_pages := backend.cache.n_pages))
    assert sorted(every.pages) == list(range(n_pages))


def test_answers_of_llms_that_are_loaded_in_other_ways(model: Model) -> None:
    """What only changes how fast a model is, or where its weights are."""
    path, prompt = model.file.path, tokens_of(model, 0, N_PROMPT)
    sampling = SamplingParams(temp=1.0, seed=3)
    expected = list(LLM(path, n_ctx=400).stream(prompt, 20, sampling))
    for changed in (
        {"n_batch": 9},
        {"n_ubatch": 100},
        {"n_batch": 64, "n_ubatch": 4096},
        {"mlock": True},
        {"use_mmap": False, "mlock": True, "check_tensors": True},
        {"n_threads": 2, "threads": Threads(batch=5, poll=3, numa="isolate")},
    ):
        assert list(LLM(path, n_ctx=400, **changed).stream(prompt, 20, sampling)) == expected, changed
