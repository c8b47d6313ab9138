"""What a graph built in Python refuses, in one line that names both shapes; and it works afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qwencli import Graph, QwenError
from qwencli.errors import InputError, ModelError
from qwencli.network.graph import Tensor


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
    "numbers": (lambda g, x: g.add(x, 1), r"'add-0' can't take a value of type int: expected a tensor"),
    "array": (lambda g, x: g.mul_mat(np.ones((4, 6)), x), r"'mul_mat-0' can't take a value of type ndarray"),
    "array of rows": (lambda g, x: g.mul_mat(matrix(g, 4, 6), np.ones((2, 6))), r"a value of type ndarray"),
    "array as bias": (lambda g, x: g.mul_mat(matrix(g, 4, 6), x, np.ones(4)), r"a value of type ndarray"),
    "array as weight": (
        lambda g, x: g.rms_norm(x, np.ones(6)),
        r"'rms_norm-0' can't take a value of type nd",
    ),
    "array as gate": (lambda g, x: g.swiglu(np.ones((2, 6)), x), r"'swiglu-0' can't take a value of type nd"),
    "array as table": (
        lambda g, x: g.get_rows(np.ones((2, 6)), g.tokens),
        r"'get_rows-0' can't take a value",
    ),
    "array of ids": (
        lambda g, x: g.get_rows(matrix(g, 4, 3), [0, 2]),
        r"'get_rows-0' can't take a value of type l",
    ),
    "array for experts": (
        lambda g, x: g.mul_mat_id(matrix(g, 3, 4, 5), np.ones((1, 2, 5)), routed(g)[0]),
        r"'mul_mat_id-\d' can't take a value of type ndarray",
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
    with pytest.raises(InputError, match="by 0 threads, expected 1 or more"):
        Graph(n_threads=0)
    g = Graph()
    heads = g.heads(g.input("x", 6), 2)
    g.attention(heads, heads, heads)
    with pytest.raises(QwenError, match=r"unknown device 'cuda'; known are cpu, .*numpy"):
        g.compute({"x": np.ones((1, 6))}, "cuda")
    with pytest.raises(
        QwenError, match="the device cpu has no kernels for heads of 3 values; numpy can run them"
    ):
        g.compute({"x": np.ones((1, 6))}, "cpu")
    assert g.compute({"x": np.ones((1, 6))}, "numpy")["attention-0"].tolist() == [[1] * 6]


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ({"first": "cpu", "second": "numpy", "third": "cpu"}, "'third' can't be given a device"),
        ({"x": "cpu"}, "'x' can't be given a device: expected the name of a node that is computed"),
        ({"attention-0.kv": "cpu"}, "'attention-0.kv' can't be given a device"),
        ({"first": "cpu", "second": "cpus:0"}, "the devices cpu and cpus:0 share CPU 0"),
        ({"first": "cpu,numpy"}, "'cpu,numpy' are several devices: give one for each"),
        ("cpu,numpy", "'cpu,numpy' are several devices: give one for each"),
        ({"first": "gpu"}, "unknown device 'gpu'"),
        ({}, "no device is named"),
        (
            {"first": "cpu", "attention-0": "cpu"},
            "the device cpu has no kernels for heads of 3 values; numpy can run",
        ),
    ],
)
def test_nodes_cannot_be_placed_there(devices: Any, message: str) -> None:
    g = Graph()
    x = g.input("x", 6)
    heads = g.heads(g.add(x, x, "first"), 2, "second")
    y = g.attention(heads, heads, heads)
    with pytest.raises(InputError, match=message):
        g.compute({"x": np.ones((1, 6))}, devices)
    assert g.compute({"x": np.ones((1, 6))}, {"second": "cpu", y.name: "numpy"}, y).tolist() == [[2] * 6]
