"""Graphs built in Python: ops and tensor types on every device and instruction set, against float64."""

from __future__ import annotations

import subprocess
import sys
from bisect import insort
from typing import Any

import gguf
import numpy as np
import pytest
from blocks import columns, random_rows
from guarded import guarded
from tensor_cases import CASES, Build, floats

from qwencli import Graph
from qwencli.backends.cpu import memory
from qwencli.backends.cpu.backend import CPUBackend, kernels_of
from qwencli.backends.numpy.dequantize import to_float32
from qwencli.gguf import memory as constants
from qwencli.gguf.types import WEIGHT_TYPES
from qwencli.kernels import isa
from qwencli.kernels.formats import FORMATS
from qwencli.network.graph import Input, Weight
from qwencli.system.host import Host
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


# -- several devices ------------------------------------------------------------------------------------------------------


def computed(g: Graph) -> list[str]:
    """The names of the nodes that can be given a device, in order."""
    names = [name for name, node in g.nodes.items() if not isinstance(node.op, (Input, Weight))]
    return [name for name in names if not name.endswith((".kv", ".conv"))]


@pytest.mark.parametrize("build", CASES)
def test_nodes_in_turn_on_two_devices(build: Build) -> None:
    """The same bits as on one device; with NumPy in between what is expected."""
    one, other, *_ = [*sorted(Host().allowed()), None]
    if other is None:
        pytest.skip("needs two CPUs")
    for n in 1, 70:
        g = Graph()
        inputs, expected = build(g, np.random.default_rng(n), n)
        (alone,) = g.compute(inputs).values()
        for names in (f"cpus:{one}", f"cpus:{other}"), (f"cpus:{one}", "numpy"):
            devices = {name: names[i % 2] for i, name in enumerate(computed(g))}
            (found,) = g.compute(inputs, devices).values()
            n_splits = len(g.splits(devices, n))
            assert n_splits > 1 if len(devices) > 1 else n_splits == 0
            if "numpy" in names:
                np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
            else:
                assert np.array_equal(found, alone)


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


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_results_have_memory_of_their_own(device: str) -> None:
    """A view of an input or of a constant would change it."""
    g = Graph()
    given = np.ones((2, 4), np.float32)
    constant = g.constant(given)
    fetch = [g.heads(g.input("x", 4), 2), g.heads(constant, 2)]
    for _ in range(2):
        for found in g.compute({"x": given}, device, fetch).values():
            assert found.tolist() == np.ones((2, 2, 2)).tolist()
            found[:] = 7
    assert given.tolist() == np.ones((2, 4)).tolist()
