"""Every architecture against llama.cpp and transformers, on tiny models with random weights: whole prompts, prefixes, sessions, several
sequences in a step.

What llama.cpp answers lies in oracles/architectures.json (scripts/llama_architectures.py): the perplexity and the likeliest tokens of the
F16 file as it runs it, and some logits of the same weights in float32, where nothing is rounded. Their standard deviation is 2.3.
What transformers answers lies in oracles/architectures.npz (scripts/transformers_architectures.py).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from random_models import load_script
from shapes import PRESETS

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.kv_cache import PAGE, CacheTypes, KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import LOGITS, Backend, Batch, Segment
from qwencli.engine.prefix_cache import PrefixCache
from qwencli.engine.session import load, save
from qwencli.gguf.file import GGUFFile
from qwencli.network.load import known_architectures, load_model
from qwencli.network.model import Model

ORACLES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("oracles").joinpath("architectures.json").read_text()
)
BACKENDS: dict[str, Callable[[Model], Backend]] = {
    "numpy": lambda model: NumpyBackend(model, 1),
    "cpu": lambda model: CPUBackend(model, 2),
}
Logits = np.ndarray[Any, Any]
Way = Callable[[Callable[[], Backend], list[int], Path], Logits]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the models lie until the last test."""
    folder = tmp_path_factory.mktemp("architectures")
    yield folder
    for path in folder.iterdir():
        path.unlink()


def model_of(folder: Path, arch: str, mix: str = "F16") -> Model:
    """The model that llama.cpp was asked about."""
    mm, path, shape = load_script(), folder / f"{arch}-{mix}.gguf", PRESETS[f"tiny-{arch}"]
    if not path.exists():
        mm.write_model(path, arch, shape, mix, mm.make_up_vocabulary(shape.n_vocab))
        assert hashlib.sha256(path.read_bytes()).hexdigest() in ORACLES[arch]["sha256"], (
            "another file: run `make_oracles.py architectures`"
        )
    return load_model(GGUFFile(path))


def run(backend: Backend, kv: KVSequence, tokens: Sequence[int], steps: Sequence[int] = (1000,)) -> Logits:
    """The logits of all tokens that the sequence doesn't hold yet, in steps of a given size."""
    found = []
    for n in steps:
        if piece := tokens[kv.length : kv.length + n]:
            found.append(backend.run([LOGITS], Batch([Segment(kv, piece, len(piece))]))[LOGITS])
    return np.concatenate(found)


def perplexity(logits: Logits, tokens: Sequence[int]) -> float:
    """Of all tokens but the first."""
    logits = logits[:-1].astype(np.float64)
    return float(
        np.exp(np.mean(np.logaddexp.reduce(logits, -1) - logits[np.arange(len(logits)), tokens[1:]]))
    )


def check(arch: str, logits: Logits) -> None:
    oracle = ORACLES[arch]
    assert perplexity(logits, oracle["tokens"]) == pytest.approx(oracle["perplexity"], rel=1e-3)
    assert np.mean(logits.argmax(-1) == oracle["top"]) >= 0.99
    np.testing.assert_allclose(
        logits[oracle["rows"]][:, ::8], oracle["exact_logits"], rtol=0, atol=0.05
    )  # what rounding does to them


# --- one way to the logits each: a maker of backends, the tokens, an empty folder -> logits [n_tokens, n_vocab] ---


def in_one_step(make: Callable[[], Backend], tokens: list[int], folder: Path) -> Logits:
    return run(make(), KVSequence(), tokens)


def after_a_prefix(make: Callable[[], Backend], tokens: list[int], folder: Path) -> Logits:
    """A sequence that began alike is kept; what it has computed is not computed again."""
    backend, kv = make(), KVSequence()
    other = [*tokens[:200], 7, 7, 7]
    begin = run(backend, kv, other, (150, 50, 1, 2))
    prefixes = PrefixCache(backend, 1000)
    prefixes.keep(other, kv)
    kv = prefixes.take(tokens, []).kv
    assert 2 * PAGE <= kv.length <= 200
    return np.concatenate([begin[: kv.length], run(backend, kv, tokens, (1, 1, 1000))])


def from_a_session(make: Callable[[], Backend], tokens: list[int], folder: Path) -> Logits:
    backend, kv = make(), KVSequence()
    begin = run(backend, kv, tokens[:150])
    save(folder / "session", backend, tokens, kv)
    backend = make()
    session = load(folder / "session", backend, 1000)
    assert session.kv.length == 150
    return np.concatenate([begin, run(backend, session.kv, tokens, (1, 1000))])


def among_others(make: Callable[[], Backend], tokens: list[int], folder: Path) -> Logits:
    """Three sequences in each step: one in its prompt, one that generates and one that starts later. The first is checked."""
    backend, prompts = make(), (tokens, tokens[100:], tokens[::-1])
    sequences = [KVSequence() for _ in prompts]
    found = []
    for counts in (100, 9, 0), (1, 1, 30), (150, 1, 1), (1, 5, 1), (48, 1, 70):
        pieces = [
            Segment(kv, prompt[kv.length : kv.length + n], n)
            for kv, prompt, n in zip(sequences, prompts, counts)
            if n
        ]
        found.append(backend.run([LOGITS], Batch(pieces[::-1]))[LOGITS][-counts[0] :])
    return np.concatenate(found)


WAYS: list[Way] = [in_one_step, after_a_prefix, from_a_session, among_others]


@pytest.mark.parametrize("arch", ORACLES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", BACKENDS)
def test_perplexity_and_likeliest_tokens_are_llama_cpps(
    folder: Path, tmp_path: Path, name: str, way: Way, arch: str
) -> None:
    model = model_of(folder, arch)
    check(arch, way(lambda: BACKENDS[name](model), ORACLES[arch]["tokens"], tmp_path))


@pytest.mark.parametrize("arch", ORACLES)
def test_without_rounding_logits_are_llama_cpps(folder: Path, arch: str) -> None:
    oracle, backend = (
        ORACLES[arch],
        NumpyBackend(model_of(folder, arch), 1, cache_types=CacheTypes("f32", "f32")),
    )
    found = run(backend, KVSequence(), oracle["tokens"])
    np.testing.assert_allclose(found[oracle["rows"]][:, ::8], oracle["exact_logits"], rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    "arch", [arch for arch in ORACLES if arch != "qwen"]
)  # which transformers doesn't have
def test_states_are_those_of_transformers(folder: Path, arch: str) -> None:
    """Every layer's, so that a mistake shows where it is."""
    backend = NumpyBackend(model_of(folder, arch), 1, cache_types=CacheTypes("f32", "f32"))
    with np.load(Path(__file__).with_name("oracles") / "architectures.npz") as oracle:
        tokens, rows = oracle["tokens"].tolist(), oracle["rows"]
        expected = {key.removeprefix(f"{arch} "): oracle[key] for key in oracle if key.startswith(f"{arch} ")}
    assert len(expected) == backend.model.config.n_layer + 1
    found = backend.run(list(expected), Batch([Segment(KVSequence(), tokens, len(tokens))]))
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name][rows, ::4], value, rtol=0, atol=2e-4 * value.std(), err_msg=name
        )


@pytest.mark.parametrize("arch", ORACLES)
def test_perplexity_of_quantized_weights(folder: Path, arch: str) -> None:
    found = run(CPUBackend(model_of(folder, arch, "Q4_K_M"), 2), KVSequence(), ORACLES[arch]["tokens"])
    assert perplexity(found, ORACLES[arch]["tokens"]) == pytest.approx(
        ORACLES[arch]["perplexity_q4_k_m"], rel=1e-2
    )


@pytest.mark.parametrize("mix", ["F16", "Q4_K_M"])
@pytest.mark.parametrize("arch", ["qwen2moe", "qwen3moe", "qwen3next", "qwen35", "qwen35moe"])
def test_the_same_bits_whatever_threads_and_steps(folder: Path, tmp_path: Path, arch: str, mix: str) -> None:
    model, tokens = model_of(folder, arch, mix), ORACLES[arch]["tokens"][:150]
    expected = run(CPUBackend(model, 1), KVSequence(), tokens)
    for n_threads, steps in (2, (64, 86)), (3, (1, 1, 7, 70, 1, 70)):
        assert np.array_equal(run(CPUBackend(model, n_threads), KVSequence(), tokens, steps), expected)
    tokens = ORACLES[arch]["tokens"]
    expected = run(CPUBackend(model, 1), KVSequence(), tokens)
    for way in WAYS[1:]:
        assert np.array_equal(way(lambda: CPUBackend(model, 2), tokens, tmp_path), expected)


@pytest.mark.parametrize("name", BACKENDS)
def test_gates_and_ups_of_experts_in_one_tensor(folder: Path, tmp_path: Path, name: str) -> None:
    """As newer files of Qwen3-Next have them, each expert's gate first (llama.cpp answers the same with either)."""
    model, tokens = model_of(folder, "qwen3next", "Q4_K_M"), ORACLES["qwen3next"]["tokens"][:100]
    expected = run(BACKENDS[name](model), KVSequence(), tokens, (99, 1))
    merge_gates_and_ups(model.file.path, tmp_path / "m.gguf")
    merged = load_model(GGUFFile(tmp_path / "m.gguf"))
    assert np.array_equal(run(BACKENDS[name](merged), KVSequence(), tokens, (99, 1)), expected)


def merge_gates_and_ups(source: Path, target: Path) -> None:
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(
                field.name,
                field.contents(),
                field.types[0],
                sub_type=field.types[-1] if len(field.types) > 1 else None,
            )
    tensors = {t.name: t for t in reader.tensors}
    for name, tensor in tensors.items():
        data = tensor.data
        if "ffn_gate_exps" in name:
            data = np.concatenate([data, tensors[name.replace("gate", "up")].data], 1)
        if "ffn_up_exps" not in name:
            writer.add_tensor(name.replace("gate_exps", "gate_up_exps"), data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_oracles_are_of_every_architecture() -> None:
    assert set(ORACLES) == set(known_architectures())
