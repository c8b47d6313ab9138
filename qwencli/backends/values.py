"""The values of named tensors, as callers of a backend fetch and feed them: which tensors may be, and in which form.

A value is a float32 array of the tensor's shape. That of a route is a pair: the experts' numbers, i32 [k, n_used], and their weights,
f32 [k, n_used]. The inputs are i32 arrays, and only fetched, as weights are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ModelError
from ..network.graph import (
    N_OUTPUTS,
    N_TOKENS,
    Attention,
    Conv,
    DeltaNet,
    Graph,
    Input,
    KVStore,
    Route,
    Rows,
    Tensor,
    Weight,
)
from .protocol import I32, Batch

READS_BATCH = Input, KVStore, Attention, Conv, DeltaNet
"""Ops that need a batch: its tokens and positions, or its sequences' part of the cache."""


def check_fetched(graph: Graph, fetch: Iterable[str]) -> None:
    """Raise ModelError for a tensor that has no value."""
    for name in fetch:
        if isinstance(node_of(graph, name).op, KVStore):
            raise ModelError(f"'{name}' is a handle of the KV cache and has no value: it can't be fetched")


def checked_feed(graph: Graph, feed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fed values as arrays of the right types.

    Raises ModelError for a tensor that can't be fed, and InputError for a value of the wrong shape or an expert that there isn't.
    """
    return {name: checked_value(node_of(graph, name), value) for name, value in feed.items()}


def checked_value(node: Tensor, value: Any) -> Any:
    if isinstance(node.op, (Weight, Input, KVStore)) and not isinstance(node.op, Rows):
        kind = {Weight: "a weight", Input: "an input", KVStore: "a handle of the KV cache"}[type(node.op)]
        raise ModelError(f"'{node.name}' is {kind}: it can't be fed")
    if not isinstance(node.op, Route):
        return of_shape(node, value, np.float32)
    if not isinstance(value, tuple) or len(value) != 2:
        raise InputError(f"'{node.name}' is fed with one array, expected a pair: experts and their weights")
    experts, weights = of_shape(node, value[0], np.int32), of_shape(node, value[1], np.float32)
    n_expert = node.src[0].shape[1]
    assert isinstance(n_expert, int)
    if len(experts) != len(weights):
        raise InputError(
            f"'{node.name}' is fed with {len(experts)} rows of experts and {len(weights)} of their weights"
        )
    if experts.size and not 0 <= experts.min() <= experts.max() < n_expert:
        raise InputError(f"'{node.name}' is fed with an expert that isn't one of {n_expert}")
    return experts, weights


def of_shape(node: Tensor, value: Any, kind: type[np.number[Any]]) -> NDArray[Any]:
    array = np.asarray(value, kind)
    if array.ndim != len(node.shape) or array.shape[1:] != node.shape[1:]:
        expected = ", ".join(map(str, node.shape))
        raise InputError(f"'{node.name}' is fed with the shape {list(array.shape)}, expected [{expected}]")
    return array


def counts_of(graph: Graph, batch: Batch | None, feed: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of tokens and of outputs of a step. Raises InputError if fed tensors contradict the batch or each other."""
    counts = {N_TOKENS: len(batch.tokens), N_OUTPUTS: len(batch.outputs)} if batch else {}
    for name, value in feed.items():
        dim, n = str(graph.nodes[name].shape[0]), len(value[0] if isinstance(value, tuple) else value)
        if counts.setdefault(dim, n) != n:
            raise InputError(f"'{name}' is fed with {n} rows, expected {counts[dim]}")
    return {N_TOKENS: 0, N_OUTPUTS: 0} | counts


def reader_of_batch(nodes: Sequence[Tensor]) -> str | None:
    """Return the name of a node that needs a batch, None if none does."""
    return next((node.name for node in nodes if isinstance(node.op, READS_BATCH)), None)


def check_batch(reader: str | None, batch: Batch | None) -> None:
    """Raise InputError if there is a node that needs a batch, and no batch."""
    if reader is not None and batch is None:
        raise InputError(f"'{reader}' needs a batch, and there is none")


def inputs_of(graph: Graph, batch: Batch | None) -> dict[str, I32]:
    """Return the values of the graph's inputs, empty without a batch."""
    if batch is None:
        return {}
    return {
        graph.tokens.name: batch.tokens.copy(),
        graph.positions.name: batch.positions.copy(),
        graph.outputs.name: batch.outputs.copy(),
    }


def node_of(graph: Graph, name: str) -> Tensor:
    """Return a node. Raises ModelError if there is none of this name."""
    if name not in graph.nodes:
        raise ModelError(f"graph: no tensor is named '{name}'")
    return graph.nodes[name]
