"""Types of the KV cache, through backends, sessions and commands: the right logits, and the same bits whatever else happens."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from command_line import Call
from random_models import random_model
from test_cpu_backend import divergence, logits, prompt_tokens
from test_same_bits import assert_same, states, tokens_of

from qwencli.backends.cpu.backend import CPUBackend, kernels_of
from qwencli.backends.kv_cache import PAGE, TYPES, CacheTypes, KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.numpy.memory import rounded
from qwencli.backends.protocol import Batch, Segment
from qwencli.engine.session import load, save
from qwencli.errors import InputError
from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.kernels import isa, layout
from qwencli.llm import LLM
from qwencli.measure.perplexity import perplexity
from qwencli.network.load import load_model
from qwencli.network.model import Model
from qwencli.text.tokenizer import Tokenizer

PAIRS = [CacheTypes("q8_0", "q8_0"), CacheTypes("q4_0", "q4_0"), CacheTypes("bf16", "f32")]


@pytest.fixture(scope="module")
def demo() -> Model:
    return load_model(GGUFFile(EMBEDDED))


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """The kernels of each pair of types at once: one by one each would wait for a process of its own."""
    specs = [f"{kernel}:{k}:{v}" for k, v in PAIRS for kernel in ("heads:store", "attention:attend:64")]
    for each in isa.available():
        kernels_of(each.name).load(specs)


def test_kernels_and_cache_know_the_same_types() -> None:
    assert {name: (kind.block_size, kind.block_bytes) for name, kind in TYPES.items()} == layout.KV_TYPES


@pytest.mark.parametrize("types", PAIRS, ids="-".join)
def test_logits_are_those_of_numpy_with_the_same_types(demo: Model, types: CacheTypes) -> None:
    tokens = prompt_tokens(demo)
    plain, expected = (
        logits(NumpyBackend(demo, cache_types=chosen), tokens) for chosen in (CacheTypes(), types)
    )
    found = logits(CPUBackend(demo, cache_types=types), tokens)
    assert divergence(found, expected) < (
        4e-3 if types.k == "q4_0" else 2e-3
    )  # what differs a little is rounded to steps of an eighth
    assert (divergence(expected, plain) > 8e-3) == (types.k == "q4_0")  # the others lose next to nothing


def test_numpy_rounds_as_the_types_do() -> None:
    """By half a step at most: of a block's largest value / 127, whose scale is a half float, or / 8, where the last one is missing."""
    x = np.random.default_rng(0).standard_normal((50, 3, 64)).astype(np.float32)
    largest = np.abs(x).reshape(50, 3, 2, 32).max(-1).repeat(32, -1).reshape(x.shape)
    assert np.array_equal(rounded(x, "f32"), x)
    for kind, step in (
        ("f16", np.abs(x) * 2**-10),
        ("bf16", np.abs(x) * 2**-7),
        ("q8_0", largest / 127),
        ("q4_0", largest / 8),
    ):
        error = np.abs(rounded(x, kind) - x)
        assert (error <= step * {"q4_0": 1.01, "q8_0": 0.5 + 127 * 2**-11}.get(kind, 0.5)).all()
        assert error.max() > 0


@pytest.mark.parametrize("types", PAIRS, ids="-".join)
def test_bits_depend_neither_on_threads_nor_chunks_nor_on_what_is_cached(
    tmp_path: Path, types: CacheTypes
) -> None:
    """Nor on the instruction set, where weights are quantized."""
    model = random_model(tmp_path, "Q4_K_M", head_dim=64)
    tokens = tokens_of(model, 0, 280)
    first = CPUBackend(model, 1, cache_types=types)
    expected, seq = states(first, tokens, 512)
    again, _ = states(first, tokens, 64, seq=first.cache.share(seq, 200))
    assert_same(again, expected, first=192)
    for n_threads, chunk, crowd in (2, 64, (1, 9, 1, 3)), (3, 7, (1, 1, 2, 1)), (2, 1, ()):
        assert_same(
            states(CPUBackend(model, n_threads, cache_types=types), tokens, chunk, crowd)[0], expected
        )
    for other in isa.available()[1:]:
        assert_same(states(CPUBackend(model, 2, isa=other.name, cache_types=types), tokens, 100)[0], expected)


def test_perplexity_is_llama_cpps_with_the_same_types(shared: Path) -> None:
    """Nearer than a thousandth; q8_0's is f16's, too."""
    oracle = json.loads(Path(__file__).with_name("oracles").joinpath("cache_types.json").read_text())
    model, n_chunks = load_model(GGUFFile(shared / "models" / oracle["model"])), 24
    tokens = Tokenizer(model.file).encode((shared / "models" / oracle["text"]).read_bytes().decode("utf-8"))
    for kind in "q8_0", "q4_0":
        backend = CPUBackend(model, cache_types=CacheTypes(kind, kind))
        found = [estimate.ppl for estimate in perplexity(backend, tokens, 256, limit=n_chunks)]
        assert found[-1] == pytest.approx(oracle["running"][kind][n_chunks - 1], rel=1e-3)
        if kind == "q8_0":
            assert found[-1] == pytest.approx(oracle["running"]["f16"][n_chunks - 1], rel=1e-3)


# Sessions


def test_a_session_has_its_types(tmp_path: Path) -> None:
    """And goes on with the same bits; pages of any size can be summed up."""
    model = random_model(tmp_path, "Q8_0", head_dim=32, n_head=3, n_head_kv=1, n_layer=1)
    tokens, kv, types = tokens_of(model, 1, PAGE + 9), KVSequence(), CacheTypes("q8_0", "q4_0")
    backend = CPUBackend(model, 2, cache_types=types)
    backend.run(["result_norm"], Batch([Segment(kv, tokens, 1)]))
    save(tmp_path / "s", backend, tokens, kv)
    second = CPUBackend(model, 1, cache_types=types)
    session = load(tmp_path / "s", second, 1000)
    expected, found = (
        each.run(["result_output"], Batch([Segment(seq, [1, 2], 2)]))["result_output"]
        for each, seq in ((backend, kv), (second, session.kv))
    )
    assert np.array_equal(found, expected)
    for other in CacheTypes(), CacheTypes("q4_0", "q8_0"), CacheTypes("q8_0"):
        with pytest.raises(
            InputError, match=r"of other cache types \(its KV cache is '.*keys q8_0, values q4_0"
        ):
            load(tmp_path / "s", CPUBackend(model, 1, cache_types=other), 1000)


def test_sessions_of_halves_are_what_they_were(demo: Model) -> None:
    for types in CacheTypes(), CacheTypes("f16", "f16"):
        assert (
            CPUBackend(demo, 1, cache_types=types).kv_layout == "<f2 [6][4] of keys [64][64], values [64][64]"
        )


# What is chosen


def test_types_that_there_are_not() -> None:
    with pytest.raises(
        InputError, match="the KV cache has no type 'q5_0', expected one of f32, f16, q4_0, q8_0, bf16"
    ):
        LLM(EMBEDDED, cache_type_v="q5_0")
    llm = LLM(EMBEDDED, cache_type_k="q8_0")
    assert llm.engine.backend.cache_types == ("q8_0", "f16")


def test_heads_that_blocks_do_not_fit_into(tmp_path: Path, call: Call) -> None:
    config = tiny_models.config(head_dim=16)
    tiny_models.write_gguf(tmp_path / "m.gguf", config, tiny_models.weights(config, 0))
    model = load_model(GGUFFile(tmp_path / "m.gguf"))
    message = "heads of 16 values can't be kept in the KV cache as q4_0, which has blocks of 32: choose f16, bf16 or f32"
    for make in CPUBackend, NumpyBackend:
        with pytest.raises(InputError, match=message):
            make(model, cache_types=CacheTypes(v="q4_0"))
    code, out, err = call("bench", "-m", tmp_path / "m.gguf", "-ctv", "q4_0", "-p", 4, "-n", 0)
    assert (code, out, err.splitlines()[1:]) == (1, "", [f"qwencli: error: {message}"])


def test_commands_take_the_types(call: Call, tmp_path: Path) -> None:
    said = [
        call(
            "run",
            "-m",
            EMBEDDED,
            "-q",
            "-p",
            "Once upon a time",
            "--raw",
            "-n",
            8,
            "--temp",
            0,
            "-ctk",
            kind,
            "--cache-type-v",
            kind,
        )
        for kind in ("f32", "q8_0")
    ]
    assert said[0] == said[1]
    assert said[0].code == 0
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a king who had a cat. " * 8)
    found = [
        json.loads(call("perplexity", "-m", EMBEDDED, "-f", text, "-c", 32, "--json", *options).out)["ppl"]
        for options in ([], ["-ctk", "f16", "-ctv", "f16"], ["-ctk", "q4_0", "-ctv", "q4_0"])
    ]
    assert found[0] == found[1] != found[2]
    benched = json.loads(
        call(
            "bench",
            "-m",
            EMBEDDED,
            "-p",
            4,
            "-n",
            0,
            "-r",
            1,
            "-ctk",
            "f16,q8_0",
            "-ctv",
            "q4_0",
            "-o",
            "json",
        ).out
    )
    assert [(facts["type_k"], facts["type_v"]) for facts in benched] == [("f16", "q4_0"), ("q8_0", "q4_0")]
    sizes = [
        json.loads(call("info", EMBEDDED, "--json", *options).out)["kv_bytes"]["4096"]
        for options in ([], ["-ctk", "q8_0", "-ctv", "q4_0"])
    ]
    assert sizes == [4096 * 6 * 4 * 64 * 2 * 2, 4096 * 6 * 4 * 2 * (34 + 18)]
    assert "'q5_0' is not one of" in call("run", "-p", "x", "-ctk", "q5_0").err
    assert "'q5_0' is not one of" in call("bench", "-ctk", "f16,q5_0").err
    assert "-ctk" in call("chat", "--url", "http://localhost:1", "-ctk", "q8_0").err
