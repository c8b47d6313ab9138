"""The ops of the graph, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...network.graph import (
    Add,
    Attention,
    Columns,
    Conv,
    DeltaNet,
    ExpertLinear,
    ExpertSum,
    Gate,
    GetRows,
    KVStore,
    Linear,
    Reshape,
    RMSNorm,
    Rope,
    Route,
    SwiGLU,
    Tensor,
)
from ..kv_cache import KVSequence
from ..protocol import F32, I32, Batch
from ..registry import Registry
from .memory import KVPages, States, WeightReader

computes = Registry[Callable[..., Any]]("NumPy")
"""Registers the function of an op: f(step, node, *values of its sources). The value of a weight is its node."""
QUERY_BLOCK = 256
"""Query positions whose scores are in memory at once."""
LEAST_SUM = 2.0**-14
"""The least by which experts' weights are divided: the smallest normal half float, as in llama.cpp."""


class Step:
    """What an op can use in addition to its sources."""

    def __init__(self, weights: WeightReader, kv: KVPages, states: States, batch: Batch | None) -> None:
        self.weights = weights
        self.kv = kv
        self.states = states
        self.batch = batch

    def sequences(self) -> Iterator[tuple[KVSequence, slice]]:
        """Yield each sequence of the batch, and its rows."""
        assert self.batch is not None
        start = 0
        for segment in self.batch.segments:
            yield segment.seq, slice(start, start + len(segment.tokens))
            start += len(segment.tokens)

    def states_after(self, seq: KVSequence, n: int) -> list[tuple[int, int]]:
        """Return after how many of the sequence's `n` new tokens its state is kept, and the number of each such state."""
        return [
            (position - seq.length, state)
            for position, state in seq.states.items()
            if 0 < position - seq.length <= n
        ]


@computes(GetRows)
def get_rows(step: Step, node: Tensor, x: F32 | Tensor, ids: I32) -> F32:
    return step.weights.rows(x, ids) if isinstance(x, Tensor) else x[ids]


@computes(Linear)
def linear(step: Step, node: Tensor, weight: Tensor, x: F32, bias: Tensor | None = None) -> F32:
    out = step.weights.product(weight, x)
    return out if bias is None else out + step.weights.vector(bias)


@computes(RMSNorm)
def rms_norm(step: Step, node: Tensor, x: F32, weight: Tensor) -> F32:
    assert isinstance(node.op, RMSNorm)
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    rms: F32 = np.sqrt(mean_square + np.float32(node.op.eps))
    return x / rms * step.weights.vector(weight)


@computes(Reshape)
def reshape(step: Step, node: Tensor, x: F32) -> F32:
    return x.reshape(len(x), *(d for d in node.shape[1:] if isinstance(d, int)))


@computes(Columns)
def columns(step: Step, node: Tensor, x: F32) -> F32:
    assert isinstance(node.op, Columns)
    _, n_group, count = node.shape
    assert isinstance(n_group, int)
    assert isinstance(count, int)
    groups: F32 = x.reshape(len(x), n_group, -1)
    return groups[..., node.op.first : node.op.first + count]


@computes(Rope)
def rope(step: Step, node: Tensor, x: F32, positions: I32) -> F32:
    assert isinstance(node.op, Rope)
    p = node.op.params
    frequencies, magnitude = p.frequencies()
    angles = positions[:, None, None] * frequencies  # float64: positions reach hundreds of thousands
    cos, sin = ((f(angles) * magnitude).astype(np.float32) for f in (np.cos, np.sin))
    half = p.n_rot // 2
    a, b = x[..., :half], x[..., half : p.n_rot]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., p.n_rot :]], axis=-1)


@computes(KVStore)
def kv_store(step: Step, node: Tensor, k: F32, v: F32) -> int:
    assert isinstance(node.op, KVStore)
    for seq, rows in step.sequences():
        step.kv.write(seq, node.op.layer, k[rows], v[rows])
    return node.op.layer


@computes(Attention)
def attention(step: Step, node: Tensor, q: F32, layer: int) -> F32:
    assert isinstance(node.op, Attention)
    out = np.empty((len(q), q.shape[1] * q.shape[2]), np.float32)
    for seq, rows in step.sequences():
        n = seq.length + rows.stop - rows.start
        k, v = step.kv.read(seq, layer, n)
        for start in range(rows.start, rows.stop, QUERY_BLOCK):
            block = slice(start, min(start + QUERY_BLOCK, rows.stop))
            first = seq.length + start - rows.start
            if node.op.causal:
                end = first + block.stop - block.start
            else:
                first = end = n  # each query sees all positions
            out[block] = attend(q[block], k[:, :end], v[:, :end], first, node.op.scale)
    return out


def attend(q: F32, k: F32, v: F32, first: int, scale: float) -> F32:
    """q [n, n_head, d]; k, v [n_head_kv, n_kv, d] -> [n, n_head * d]. The first query sees the positions up to `first`, each later one sees
    one more."""
    (n, n_head, d), (n_head_kv, n_kv, _) = q.shape, k.shape
    shared = n_head // n_head_kv
    q = q.reshape(n, n_head_kv, shared, d).transpose(1, 2, 0, 3).reshape(n_head_kv, shared * n, d)
    scores = (q @ k.swapaxes(1, 2) * np.float32(scale)).reshape(n_head_kv, shared, n, n_kv)
    masked = np.arange(n_kv) > first + np.arange(n)[:, None]
    scores[:, :, masked] = -np.inf
    weights: F32 = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = (weights.reshape(n_head_kv, shared * n, n_kv) @ v).reshape(n_head_kv, shared, n, d)
    return out.transpose(2, 0, 1, 3).reshape(n, n_head * d)


@computes(Add)
def add(step: Step, node: Tensor, x: F32, y: F32) -> F32:
    return x + y


@computes(SwiGLU)
def swiglu(step: Step, node: Tensor, gate: F32, up: F32) -> F32:
    e: F32 = np.exp(-gate)
    return gate / (1 + e) * up


@computes(Gate)
def gate(step: Step, node: Tensor, x: F32, gate: F32) -> F32:
    return x * sigmoid(gate)


def sigmoid(x: F32) -> F32:
    e: F32 = np.exp(-x)
    return np.float32(1) / (1 + e)


@computes(Route)
def route(step: Step, node: Tensor, logits: F32) -> tuple[I32, F32]:
    """Return the chosen experts and their weights, each [k, n_used]."""
    assert isinstance(node.op, Route)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    chosen = np.argsort(-weights, axis=-1, kind="stable")[:, : node.op.n_used].astype(np.int32)
    weights = np.take_along_axis(weights, chosen, -1)
    if node.op.normalised:
        weights /= np.maximum(weights.sum(-1, keepdims=True), LEAST_SUM)
    return chosen, weights


@computes(ExpertLinear)
def expert_linear(step: Step, node: Tensor, weight: Tensor, x: F32, routed: tuple[I32, F32]) -> F32:
    chosen = routed[0]
    rows = x[:, None].repeat(chosen.shape[1], 1) if x.ndim == 2 else x
    out = np.empty((*chosen.shape, weight.shape[1]), np.float32)
    for expert in np.unique(chosen):
        out[chosen == expert] = step.weights.product(weight, rows[chosen == expert], int(expert))
    return out


@computes(ExpertSum)
def expert_sum(step: Step, node: Tensor, x: F32, routed: tuple[I32, F32]) -> F32:
    out: F32 = (x * routed[1][..., None]).sum(1)
    return out


@computes(Conv)
def conv(step: Step, node: Tensor, x: F32, weight: Tensor) -> F32:
    assert isinstance(node.op, Conv)
    kernel = step.weights.rows(weight, slice(None))  # [n, d_conv]
    n_before = kernel.shape[1] - 1
    out = np.empty_like(x)
    for seq, rows in step.sequences():
        before, _ = step.states.layer(seq.states.get(seq.length), node.op.layer)
        values = np.concatenate([before, x[rows]])
        n = rows.stop - rows.start
        out[rows] = sum(values[i : i + n] * kernel[:, i] for i in range(n_before + 1))
        for done, state in step.states_after(seq, n):
            step.states.layer(state, node.op.layer)[0][:] = values[done : done + n_before]
    return out * sigmoid(out)


@computes(DeltaNet)
def delta_net(step: Step, node: Tensor, qkv: F32, alpha: F32, beta: F32, dt: Tensor, a: Tensor) -> F32:
    op = node.op
    assert isinstance(op, DeltaNet)
    _, n_head_v, d = node.shape
    assert isinstance(n_head_v, int)
    assert isinstance(d, int)
    heads = qkv.reshape(len(qkv), -1, d)
    q, k, v = np.split(heads, [op.n_head_k, 2 * op.n_head_k], axis=1)
    shared = (
        np.arange(n_head_v) % op.n_head_k if op.tiled else np.arange(n_head_v) // (n_head_v // op.n_head_k)
    )
    q, k = (
        (x / np.sqrt(np.square(x).sum(-1, keepdims=True) + np.float32(op.eps)))[:, shared] for x in (q, k)
    )
    decay = np.exp(step.weights.vector(a) * np.logaddexp(0, alpha + step.weights.vector(dt)))
    strength = sigmoid(beta)
    out = np.empty((len(qkv), n_head_v, d), np.float32)
    for seq, rows in step.sequences():
        s = step.states.layer(seq.states.get(seq.length), op.layer)[1].copy()
        kept = dict(step.states_after(seq, rows.stop - rows.start))
        for t in range(rows.start, rows.stop):
            s *= decay[t, :, None, None]
            delta = strength[t, :, None] * (v[t] - np.einsum("hi,hij->hj", k[t], s))
            s += k[t, :, :, None] * delta[:, None]
            out[t] = np.einsum("hi,hij->hj", q[t], s) * np.float32(d**-0.5)
            if t + 1 - rows.start in kept:
                step.states.layer(kept[t + 1 - rows.start], op.layer)[1][:] = s
    return out
