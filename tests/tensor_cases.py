"""Small graphs with one result each, and what it is by float64 NumPy: a function for each op of qwencli.Graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from qwencli import Graph

F64 = np.float64
EPS = 1e-5


class Case(NamedTuple):
    """What `compute` is given, and the result that is expected, float64."""

    inputs: dict[str, np.ndarray]
    expected: np.ndarray


Rng = np.random.Generator
Build = Callable[[Graph, Rng, int], Case]
"""f(empty graph, numbers, rows)"""


def floats(rng: Rng, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    sigmoids: np.ndarray = 1 / (1 + np.exp(-x.astype(F64)))
    return sigmoids


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def normed(x: np.ndarray) -> np.ndarray:
    x = x.astype(F64)
    normed: np.ndarray = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + EPS)
    return normed


def rotated(x: np.ndarray, n_rot: int, base: float) -> np.ndarray:
    """x [k, n_head, d]; pairs of values as complex numbers."""
    half = n_rot // 2
    turn = np.exp(1j * np.arange(len(x))[:, None, None] * base ** (-np.arange(half) / half))
    turned = turn * (x[..., :half].astype(F64) + 1j * x[..., half:n_rot])
    return np.concatenate([turned.real, turned.imag, x[..., n_rot:]], -1)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    weights: np.ndarray = e / e.sum(-1, keepdims=True)
    return weights


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q [n, n_head, d], k and v [n, n_head_kv, d] -> [n, n_head * d]"""
    n, n_head, d = q.shape
    k, v = (np.repeat(x, n_head // x.shape[1], 1).astype(F64) for x in (k, v))
    scores = np.einsum("ihd,jhd->hij", q.astype(F64), k) / d**0.5
    scores[:, ~np.tril(np.ones((n, n), bool))] = -np.inf
    return np.einsum("hij,jhd->ihd", softmax(scores), v).reshape(n, -1)


# -- cases ----------------------------------------------------------------------------------------------------------------


def product(g: Graph, rng: Rng, n: int) -> Case:
    w, x = floats(rng, 7, 5), floats(rng, n, 5)
    g.mul_mat(g.constant(w), g.input("x", 5))
    return Case({"x": x}, x @ w.T.astype(F64))


def product_with_bias(g: Graph, rng: Rng, n: int) -> Case:
    w, bias, x = floats(rng, 19, 33), floats(rng, 19), floats(rng, n, 33)
    g.mul_mat(g.constant(w), g.input("x", 33), g.constant(bias))
    return Case({"x": x}, x @ w.T.astype(F64) + bias)


def product_of_a_number(g: Graph, rng: Rng, n: int) -> Case:
    x = floats(rng, n, 1)
    g.mul_mat(g.constant([[-3]]), g.input("x", 1))
    return Case({"x": x}, -3 * x.astype(F64))


def product_and_sum(g: Graph, rng: Rng, n: int) -> Case:
    w, x, y = floats(rng, 4, 2), floats(rng, n, 2), floats(rng, n, 4)
    g.add(g.mul_mat(g.constant(w), g.input("x", 2)), g.input("y", 4))
    return Case({"x": x, "y": y}, x @ w.T.astype(F64) + y)


def sums(g: Graph, rng: Rng, n: int) -> Case:
    """Of inputs, a vector that is added to every row, a matrix, and twice the same."""
    x, y, row, rows = floats(rng, n, 3), floats(rng, n, 3), floats(rng, 3), floats(rng, n, 3)
    total = g.add(g.add(g.input("x", 3), g.input("y", 3)), g.constant(row))
    total = g.add(g.constant(rows), total)
    g.add(total, total)
    return Case({"x": x, "y": y}, 2 * (x.astype(F64) + y + row + rows))


def norm(g: Graph, rng: Rng, n: int) -> Case:
    w, x = floats(rng, 17), floats(rng, n, 17)
    g.rms_norm(g.input("x", 17), g.constant(w), EPS)
    return Case({"x": x}, normed(x) * w)


def norm_without_weight(g: Graph, rng: Rng, n: int) -> Case:
    x = floats(rng, n, 3)
    g.rms_norm(g.input("x", 3), eps=EPS)
    return Case({"x": x}, normed(x))


def norm_of_heads(g: Graph, rng: Rng, n: int) -> Case:
    w, x = floats(rng, 5), floats(rng, n, 15)
    g.flat(g.rms_norm(g.heads(g.input("x", 15), 3), g.constant(w), EPS))
    return Case({"x": x}, (normed(x.reshape(n, 3, 5)) * w).reshape(n, 15))


def gated_unit(g: Graph, rng: Rng, n: int) -> Case:
    x, y = floats(rng, n, 21), floats(rng, n, 21)
    g.swiglu(g.input("x", 21), g.input("y", 21))
    return Case({"x": x, "y": y}, silu(x) * y)


def gate_for_each_number(g: Graph, rng: Rng, n: int) -> Case:
    x, y = floats(rng, n, 9), floats(rng, n, 9)
    g.gate(g.input("x", 9), g.input("y", 9))
    return Case({"x": x, "y": y}, x * sigmoid(y))


def gate_for_each_row(g: Graph, rng: Rng, n: int) -> Case:
    x, y = floats(rng, n, 9), floats(rng, n, 1)
    g.gate(g.input("x", 9), g.input("y", 1))
    return Case({"x": x, "y": y}, x * sigmoid(y))


def gate_of_columns(g: Graph, rng: Rng, n: int) -> Case:
    """The second half of each of three groups."""
    x, y = floats(rng, n, 6), floats(rng, n, 12)
    g.gate(g.input("x", 6), g.flat(g.columns(g.input("y", 12), 3, 2, 2)))
    return Case({"x": x, "y": y}, x * sigmoid(y.reshape(n, 3, 4)[..., 2:].reshape(n, 6)))


def rows_of_a_table(g: Graph, rng: Rng, n: int) -> Case:
    table, ids = floats(rng, 6, 3), rng.integers(0, 6, n)
    g.get_rows(g.constant(table), g.tokens)
    return Case({"inp_tokens": ids}, table[ids].astype(F64))


def some_rows(g: Graph, rng: Rng, n: int) -> Case:
    x, ids = floats(rng, n, 3), rng.integers(0, n, 2 * n)
    g.get_rows(g.add(g.input("x", 3), g.constant([1, 2, 3])), g.outputs)
    return Case({"x": x, "inp_out_ids": ids}, x[ids] + F64([1, 2, 3]))


def rotation(g: Graph, rng: Rng, n: int) -> Case:
    x = floats(rng, n, 20)
    g.flat(g.rope(g.heads(g.input("x", 20), 2), 6, 500.0))
    return Case({"x": x}, rotated(x.reshape(n, 2, 10), 6, 500.0).reshape(n, 20))


def rotation_of_normed_heads(g: Graph, rng: Rng, n: int) -> Case:
    w, x = floats(rng, 8), floats(rng, n, 24)
    g.flat(g.rope(g.rms_norm(g.heads(g.input("x", 24), 3), g.constant(w), EPS)))
    return Case({"x": x}, rotated(normed(x.reshape(n, 3, 8)) * w, 8, 10000.0).reshape(n, 24))


def attention(g: Graph, rng: Rng, n: int) -> Case:
    q, k, v = floats(rng, n, 64), floats(rng, n, 32), floats(rng, n, 32)
    g.attention(*(g.heads(g.input(name, x.shape[1]), x.shape[1] // 16) for name, x in zip("qkv", (q, k, v))))
    expected = attended(q.reshape(n, 4, 16), k.reshape(n, 2, 16), v.reshape(n, 2, 16))
    return Case({"q": q, "k": k, "v": v}, expected)


def two_layers_of_attention(g: Graph, rng: Rng, n: int) -> Case:
    """With rotated heads; the second layer's queries are what the first one gives."""
    x, w = floats(rng, n, 48), floats(rng, 48, 48) / 7
    heads = [x.astype(F64)]
    h = g.input("x", 48)
    matrix = g.constant(w)
    for _ in range(2):
        q = g.rope(g.heads(h, 3))
        kv = g.heads(g.mul_mat(matrix, h), 3)
        h = g.attention(q, g.rope(kv), kv)
        q64, kv64 = (each.reshape(n, 3, 16) for each in (heads[-1], heads[-1] @ w.T))
        heads.append(attended(rotated(q64, 16, 10000.0), rotated(kv64, 16, 10000.0), kv64))
    return Case({"x": x}, heads[-1])


def experts(g: Graph, rng: Rng, n: int, normalised: bool = True) -> Case:
    """A feed-forward network of experts."""
    x, logits = floats(rng, n, 6), floats(rng, n, 5)
    gate, up, down = floats(rng, 5, 9, 6), floats(rng, 5, 9, 6), floats(rng, 5, 4, 9)
    route, rows = g.route(g.input("logits", 5), 2, normalised), g.input("x", 6)
    hidden = g.swiglu(*(g.mul_mat_id(g.constant(w), rows, route) for w in (gate, up)))
    g.expert_sum(g.mul_mat_id(g.constant(down), hidden, route), route)
    weights = softmax(logits.astype(F64))
    expected = np.zeros((n, 4))
    for row, of_row, likely in zip(x.astype(F64), weights, expected):
        chosen = np.argsort(-of_row)[:2]
        for expert in chosen:
            y = down[expert] @ (silu(gate[expert] @ row) * (up[expert] @ row))
            likely += y * of_row[expert] / (of_row[chosen].sum() if normalised else 1)
    return Case({"x": x, "logits": logits}, expected)


def experts_with_shares_of_all(g: Graph, rng: Rng, n: int) -> Case:
    return experts(g, rng, n, normalised=False)


def delta_net(g: Graph, rng: Rng, n: int) -> Case:
    """A convolution over three rows, one key head that two value heads of 16 share, and a second layer with a state of its own."""
    width, d = 64, 16
    x, alpha, beta = floats(rng, n, width), floats(rng, n, 2), floats(rng, n, 2)
    taps, dt, a = floats(rng, width, 3), floats(rng, 2), -np.exp(floats(rng, 2))
    qkv, gates = g.input("x", width), (g.input("alpha", 2), g.input("beta", 2))
    constants = [g.constant(each) for each in (dt, a)]
    nets = [
        g.delta_net(qkv, g.constant(taps), *gates, *constants, n_head_k=1, head_dim=d, eps=EPS) for _ in "12"
    ]
    g.add(*(g.flat(net) for net in nets))
    padded = np.concatenate([np.zeros((2, width)), x.astype(F64)])
    q, k, *v = np.split(silu(sum(padded[i : i + n] * taps[:, i] for i in range(3))), 4, 1)
    q, k = (each / np.sqrt((each**2).sum(-1, keepdims=True) + EPS) for each in (q, k))
    out = np.zeros((n, 2, d))
    for h in range(2):
        state = np.zeros((d, d))
        for t in range(n):
            state *= np.exp(a[h] * np.log1p(np.exp(F64(alpha[t, h]) + dt[h])))
            state += np.outer(k[t], sigmoid(beta[t, h]) * (v[h][t] - state.T @ k[t]))
            out[t, h] = state.T @ q[t] / d**0.5
    return Case({"x": x, "alpha": alpha, "beta": beta}, 2 * out.reshape(n, 2 * d))


CASES: list[Build] = [
    product,
    product_with_bias,
    product_of_a_number,
    product_and_sum,
    sums,
    norm,
    norm_without_weight,
    norm_of_heads,
    gated_unit,
    gate_for_each_number,
    gate_for_each_row,
    gate_of_columns,
    rows_of_a_table,
    some_rows,
    rotation,
    rotation_of_normed_heads,
    attention,
    two_layers_of_attention,
    experts,
    experts_with_shares_of_all,
    delta_net,
]
