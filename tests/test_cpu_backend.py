"""The CPU backend: close to the NumPy backend and to llama.cpp's figures, and sound after whatever goes wrong."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_models
from engine_runs import finish
from random_models import random_model

from qwencli.backends.cpu import cache
from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.kv_cache import PAGE, KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.data import __path__ as data_folder
from qwencli.engine.engine import Engine
from qwencli.engine.engine import Sequence as EngineSequence
from qwencli.errors import ModelError
from qwencli.gguf.file import GGUFFile
from qwencli.kernels import formats, isa
from qwencli.measure.perplexity import perplexity
from qwencli.network.graph import KVStore, Weight
from qwencli.network.load import load_model
from qwencli.network.model import Model
from qwencli.sampling import SamplingParams
from qwencli.text.tokenizer import Tokenizer

EMBEDDED = Path(data_folder[0]) / "demo-q4_k_m.gguf"
PROMPT = "Once upon a time there was a little fox who lived at the edge of a wood. " * 20
GREEDY = SamplingParams(temp=0)


@pytest.fixture(scope="module")
def demo() -> Model:
    return load_model(GGUFFile(EMBEDDED))


def logits(backend: Any, tokens: Sequence[int]) -> np.ndarray:
    """At all positions, float64."""
    return backend.run([LOGITS], Batch([Segment(KVSequence(), list(tokens), len(tokens))]))[LOGITS].astype(
        np.float64
    )


def prompt_tokens(model: Model, text: str = PROMPT) -> list[int]:
    tokens = Tokenizer(model.file).encode(text)[:300]
    assert len(tokens) == 300
    return tokens


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(found: np.ndarray, expected: np.ndarray) -> float:
    """The mean Kullback-Leibler divergence from what is expected."""
    p, q = log_softmax(expected), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def check_logits(model: Model, tokens: list[int]) -> None:
    expected, found = logits(NumpyBackend(model), tokens), logits(CPUBackend(model), tokens)
    kinds = {
        node.op.info.type.name
        for node in model.graph.nodes.values()
        if isinstance(node.op, Weight) and len(node.shape) > 1
    }
    if kinds <= {"F32", "F16", "BF16"}:
        rounding = (
            2**-9 if "BF16" in kinds else 1e-3
        )  # activations are rounded to BF16 where weights are, by up to half of 2**-8
        assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < rounding
    assert divergence(found, expected) < 2e-3


def test_logits_of_the_embedded_model(demo: Model) -> None:
    check_logits(demo, prompt_tokens(demo))


@pytest.mark.parametrize("name", ["f16", "bf16", "q8_0", "q4_0", "q6_k", "q5_k_m"])
def test_logits_of_the_demo_files(shared: Path, name: str) -> None:
    model = load_model(GGUFFile(shared / "models" / f"demo-{name}.gguf"))
    check_logits(
        model,
        prompt_tokens(model, (shared / "models" / "wiki-excerpt.txt").read_text(encoding="utf-8")[:4000]),
    )


# llama-perplexity -c 256, from the README next to the files
FIGURES = {
    "f16": (1.2486, 219.4162),
    "bf16": (1.2486, 219.3859),
    "q8_0": (1.2487, 219.4874),
    "q6_k": (1.2493, 219.6987),
    "q5_k_m": (1.2491, 219.2400),
    "q4_k_m": (1.2495, 220.3997),
    "q4_0": (1.2515, 220.1253),
    "iq4_xs": (1.2504, 219.1462),
    "q3_k_m": (1.2536, 219.7483),
    "q2_k": (1.2721, 229.7278),
}


def measured(model: Model, text: Path, limit: int | None = None) -> list[float]:
    """The running estimates."""
    tokens = Tokenizer(model.file).encode(text.read_bytes().decode("utf-8"))
    return [estimate.ppl for estimate in perplexity(CPUBackend(model), tokens, 256, limit=limit)]


@pytest.mark.parametrize("name", list(FIGURES))
def test_perplexity_is_llama_cpps(shared: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The other instruction sets' are still nearer."""
    model = load_model(GGUFFile(shared / "models" / f"demo-{name}.gguf"))
    found = measured(model, shared / "models" / "wiki-excerpt.txt")
    assert found[-1] == pytest.approx(FIGURES[name][1], rel=1e-3)
    if name == "q4_k_m":
        assert measured(model, shared / "models" / "heldout.txt")[-1] == pytest.approx(
            FIGURES[name][0], rel=1e-3
        )
    if name in ("f16", "q4_k_m"):
        for other in isa.available()[1:]:
            monkeypatch.setenv(isa.VARIABLE, other.name)
            assert measured(model, shared / "models" / "wiki-excerpt.txt", 4) == pytest.approx(
                found[:4], rel=5e-4
            )


# Tensors fetched and fed


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_each_tensor_is_the_numpy_backends(tmp_path: Path, arch: str) -> None:
    """Alone and together with the logits. A handle of the cache, which isn't a tensor of numbers, leaves the sequence as it was."""
    c = tiny_models.config(arch, hidden_size=64)
    tiny_models.write_gguf(tmp_path / "m.gguf", c, tiny_models.weights(c, 3))
    model = load_model(GGUFFile(tmp_path / "m.gguf"))
    reference, backend, tokens = (
        NumpyBackend(model),
        CPUBackend(model, 2),
        [5, 70, 0, 33, 2, 2, 9, 41, 71, 8, 16],
    )
    for node in [node for node in model.graph.nodes.values() if node.src]:
        for fetch in [node.name], [node.name, LOGITS]:
            seq = KVSequence()
            if isinstance(node.op, KVStore):
                with pytest.raises(ModelError, match=f"'{node.name}' is a handle of the KV cache"):
                    backend.run(fetch, Batch([Segment(seq, tokens, 3)]))
                assert seq.length == 0
                continue
            found = backend.run(fetch, Batch([Segment(seq, tokens, 3)]))[node.name]
            expected = reference.run([node.name], Batch([Segment(KVSequence(), tokens, 3)]))[node.name]
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=2e-3, err_msg=node.name)
            backend.cache.release(seq)


def test_what_is_fetched_together_has_the_bits_of_what_is_fetched_alone(demo: Model) -> None:
    """A result stays as it is while its successors are computed somewhere else."""
    heads = [f"{which}cur{step}-1" for which in "QK" for step in ("_flat", "_heads", "_normed", "")]
    tokens, backend = prompt_tokens(demo)[:20], CPUBackend(demo, 2)
    together = backend.run([*heads, LOGITS], Batch([Segment(KVSequence(), tokens, 20)]))
    for name, values in together.items():
        alone = backend.run([name], Batch([Segment(KVSequence(), tokens, 20)]))[name]
        assert np.array_equal(alone, values), name


def test_what_is_otherwise_kept_quantized_only_can_be_fetched(demo: Model) -> None:
    """Norms and gates that only products read."""
    names = ["attn_norm-0", "attn_norm-1", "ffn_norm-1", "ffn_swiglu-1", "result_norm"]
    backend = CPUBackend(demo, 2)
    for n in 1, 20:
        tokens = prompt_tokens(demo)[:n]
        logits = backend.run([LOGITS], Batch([Segment(KVSequence(), tokens, n)]))[LOGITS]
        found = backend.run([*names, LOGITS], Batch([Segment(KVSequence(), tokens, n)]))
        assert np.array_equal(found[LOGITS], logits)
        expected = NumpyBackend(demo).run(names[:1], Batch([Segment(KVSequence(), tokens, n)]))[names[0]]
        np.testing.assert_allclose(found[names[0]], expected, rtol=1e-5)
        # each is there for every token
        assert all(np.isfinite(found[name]).all() and found[name].any(axis=1).all() for name in names)


def test_tensors_can_be_fed(demo: Model) -> None:
    """The head alone from given states, and the layers after a given one."""
    backend, tokens = CPUBackend(demo, 2), prompt_tokens(demo)[:20]

    def batch() -> Batch:
        return Batch([Segment(KVSequence(), tokens, 20)])

    values = backend.run(["l_out-2", "result_norm", LOGITS], batch())
    for n in 1, 8, 9, 20:
        assert np.array_equal(
            backend.run([LOGITS], feed={"result_norm": values["result_norm"][:n]})[LOGITS], values[LOGITS][:n]
        )
    again = backend.run([LOGITS], batch(), feed={"l_out-2": values["l_out-2"]})
    assert np.array_equal(again[LOGITS], values[LOGITS])


# What cannot be run


def test_heads_that_the_kernels_cannot_take(tmp_path: Path) -> None:
    c = tiny_models.config(head_dim=24)
    tiny_models.write_gguf(tmp_path / "m.gguf", c, tiny_models.weights(c, 0))
    with pytest.raises(ModelError, match=r"m\.gguf: heads of 24 values, .* multiple of 16"):
        logits(CPUBackend(load_model(GGUFFile(tmp_path / "m.gguf")), 1), [1])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blk.0.attn_q.weight", gguf.GGMLQuantizationType.Q5_0),
        ("token_embd.weight", gguf.GGMLQuantizationType.Q4_1),
        ("output_norm.weight", gguf.GGMLQuantizationType.F16),
    ],
)
def test_tensors_of_a_type_without_kernels_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: Any
) -> None:
    c = tiny_models.config()
    add_tensor = gguf.GGUFWriter.add_tensor

    def add(self: gguf.GGUFWriter, tensor_name: str, tensor: np.ndarray, **options: Any) -> None:
        if tensor_name == name:
            add_tensor(self, tensor_name, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            add_tensor(self, tensor_name, tensor)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", add)
    monkeypatch.delitem(formats.FORMATS, kind.name)
    tiny_models.write_gguf(tmp_path / "m.gguf", c, tiny_models.weights(c, 0))
    model = load_model(GGUFFile(tmp_path / "m.gguf"))
    with pytest.raises(ModelError, match=rf"m\.gguf: tensor '{name}' has the type {kind.name}, expected"):
        logits(CPUBackend(model, 1), [1, 2, 3])
    assert np.isfinite(logits(NumpyBackend(model), [1, 2, 3])).all()


# What goes wrong on the way


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("n_threads", [1, 2, 7])
def test_ctrl_c_in_a_step(demo: Model, n_threads: int) -> None:
    """It ends the step soon; the sequence is as it was, and goes on as if nothing had happened."""
    tokens = (prompt_tokens(demo) * 9)[:2500]
    backend = CPUBackend(demo, n_threads)
    engine = Engine(backend, 4096, n_batch=2500)

    def step(seconds: float) -> None:
        """Interrupted this many seconds after machine code is entered, which has far more to do than that."""
        enter, timers = backend._team._step, [seconds]
        assert enter

        def entered(*args: int) -> None:
            if timers:
                signal.setitimer(signal.ITIMER_REAL, timers.pop())
            enter(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend._team, "_step", entered)
            engine.step()

    def answer(interrupts: Sequence[float]) -> list[int]:
        seq = EngineSequence(list(tokens), GREEDY, 3)
        engine.submit(seq)
        for seconds in interrupts:
            with pytest.raises(KeyboardInterrupt):
                step(seconds)
            assert seq.kv.length == 0
            assert seq.tokens == tokens
        while seq.stop_reason is None:
            engine.step()
        return seq.generated

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    expected = answer([])
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        assert answer([1e-5, 1e-3, 1e-2]) == expected
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_sequence_without_memory_ends_and_the_others_go_on(
    demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "ARENA_BYTES", 0)  # each page by itself
    backend = CPUBackend(demo, 2)
    engine, tokens = Engine(backend, 1024), prompt_tokens(demo)
    alone = EngineSequence(tokens[:50], GREEDY, 30)
    finish(engine, alone)
    take, pages = cache.aligned_zeros, []

    def take_a_few(n_bytes: int, *args: int) -> np.ndarray:
        if n_bytes == 4 * PAGE * demo.config.n_head_kv * demo.config.head_dim * demo.config.n_layer:
            if len(pages) == 2:
                raise MemoryError
            pages.append(n_bytes)
        return take(n_bytes, *args)

    monkeypatch.setattr(cache, "aligned_zeros", take_a_few)
    small, large = EngineSequence(tokens[:50], GREEDY, 30), EngineSequence(list(tokens), GREEDY, 5)
    finish(engine, small, large)
    assert (small.stop_reason, small.generated) == ("length", alone.generated)
    assert (large.stop_reason, large.generated) == ("error", [])
    assert "not enough memory for 64 more positions of the KV cache" in str(large.error)
    again = EngineSequence(tokens[:50], GREEDY, 30)
    finish(engine, again)
    assert again.generated == alone.generated


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("token_embd.weight", "inp_embd"),
        ("blk.1.ffn_up.weight", "l_out-1"),
        ("blk.0.attn_norm.weight", "l_out-0"),
        ("output.weight", "the output layer"),
    ],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_layer_that_is_not_finite_is_named(
    tmp_path: Path, name: str, layer: str, bad: float
) -> None:
    c = tiny_models.config()
    weights = tiny_models.weights(c, 1)
    weights[name].reshape(-1)[3::7] = bad
    tiny_models.write_gguf(tmp_path / "m.gguf", c, weights)
    engine, seq = (
        Engine(CPUBackend(load_model(GGUFFile(tmp_path / "m.gguf")), 2), 64),
        EngineSequence([3, 4, 5], GREEDY, 5),
    )
    finish(engine, seq)
    assert seq.stop_reason == "error"
    assert (
        str(seq.error) == f"the logits of position 3 are not finite, first in {layer}: is the model damaged?"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("mix", ["Q4_K_M", "Q6_K", "Q8_0", "Q4_0"])
def test_quantized_activations_do_not_hide_what_is_not_finite(tmp_path: Path, mix: str, bad: float) -> None:
    """One value of a vector, which the next product quantizes."""
    model = random_model(tmp_path, mix)
    backend = CPUBackend(model, 1)
    states = np.random.default_rng(0).standard_normal((3, model.config.n_embd)).astype(np.float32)
    for place in 0, 100, model.config.n_embd - 1:
        damaged = states.copy()
        damaged[1, place] = bad
        found = backend.run([LOGITS], feed={"result_norm": damaged})[LOGITS]
        assert np.isfinite(found[[0, 2]]).all()
        assert not np.isfinite(found[1]).any()
