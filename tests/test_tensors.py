"""Graphs built in Python: ops and tensor types on every device and instruction set, against float64; and all that is refused."""

from __future__ import annotations

import subprocess
import sys
from bisect import insort
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
from blocks import columns, random_rows
from guarded import guarded
from tensor_cases import CASES, Build, floats

from qwencli import Graph, QwenError
from qwencli.backends.cpu import memory
from qwencli.backends.cpu.backend import CPUBackend, kernels_of
from qwencli.backends.numpy.dequantize import to_float32
from qwencli.errors import InputError, ModelError
from qwencli.gguf import memory as constants
from qwencli.gguf.types import WEIGHT_TYPES
from qwencli.kernels import isa
from qwencli.kernels.formats import FORMATS
from qwencli.network.graph import Input, Tensor
from qwencli.tensors import graph as graphs
from qwencli.tensors import operands
from qwencli.tensors.devices import EXACT, backend_for

ISAS = [each.name for each in isa.available()]
ON_EVERY_ISA = ["F32", "F16", "BF16", "Q8_0", "NVFP4", "Q4_K", "IQ1_M"]
"""Types that differ in how they are multiplied; the others are multiplied on the best instruction set only, to compile less."""
ROWS = [1, 8]
"""As many as a program for them has room for: what is written beyond a buffer meets a protected page."""


def product_of(name: str) -> Build:
    """A product with random blocks of a type, as a case; what is expected is that of `dequantized`."""

    def build(g: Graph, rng: np.random.Generator, n: int) -> Any:
        blocks = random_rows(name, 35, columns(name), rng)
        scale = 0.375 if name == "NVFP4" else None
        g.mul_mat(g.constant(blocks, "w", name.lower(), scale=scale), g.input("x", columns(name)))
        x = floats(rng, n, columns(name))
        return {"x": x}, blocks

    return build


def dequantized(name: str, blocks: np.ndarray) -> np.ndarray:
    """As the package gguf has it, except for types that only newer versions know."""
    kind = WEIGHT_TYPES[name]
    if name in gguf.GGMLQuantizationType.__members__ and name not in ("Q1_0", "Q2_0"):
        weights = gguf.dequantize(blocks, gguf.GGMLQuantizationType(kind.id))
    else:
        weights = to_float32(blocks, kind)
    return weights.astype(np.float64) * (0.375 if name == "NVFP4" else 1)


def specs_of(build: Build, isa_name: str) -> set[str]:
    """The kernels that a case takes."""
    found: set[str] = set()
    for n in ROWS:
        g = Graph()
        build(g, np.random.default_rng(0), n)
        backend = CPUBackend(g.model(), 1, isa=isa_name, cache_types=EXACT)
        fed = [name for name, node in g.nodes.items() if isinstance(node.op, Input) and len(node.shape) == 2]
        found.update(backend.kernels_for([[*g.nodes][-1]], fed, n, n, None))
    return found


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """All kernels of this file at once: one by one each would wait for a process of its own."""
    for isa_name in ISAS:
        types = FORMATS if isa_name == ISAS[0] else ON_EVERY_ISA
        builds = [*CASES, *map(product_of, types)]
        kernels_of(isa_name).load(sorted(set().union(*(specs_of(build, isa_name) for build in builds))))


@pytest.fixture(params=["before", "after"])
def guards(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants and all values between them lie against protected pages, on one side, without any room to spare."""

    def take(self: memory.Buffers, n_bytes: int) -> np.ndarray:
        buffer = guarded(np.full(max(n_bytes, 1), 0xFF, np.uint8), request.param)  # NaN
        self._all[memory.address_of(buffer)] = buffer
        insort(self._addresses, memory.address_of(buffer))
        return buffer

    monkeypatch.setattr(memory.Buffers, "take", take)
    monkeypatch.setattr(constants, "aligned", lambda n: guarded(np.zeros(n, np.uint8), request.param))


def check(build: Build, n: int, device: str) -> None:
    g = Graph(n_threads=2)
    inputs, expected = build(g, np.random.default_rng(n), n)
    for _ in range(2):  # planned, and from the plan
        (found,) = g.compute(inputs, device).values()
        assert found.dtype == np.float32
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("build", CASES)
def test_ops_of_numpy(build: Build) -> None:
    for n in 1, 2, 70:
        check(build, n, "numpy")


@pytest.mark.usefixtures("guards")
@pytest.mark.parametrize("build", CASES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_ops_next_to_protected_pages(isa_name: str, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(isa.VARIABLE, isa_name)
    for n in ROWS:
        check(build, n, "cpu")


@pytest.mark.parametrize("build", CASES)
def test_ops_of_many_rows(build: Build) -> None:
    """More than a page of keys and values, and than a split of attention."""
    for n in 2, 70, 300:
        check(build, n, "cpu")


# -- tensor types ---------------------------------------------------------------------------------------------------------


def rounding(name: str, x: np.ndarray) -> np.ndarray:
    """How far activations may be from x once they are rounded for a type of weights: to BF16, or to 8 bits in blocks with a scale."""
    magnitude = np.abs(x).astype(np.float64)
    family = FORMATS[name].family
    if family == "float":
        return np.zeros_like(magnitude)
    if family == "bf16":
        return magnitude * 2**-8
    block = 256 if family == "q8k" else 32
    largest = magnitude.reshape(len(x), -1, block).max(-1).repeat(block, -1)
    return largest / 127 * 0.51 + magnitude * 2**-11  # scales are half floats


def check_type(name: str, n: int, device: str) -> None:
    g = Graph(n_threads=2)
    inputs, blocks = product_of(name)(g, np.random.default_rng(n), n)
    (found,) = g.compute(inputs, device).values()
    weights, x = dequantized(name, blocks), inputs["x"]
    exact = np.zeros_like(x, np.float64) if device == "numpy" else rounding(name, x)
    steps = np.abs(weights).max(
        -1, keepdims=True
    )  # of a K-quant with a minimum: larger than many of its weights
    bound = exact @ np.abs(weights).T + 2e-6 * (np.abs(x) @ np.broadcast_to(steps, weights.shape).T)
    assert (np.abs(found - x @ weights.T) <= bound).all()
    assert np.abs(found).max() > 4 * bound.max()


@pytest.mark.parametrize("name", FORMATS)
def test_types_of_numpy(name: str) -> None:
    check_type(name, 3, "numpy")


@pytest.mark.usefixtures("guards")
@pytest.mark.parametrize(
    ("isa_name", "name"),
    [(isa_name, name) for isa_name in ISAS for name in (FORMATS if isa_name == ISAS[0] else ON_EVERY_ISA)],
)
def test_types_next_to_protected_pages(isa_name: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(isa.VARIABLE, isa_name)
    for n in ROWS:
        check_type(name, n, "cpu")


@pytest.mark.parametrize("name", ["F16", "BF16", "Q4_0", "Q5_1", "Q8_0", "TQ2_0"])
def test_quantized_by_the_package_gguf(name: str) -> None:
    """Blocks in bytes, with their shape in numbers."""
    rng = np.random.default_rng(1)
    w, x = floats(rng, 3, 256), floats(rng, 2, 256)
    kind = gguf.GGMLQuantizationType[name]
    blocks = gguf.quantize(w, kind)
    g = Graph()
    table = g.constant(blocks.tobytes(), type=name, shape=(3, 256))
    y, rows = g.mul_mat(table, g.input("x", 256)), g.get_rows(table, g.tokens)
    found = g.compute({"x": x, "inp_tokens": [2, 0]}, fetch=[y, rows])
    expected = gguf.dequantize(blocks, kind)
    assert np.array_equal(found[rows.name], expected[[2, 0]])
    assert np.abs(found[y.name] - x @ expected.T).max() < 0.6
    assert np.abs(g.compute({"x": x}, "numpy", y) - x @ expected.T).max() < 1e-4


W = np.array([[1, 2, 3], [-4, 5, 6]])


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (W, None, "F32"),
        (W.tolist(), None, "F32"),
        (W.astype(">f8"), None, "F32"),
        (np.asfortranarray(W, np.float32), None, "F32"),
        (W.astype(np.float16), None, "F16"),
        (W.astype(np.int8), "f16", "F16"),
        (W.astype("<f4").tobytes(), "f32", "F32"),
        (W.astype("<f2").view(np.uint8), "F16", "F16"),
    ],
)
def test_numbers_of_all_kinds_are_constants(values: Any, kind: str | None, expected: str) -> None:
    g = Graph()
    a = g.constant(values, "a", kind, (2, 3))
    y = g.mul_mat(a, g.input("x", 3))
    assert operands.kind(a) == f"a constant [2, 3] {expected}"
    for device in "numpy", "cpu":
        assert g.compute({"x": np.eye(3)}, device, y).tolist() == W.T.tolist()


def test_constants_are_copies() -> None:
    g = Graph()
    w = np.ones((2, 3), np.float32)
    y = g.mul_mat(g.constant(w), g.input("x", 3))
    w[:] = np.nan
    for device in "numpy", "cpu":
        assert g.compute({"x": [[1, 2, 3]]}, device, y).tolist() == [[6, 6]]


# -- computing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_the_example_that_ggml_users_know(device: str) -> None:
    a, b = np.array([[2, 8], [5, 1], [4, 2], [8, 6]]), np.array([[10, 5], [9, 9], [5, 4]])
    g = Graph()
    d = g.add(g.mul_mat(g.constant(a, "a"), g.constant(b, "b")), g.constant(np.ones((3, 4))), "d")
    assert np.array_equal(g.compute(device=device, fetch=d), (a @ b.T + 1).T)
    assert g.compute(device=device).keys() == {"d"}


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_what_is_fetched(device: str) -> None:
    """By default what nothing else reads; one node's array alone; several by name."""
    g = Graph()
    x = g.input("x", 2)
    double, norm = g.add(x, x), g.rms_norm(x)
    sums = g.add(double, x)
    given = {"x": [[3, 4]]}
    assert [*g.nodes][3:] == ["x", "add-0", "rms_norm-0.weight", "rms_norm-0", "add-1"]
    assert g.compute(given, device).keys() == {norm.name, sums.name}
    assert g.compute(given, device, "add-0").tolist() == [[6, 8]]
    found = g.compute(given, device, [double, "add-1"])
    assert {name: each.tolist() for name, each in found.items()} == {"add-0": [[6, 8]], "add-1": [[9, 12]]}


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_a_graph_can_grow(device: str) -> None:
    """Also by what needs other hyperparameters: heads, a table."""
    g = Graph()
    x = g.input("x", 16)
    given = {"x": np.arange(32).reshape(2, 16), "inp_tokens": [1, 0]}
    assert g.compute({"x": given["x"]}, device, g.add(x, x)).tolist() == (2 * given["x"]).tolist()
    heads = g.heads(x, 1)
    first = g.attention(heads, heads, heads)
    assert g.compute({"x": given["x"]}, device, first)[0].tolist() == given["x"][0].tolist()
    rows = g.get_rows(g.constant([[1, 2], [3, 4]]), g.tokens)
    assert g.compute(given, device, rows).tolist() == [[3, 4], [1, 2]]


def test_a_device_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(device: str, *rest: Any) -> Any:
        made.append(device)
        return backend_for(device, *rest)

    monkeypatch.setattr(graphs, "backend_for", counted)
    g = Graph(n_threads=1)
    y = g.mul_mat(g.constant([[2.0]]), g.input("x", 1))
    for i in range(3):
        for device in "cpu", "numpy":
            assert g.compute({"x": [[i]]}, device, y).tolist() == [[2 * i]]
    assert made == ["cpu", "numpy"]
    usage = g.usage()
    assert (usage.device, usage.n_threads) == ("cpu", 1)
    assert usage.buffer_bytes is not None
    assert usage.buffer_bytes >= 8  # a number, and twice that number
    assert made == ["cpu", "numpy"]


def test_computing_leaves_no_pages_in_use() -> None:
    """Each computation is a sequence of its own, also when it fails."""
    g = Graph()
    heads = g.heads(g.input("x", 16), 1)
    y = g.attention(heads, heads, heads)
    for device in "cpu", "numpy":
        for _ in range(3):
            g.compute({"x": np.ones((65, 16))}, device, y)
        assert g._backend(device).cache.n_pages == 2


def test_importing_is_cheap() -> None:
    """The package imports nothing for it, and building a graph doesn't need the compiler."""
    code = """
import sys
import qwencli
assert not {"numpy", "numba", "qwencli.tensors"} & sys.modules.keys()
g = qwencli.Graph()
g.mul_mat(g.constant([[1.0]]), g.input("x", 1))
assert not {"numba", "llvmlite", "gguf"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- what is refused ------------------------------------------------------------------------------------------------------


def matrix(g: Graph, *shape: int, name: str = "w") -> Tensor:
    return g.constant(np.ones(shape, np.float32), name)


def routed(g: Graph) -> tuple[Tensor, Tensor]:
    """A route over three experts, and products of theirs."""
    route = g.route(g.input("logits", 3), 2, name="r")
    return route, g.mul_mat_id(matrix(g, 3, 4, 5, name="of_experts"), g.input("y", 5), route, "products")


NODES: dict[str, tuple[Callable[[Graph, Tensor], Any], str]] = {
    "mul_mat": (
        lambda g, x: g.mul_mat(matrix(g, 4, 3), x),
        r"the shapes of w \[4, 3\], x \[n_tokens, 6\] don't fit together in 'mul_mat-0'",
    ),
    "vector": (lambda g, x: g.mul_mat(matrix(g, 6), x), r"of w \[6\], x \[n_tokens, 6\] don't"),
    "no constant": (
        lambda g, x: g.mul_mat(x, x),
        r"'mul_mat-0' can't take 'x', an input \[n_tokens, 6\]: expected a constant",
    ),
    "bias": (
        lambda g, x: g.mul_mat(matrix(g, 4, 6), x, matrix(g, 6, name="b")),
        r"w \[4, 6\], b \[6\] don't",
    ),
    "bias of halves": (
        lambda g, x: g.mul_mat(matrix(g, 4, 6), x, g.constant(bytes(8), "b", "f16", [4])),
        r"can't take 'b', a constant \[4\] F16: expected an F32 constant",
    ),
    "add": (lambda g, x: g.add(x, g.input("y", 5)), r"x \[n_tokens, 6\], y \[n_tokens, 5\] don't fit"),
    "add heads": (
        lambda g, x: g.add(x, g.heads(x, 2)),
        r"x \[n_tokens, 6\], heads-0 \[n_tokens, 2, 3\] don't",
    ),
    "add a block": (lambda g, x: g.add(x, matrix(g, 1, 1, 6)), r"'w', a constant \[1, 1, 6\] F32, as rows"),
    "norm": (lambda g, x: g.rms_norm(x, matrix(g, 5)), r"x \[n_tokens, 6\], w \[5\] don't fit"),
    "swiglu": (lambda g, x: g.swiglu(x, g.input("y", 5)), r"x \[n_tokens, 6\], y \[n_tokens, 5\] don't fit"),
    "gate": (lambda g, x: g.gate(x, g.input("y", 2)), r"x \[n_tokens, 6\], y \[n_tokens, 2\] don't fit"),
    "heads": (lambda g, x: g.heads(x, 4), r"x \[n_tokens, 6\] don't fit together in 'heads-0'"),
    "no heads": (lambda g, x: g.heads(x, 0), r"x \[n_tokens, 6\] don't fit together in 'heads-0'"),
    "heads of heads": (lambda g, x: g.heads(g.heads(x, 2), 1), r"heads-0 \[n_tokens, 2, 3\] don't fit"),
    "flat": (lambda g, x: g.flat(x), r"x \[n_tokens, 6\] don't fit together in 'flat-0'"),
    "columns": (lambda g, x: g.columns(x, 2, 2, 2), r"x \[n_tokens, 6\] don't fit together in 'columns-0'"),
    "columns before": (lambda g, x: g.columns(x, 2, -1, 2), r"x \[n_tokens, 6\] don't fit"),
    "rope": (lambda g, x: g.rope(x), r"x \[n_tokens, 6\] don't fit together in 'rope-0'"),
    "rope of too much": (
        lambda g, x: g.rope(g.heads(x, 3), 4),
        "rotates 4 values of heads of 2, expected an even",
    ),
    "odd rope": (lambda g, x: g.rope(g.heads(x, 2)), "rotates 3 values of heads of 3, expected an even"),
    "attention": (
        lambda g, x: g.attention(g.heads(x, 2), g.heads(x, 3), g.heads(x, 3)),
        r"heads-0 \[n_tokens, 2, 3\], attention-0.kv \[n_tokens, 3, 2\] don't fit",
    ),
    "keys and values": (
        lambda g, x: g.attention(g.heads(x, 2), g.heads(x, 2), g.heads(x, 3)),
        r"heads-1 \[n_tokens, 2, 3\], heads-2 \[n_tokens, 3, 2\] don't fit",
    ),
    "no heads to attend": (lambda g, x: g.attention(x, x, x), r"x \[n_tokens, 6\] don't fit"),
    "two sizes of heads": (
        lambda g, x: [g.attention(h, h, h) for h in (g.heads(x, 2), g.heads(x, 3))],
        r"'attention-0' and 'attention-1' differ in heads, key-value heads and head size: \(2, 2, 3\) and \(3, 3, 2\)",
    ),
    "two rotations": (
        lambda g, x: [g.rope(g.heads(x, 3), 2, base) for base in (1e4, 1e6)],
        "'rope-0' and 'rope-1' differ in rotation: .*10000.*1000000.*",
    ),
    "experts of another number": (
        lambda g, x: g.mul_mat_id(matrix(g, 4, 2, 6), x, routed(g)[0]),
        r"w \[4, 2, 6\], logits \[n_tokens, 3\] don't fit",
    ),
    "experts' columns": (
        lambda g, x: g.mul_mat_id(matrix(g, 3, 2, 5), x, routed(g)[0]),
        r"w \[3, 2, 5\], x \[n_tokens, 6\] don't fit",
    ),
    "heads to experts": (
        lambda g, x: g.mul_mat_id(matrix(g, 3, 2, 3), g.heads(x, 2), routed(g)[0]),
        "can't take 'heads-0', rows .*: expected products of the experts of 'r'",
    ),
    "no route": (lambda g, x: g.mul_mat_id(matrix(g, 3, 2, 6), x, x), "expected a route"),
    "a route as rows": (lambda g, x: g.add(routed(g)[0], x), "can't take 'r', a handle: expected rows"),
    "experts' rows": (
        lambda g, x: g.add(*2 * [routed(g)[1]]),
        r"'add-0' can't take 'products', rows of experts \[n_tokens, 2, 4\]: expected rows",
    ),
    "experts of another route": (
        lambda g, x: g.expert_sum(routed(g)[1], g.route(x, 2, name="other")),
        "expected products of the experts of 'other'",
    ),
    "more than all experts": (lambda g, x: g.route(x, 7), "takes 7 of 6 experts"),
    "key heads": (
        lambda g, x: g.delta_net(x, matrix(g, 6, 2), x, x, *2 * [matrix(g, 3, name="dt")], 2, 1),
        r"value heads \[3\], expected a multiple of 2 key heads",
    ),
    "ids": (
        lambda g, x: g.get_rows(matrix(g, 4, 3), g.outputs),
        "by 'inp_out_ids', expected a constant by graph.tokens",
    ),
    "ids of rows": (lambda g, x: g.get_rows(x, g.tokens), "by 'inp_tokens', expected rows by graph.outputs"),
    "ids as rows": (lambda g, x: g.add(g.tokens, x), r"'inp_tokens', an input \[n_tokens\]: expected rows"),
    "some and all rows": (
        lambda g, x: g.add(g.get_rows(x, g.outputs, "some"), x),
        r"some \[n_outputs, 6\], x \[n_tokens, 6\] don't fit",
    ),
    "twice": (lambda g, x: g.input("x", 3), "two tensors are named 'x'"),
    "constant twice": (lambda g, x: matrix(g, 3, name="x"), "two tensors are named 'x'"),
    "another graph": (
        lambda g, x: g.add(x, Graph().input("y", 6)),
        "'y', which 'add-0' reads, is a tensor of another",
    ),
    "another graph's constant": (
        lambda g, x: g.add(x, matrix(Graph(), 6)),
        "'w', which 'add-0' reads, is a tensor of another",
    ),
    "another graph's weight": (
        lambda g, x: g.mul_mat(matrix(Graph(), 6, 6), x),
        "'w', which 'mul_mat-0' reads, is a tensor of another",
    ),
}


@pytest.mark.parametrize("case", NODES)
def test_shapes_are_checked_when_a_node_is_made(case: str) -> None:
    """And what is left of the graph works."""
    make, message = NODES[case]
    g = Graph()
    x = g.input("x", 6)
    double = g.add(x, x, "double")
    with pytest.raises(ModelError, match=message) as caught:
        make(g, x)
    assert "\n" not in str(caught.value)
    assert g.compute({"x": np.ones((1, 6))}, "numpy", double).tolist() == [[2] * 6]


CONSTANTS: dict[str, tuple[dict[str, Any], str]] = {
    "columns": (
        {"values": bytes(144), "type": "q4_k", "shape": [1, 300]},
        "rows of 300 numbers, expected a multiple of Q4_K's block of 256",
    ),
    "bytes of a row": (
        {"values": np.zeros((2, 100), np.uint8), "type": "Q4_K"},
        "rows of 100 bytes, expected a multiple of the 144 bytes of a block of 256 numbers in Q4_K",
    ),
    "bytes": (
        {"values": bytes(100), "type": "q8_0", "shape": [2, 32]},
        r"\[2, 32\] Q8_0 has 100 bytes, expected 68",
    ),
    "no bytes": (
        {"values": np.ones((2, 32)), "type": "q8_0"},
        "is float64, expected uint8: the bytes of Q8_0 blocks",
    ),
    "type": ({"values": bytes(4), "type": "q9"}, "there is no type 'q9', known are F32, F16, .*Q2_0"),
    "no weights": ({"values": bytes(40), "type": "q8_1"}, "there is no type 'q8_1'"),
    "scale": ({"values": bytes(36), "type": "nvfp4"}, "is NVFP4, which needs a scale"),
    "needless scale": ({"values": [[1.0]], "scale": 2.0}, "is F32, which has no scale"),
    "scales": (
        {"values": np.zeros((3, 1, 36), np.uint8), "type": "nvfp4", "scale": [1.0, 2.0]},
        r"the scale of 'w' \[3, 1, 64\] is \[2\], expected \[3\]",
    ),
    "text": ({"values": "abc"}, "'w' is <U3, expected an array of numbers"),
    "complex": ({"values": [1j]}, "'w' is complex128, expected an array of numbers"),
    "ragged": ({"values": [[1], [1, 2]]}, "'w' is object, expected an array of numbers"),
    "a number": ({"values": 1.0}, r"'w' is \[\], expected one to three dimensions above 0"),
    "nothing": ({"values": np.ones((3, 0))}, r"'w' is \[3, 0\], expected one to three dimensions above 0"),
    "four dimensions": ({"values": np.ones((1, 1, 1, 1))}, r"'w' is \[1, 1, 1, 1\], expected one to three"),
    "shape": ({"values": np.ones(6), "shape": [2, 4]}, r"'w' is \[6\], which has no place in \[2, 4\]"),
    "negative shape": (
        {"values": bytes(34), "type": "q8_0", "shape": [-1, -32]},
        r"\[-1, -32\], expected one to three",
    ),
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_constants_that_are_refused(case: str) -> None:
    given, message = CONSTANTS[case]
    g = Graph()
    with pytest.raises(InputError, match=message):
        g.constant(name="w", **given)
    g.constant([1.0], "w")  # the name is still free


INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"x": np.ones((2, 3))}, "the input 'inp_tokens' is missing"),
    "unknown": ({"z": [[1]]}, "the graph has no input 'z', it has inp_tokens, x"),
    "positions": ({"inp_pos": [0]}, "the graph has no input 'inp_pos'"),
    "columns": ({"x": np.ones((2, 4)), "inp_tokens": [0, 0]}, r"'x' is \[2, 4\], expected \[n_tokens, 3\]"),
    "a vector": ({"x": np.ones(3), "inp_tokens": [0]}, r"'x' is \[3\], expected \[n_tokens, 3\]"),
    "no rows": ({"x": np.ones((0, 3)), "inp_tokens": [0]}, r"'x' is \[0, 3\], expected \[n_tokens, 3\]"),
    "rows": (
        {"x": np.ones((2, 3)), "inp_tokens": [0]},
        r"'x' is \[2, 3\] and 'inp_tokens' is \[1\], expected the same number",
    ),
    "tokens": ({"x": np.ones((1, 3)), "inp_tokens": [7]}, "has the row 7, but there are 5 rows of 'table'"),
    "negative tokens": ({"x": np.ones((1, 3)), "inp_tokens": [-1]}, "has the row -1, but there are 5 rows"),
    "huge tokens": ({"x": np.ones((1, 3)), "inp_tokens": [2**40]}, "but there are 5 rows"),
    "fractions": (
        {"x": np.ones((1, 3)), "inp_tokens": [0.5]},
        r"'inp_tokens' is float64 \[1\], expected integers",
    ),
    "text": ({"x": [["a"] * 3], "inp_tokens": [0]}, "'x' is <U1, expected an array of numbers"),
}


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("case", INPUTS)
def test_inputs_that_are_refused(case: str, device: str) -> None:
    given, message = INPUTS[case]
    g = Graph()
    g.add(g.get_rows(matrix(g, 5, 3, name="table"), g.tokens), g.input("x", 3))
    with pytest.raises(InputError, match=message):
        g.compute(given, device)
    (found,) = g.compute({"x": np.ones((2, 3)), "inp_tokens": [4, 0]}, device).values()
    assert found.tolist() == [[2] * 3] * 2


def test_rows_that_are_not_there() -> None:
    g = Graph()
    g.get_rows(g.input("x", 3), g.outputs)
    with pytest.raises(
        InputError, match="the input 'inp_out_ids' has the row 2, but there are 2 rows of the inputs"
    ):
        g.compute({"x": np.ones((2, 3)), "inp_out_ids": [0, 2]})


def test_constants_with_other_numbers_of_rows() -> None:
    g = Graph()
    y = g.add(g.input("x", 2), g.constant(np.ones((3, 2)), "c"))
    with pytest.raises(
        InputError, match=r"'x' is \[4, 2\] and 'c' is \[3, 2\], expected the same number of rows"
    ):
        g.compute({"x": np.ones((4, 2))}, fetch=y)


def test_what_cannot_be_fetched() -> None:
    g = Graph()
    with pytest.raises(ModelError, match="there is nothing to compute"):
        g.compute()
    matrix(g, 1)
    route, _ = routed(g)
    for fetch, message in (
        ("w", r"'w' is a constant \[1\] F32, expected rows to fetch"),
        (route, "'r' is a handle, expected rows to fetch"),
        ("other", "no tensor is named 'other'"),
        (Graph().input("logits", 3), "'logits', which 'compute' reads, is a tensor of another graph"),
        ([], "there is nothing to compute"),
    ):
        with pytest.raises(ModelError, match=message):
            g.compute({}, fetch=fetch)


def test_devices_that_are_refused() -> None:
    g = Graph()
    heads = g.heads(g.input("x", 6), 2)
    g.attention(heads, heads, heads)
    with pytest.raises(QwenError, match=r"unknown device 'cuda', known are cpu, numpy"):
        g.compute({"x": np.ones((1, 6))}, "cuda")
    with pytest.raises(
        QwenError, match="the device cpu has no kernels for heads of 3 values; numpy can run them"
    ):
        g.compute({"x": np.ones((1, 6))}, "cpu")
    assert g.compute({"x": np.ones((1, 6))}, "numpy")["attention-0"].tolist() == [[1] * 6]
