"""Every tensor can be fetched, alone or with others, and what lies between nodes can be fed: neither changes a bit of what follows."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from random_models import write_random_model
from shapes import PRESETS, Shape

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import LOGITS, Batch, Part, Segment
from qwencli.errors import InputError, ModelError
from qwencli.gguf.file import GGUFFile
from qwencli.kernels import isa
from qwencli.network.graph import (
    N_OUTPUTS,
    N_TOKENS,
    Attention,
    DeltaNet,
    ExpertLinear,
    Gate,
    Input,
    KVStore,
    Linear,
    RMSNorm,
    Route,
    SwiGLU,
    Weight,
)
from qwencli.network.load import load_model
from qwencli.network.model import Model

ARCHITECTURES = [name.removeprefix("tiny-") for name in PRESETS if name.startswith("tiny-")]
STEPS = {"one token": [(3, 1, 1)], "several tokens": [(0, 9, 3)], "two sequences": [(3, 4, 2), (0, 3, 3)]}
"""For each sequence of a step: the tokens before the step, those of the step, and how many of these have outputs."""
ISAS = [each.name for each in isa.available()]
Backend = CPUBackend | NumpyBackend


def shape_of(architecture: str) -> Shape:
    """The preset's, with one layer of attention."""
    shape = PRESETS[f"tiny-{architecture}"]
    return replace(shape, n_layer=min(shape.n_layer, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def model_of(folder: Path, architecture: str, mix: str) -> Model:
    path = folder / f"{architecture}-{mix}.gguf"
    if not path.exists():
        write_random_model(path, shape_of(architecture), mix)
    return load_model(GGUFFile(path))


@cache
def tokens_of(n_vocab: int) -> list[int]:
    return np.random.RandomState(5).randint(0, n_vocab, 64).tolist()


def run(
    backend: Backend, step: str, fetch: Iterable[str], feed: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A step of new sequences, always the same."""
    tokens, pieces = iter(tokens_of(backend.model.config.n_vocab)), []
    for n_before, n, n_outputs in STEPS[step]:
        seq = KVSequence()
        if n_before:
            backend.step(Batch([Segment(seq, list(itertools.islice(tokens, n_before)), 0)]))
        pieces.append(Segment(seq, list(itertools.islice(tokens, n)), n_outputs))
    values = backend.run(list(fetch), Batch(pieces), feed)
    for piece in pieces:
        backend.cache.release(piece.seq)
    return values


def parts(value: Any) -> tuple[np.ndarray, ...]:
    """A route's value is two arrays, any other one."""
    return value if isinstance(value, tuple) else (value,)


def same(found: Any, expected: Any) -> bool:
    return all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        for x, y in zip(parts(found), parts(expected), strict=True)
    )


def between(model: Model) -> list[str]:
    """The tensors that nodes compute, without those of layers that are as the first one."""
    nodes = model.graph.nodes.values()
    alike = [f"-{i}" for i in range(1, model.config.n_layer - 1)]
    return [
        node.name
        for node in nodes
        if not isinstance(node.op, (Input, Weight, KVStore)) and not node.name.endswith(tuple(alike))
    ]


def cuts(model: Model) -> Iterator[tuple[str, list[str]]]:
    """After each of these tensors but the last: its name, and what the later nodes read of the earlier ones."""
    names, nodes = between(model), model.graph.subgraph([LOGITS])
    for n, node in enumerate(nodes[:-1], 1):
        if node.name in names:
            computed = {x.name for x in nodes[:n] if not isinstance(x.op, (Input, Weight))}
            read = dict.fromkeys(source.name for x in nodes[n:] for source in x.src)
            yield node.name, [name for name in read if name in computed]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_value_is_numpys(folder: Path, architecture: str) -> None:
    """With half floats, where rounding chooses no other experts. Weights and inputs are exactly the same."""
    model = model_of(folder, architecture, "F16")
    cpu, reference = CPUBackend(model, 2), NumpyBackend(model)
    names = [name for name, node in model.graph.nodes.items() if not isinstance(node.op, KVStore)]
    for step in STEPS:
        found, expected = run(cpu, step, names), run(reference, step, names)
        for name in names:
            if isinstance(model.graph.nodes[name].op, (Input, Weight)):
                assert same(found[name], expected[name]), name
            for x, y in zip(parts(found[name]), parts(expected[name]), strict=True):
                assert (x.dtype, x.shape) == (y.dtype, y.shape), name
                assert np.abs(x - y).max() <= 2e-3 * np.abs(y).max(), f"{name}, {step}"


@pytest.mark.parametrize("isa_name", ISAS)
def test_what_is_fetched_changes_no_bit(folder: Path, monkeypatch: pytest.MonkeyPatch, isa_name: str) -> None:
    """Everything at once, and each tensor with the logits."""
    monkeypatch.setenv(isa.VARIABLE, isa_name)
    for architecture in ARCHITECTURES:
        model = model_of(folder, architecture, "Q4_K_M")
        backend, names = CPUBackend(model, 2), between(model)
        for step in STEPS:
            logits, values = run(backend, step, [LOGITS])[LOGITS], run(backend, step, names)
            assert same(values[LOGITS], logits), f"{architecture}, {step}"
            for name in names if step != "several tokens" else ():
                found = run(backend, step, [name, LOGITS])
                assert same(found[LOGITS], logits), f"{architecture}, {step}, {name}"
                assert same(found[name], values[name]), f"{architecture}, {step}, {name}"


@pytest.mark.parametrize(
    ("isa_name", "mix", "architectures"),
    [*((name, "Q4_K_M", ARCHITECTURES) for name in ISAS), (ISAS[0], "F16", ["qwen2moe", "qwen3next"])],
)
def test_a_graph_can_be_cut_anywhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch, isa_name: str, mix: str, architectures: Sequence[str]
) -> None:
    """After each node: what the rest reads is fetched in one step and fed in another, where it can be fetched again."""
    monkeypatch.setenv(isa.VARIABLE, isa_name)
    for architecture in architectures:
        model = model_of(folder, architecture, mix)
        backend = CPUBackend(model, 2)
        for step in "one token", "two sequences":
            logits = run(backend, step, [LOGITS])[LOGITS]
            for node, cut in cuts(model):
                values = run(backend, step, cut)
                found = run(backend, step, [*cut, LOGITS], values)
                assert same(found[LOGITS], logits), f"{architecture}, {step}, after {node}: {cut}"
                assert all(same(found[name], values[name]) for name in cut)


@pytest.mark.parametrize("backend_type", [CPUBackend, NumpyBackend])
@pytest.mark.parametrize("architecture", ["qwen", "qwen2moe"])
def test_weights_are_the_files(folder: Path, architecture: str, backend_type: Callable[..., Backend]) -> None:
    """Whole, some of their rows (of each expert, if there are several), and a vector as a row."""
    model = model_of(folder, architecture, "F16")
    if architecture == "qwen2moe":
        model.graph.weight(model.file.tensors["blk.1.ffn_gate_exps.weight"], rows=range(100, 130))
    weights = [node for node in model.graph.nodes.values() if isinstance(node.op, Weight)]
    found = backend_type(model, 1).run([node.name for node in weights])
    n_parts = 0
    for node in weights:
        assert isinstance(node.op, Weight)
        info, first = node.op.info, node.op.first
        expected = model.file.data(info).view({"F16": np.float16, "F32": np.float32}[info.type.name])
        if len(node.shape) > len(info.shape):
            expected = expected[None]
        elif node.shape != info.shape:
            n_parts += 1
            axis = max(len(info.shape) - 2, 0)
            expected = expected.take(range(first, first + int(node.shape[axis])), axis)
        assert same(found[node.name], expected.astype(np.float32)), node.name
        assert found[node.name].shape == node.shape
    assert n_parts > 0


def test_a_weight_comes_without_its_scale(folder: Path) -> None:
    """The scale of a scaled type is a tensor of its own, by which products are multiplied."""
    model = model_of(folder, "qwen3", "NVFP4")
    name = next(
        node.name
        for node in model.graph.nodes.values()
        if isinstance(node.op, Weight) and node.op.scale and node.op.info.type.name == "NVFP4"
    )
    blocks = model.file.data(model.file.tensors[name])
    expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType.NVFP4)
    for backend in CPUBackend(model, 1), NumpyBackend(model):
        assert same(backend.run([name])[name], expected)


def test_places_stay_as_long_as_rows_lie_there(folder: Path) -> None:
    """Also after the last node that reads the route itself."""
    model = model_of(folder, "qwen3moe", "F16")
    name = "ffn_moe_swiglu-0"
    program = CPUBackend(model, 1)._programs.get(Part((name,), ()), {N_TOKENS: 8, N_OUTPUTS: 8})
    free = {id(buffer) for buffers in program._memory._free.values() for buffer in buffers}
    assert program.values.keys() == {name}
    assert id(program.values[name].at_places) not in free


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3next"])
def test_numpy_takes_what_the_kernels_give(folder: Path, architecture: str) -> None:
    model = model_of(folder, architecture, "F16")
    cpu, reference = CPUBackend(model, 2), NumpyBackend(model)
    expected = run(reference, "two sequences", [LOGITS])[LOGITS]
    for node, cut in cuts(model):
        values = run(cpu, "two sequences", cut)
        found = run(reference, "two sequences", [LOGITS], values)[LOGITS]
        assert np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max(), f"after {node}: {cut}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("n", [1, 8])
def test_a_program_has_no_more_rows_than_its_results_need(folder: Path, architecture: str, n: int) -> None:
    """How many rows of each kind, from what the ops are and what is computed together. F16, so that no row quantizes."""
    model = model_of(folder, architecture, "F16")
    nodes = model.graph.subgraph([LOGITS])
    ops = Counter(type(node.op) for node in nodes)
    rows = CPUBackend(model, 1).kernels_for([LOGITS], [], n, n, "choose")
    found = Counter(spec.split(":")[0] if spec.startswith("matmul") else spec for spec in rows)
    heads_normed = sum(isinstance(node.op, RMSNorm) and len(node.shape) == 3 for node in nodes)
    of_tokens = sum(isinstance(node.op, Gate) and node.src[1].shape != node.src[0].shape for node in nodes)
    expected = {
        "ops:embed:f16": 1,
        "ops:gather": 2,  # the rows of the last layer that have outputs
        "ops:add": 1 + of_tokens,  # of these rows, and of experts and a shared network
        "ops:prepare:norm:f32": ops[RMSNorm] - heads_normed,
        "ops:prepare:swiglu:f32": ops[SwiGLU] - ops[DeltaNet],
        "ops:prepare:gated_norm:f32": ops[DeltaNet],
        "ops:prepare:gate:f32": ops[Gate] - of_tokens,
        "ops:prepare:share:f32": of_tokens,
        "heads:rotate": ops[Attention],
        "heads:store:f16:f16": ops[Attention],
        f"attention:attend:{model.config.head_dim}:f16:f16": ops[Attention],
        f"attention:merge:{model.config.head_dim}:f32": ops[Attention],
        "delta:conv:64:4": ops[DeltaNet],
        "delta:gates": ops[DeltaNet],
        "delta:scan:64": ops[DeltaNet],
        "experts:route": ops[Route],
        "experts:combine": ops[Route],
        "sampling:choose": 1,
    }
    if n == 1:
        expected |= {"experts:one": ops[ExpertLinear], "matmul": ops[Linear] + ops[ExpertLinear]}
    else:
        # two products read one copy of their activations; each expert's product has a kernel for few tokens and one for many
        expected |= {"experts:group": ops[Route], "experts:spread": ops[Route]}
        expected |= {"experts:many": ops[ExpertLinear], "matmul": ops[Linear] + 2 * ops[ExpertLinear]}
    assert {spec: k for spec, k in found.items() if not spec.startswith("runtime")} == {
        spec: k for spec, k in expected.items() if k
    }


# What can be neither fetched nor fed


@pytest.fixture(params=[CPUBackend, NumpyBackend])
def backend(request: pytest.FixtureRequest, folder: Path) -> Backend:
    made: Backend = request.param(model_of(folder, "qwen2moe", "F16"), 1)
    return made


def test_a_handle_of_the_cache(backend: Backend) -> None:
    for fetch, feed in ([LOGITS, "kv-1"], {}), ([LOGITS], {"kv-1": np.zeros((9, 4, 64))}):
        with pytest.raises(ModelError, match="'kv-1' is a handle of the KV cache"):
            run(backend, "several tokens", fetch, feed)


@pytest.mark.parametrize(
    ("name", "what"), [("output.weight", "a weight"), ("inp_tokens", "an input"), ("inp_pos", "an input")]
)
def test_what_is_given_already_cannot_be_fed(backend: Backend, name: str, what: str) -> None:
    with pytest.raises(ModelError, match=f"'{name}' is {what}: it can't be fed"):
        run(backend, "several tokens", [LOGITS], {name: np.zeros(9)})


def test_names_that_the_graph_does_not_have(backend: Backend) -> None:
    for fetch, feed in ([LOGITS, "nothing"], {}), ([LOGITS], {"nothing": np.zeros((9, 4))}):
        with pytest.raises(ModelError, match="no tensor is named 'nothing'"):
            run(backend, "several tokens", fetch, feed)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("ffn_inp-0", (9, 255), r"\[9, 255\], expected \[n_tokens, 256\]"),
        ("ffn_inp-0", (256,), r"\[256\], expected \[n_tokens, 256\]"),
        ("Qcur-0", (9, 256), r"\[9, 256\], expected \[n_tokens, 4, 64\]"),
        ("ffn_moe_gate-0", (9, 768), r"\[9, 768\], expected \[n_tokens, 3, 256\]"),
    ],
)
def test_values_of_another_shape(backend: Backend, name: str, shape: tuple[int, ...], expected: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is fed with the shape {expected}"):
        run(backend, "several tokens", [LOGITS], {name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("experts", "weights", "message"),
    [
        (np.full((9, 3), 8), np.ones((9, 3)), "an expert that isn't one of 8"),
        (np.full((9, 3), -1), np.ones((9, 3)), "an expert that isn't one of 8"),
        (np.zeros((9, 2)), np.ones((9, 3)), r"the shape \[9, 2\], expected \[n_tokens, 3\]"),
        (np.zeros((9, 3)), np.ones((8, 3)), "9 rows of experts and 8 of their weights"),
        (np.zeros((8, 3)), np.ones((8, 3)), "8 rows, expected 9"),
    ],
)
def test_routes_that_lead_nowhere(
    backend: Backend, experts: np.ndarray, weights: np.ndarray, message: str
) -> None:
    """Kernels take experts as places in memory."""
    with pytest.raises(InputError, match=f"'ffn_moe_topk-0' is fed with {message}"):
        run(backend, "several tokens", [LOGITS], {"ffn_moe_topk-0": (experts, weights)})
    with pytest.raises(InputError, match="expected a pair: experts and their weights"):
        run(backend, "several tokens", [LOGITS], {"ffn_moe_topk-0": experts})


def test_layers_need_a_batch(backend: Backend) -> None:
    """Their kernels read positions and the cache's pages."""
    rows = np.zeros((9, 256), np.float32)
    for fetch, feed in ([LOGITS], {"inp_embd": rows}), (["l_out-0"], {}), (["inp_pos"], {}):
        with pytest.raises(InputError, match="needs a batch, and there is none"):
            backend.run(fetch, feed=feed)
