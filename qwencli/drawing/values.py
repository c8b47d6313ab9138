"""What a node's value is: its type, its shape in a given step, and its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ..network.graph import Columns, Input, KVStore, Reshape, Route, Rows, Tensor, Weight

VIEWS = (Reshape, Columns)
"""Ops whose value is another one's, seen in another way."""


@dataclass(frozen=True)
class Value:
    """`type` is GGML's name of a type, `shape` in NumPy's order, `n_bytes` all of it."""

    type: str
    shape: tuple[int, ...]
    n_bytes: int


def value_of(node: Tensor, sizes: Mapping[str, int]) -> Value:
    """The value of a node. `sizes` are the lengths of the dimensions that each step sets.

    A KVStore's value is what it stores: keys and values, as half floats. A Route's is a number and a weight for each expert chosen.
    """
    shape, n_bytes = node.shape_for(sizes), node.n_bytes(sizes)
    if isinstance(node.op, Weight):
        return Value(ggml_name(node.op.info.type.name), shape, n_bytes)
    if isinstance(node.op, Input) and not isinstance(node.op, Rows):
        return Value("i32", shape, n_bytes)
    if isinstance(node.op, KVStore):
        return Value("f16", shape, 2 * 2 * prod(shape))
    if isinstance(node.op, Route):
        return Value("i32, f32", shape, n_bytes)
    return Value("f32", shape, n_bytes)


def ggml_name(type_name: str) -> str:
    """A type's name as GGML prints it: q4_K, iq2_xxs, f32."""
    return type_name.lower().replace("_k", "_K")


def kind_of(node: Tensor, is_read: bool) -> str:
    """What a node is for whoever looks at the graph: "input", "weight", "view", "result" (nothing reads it) or "op"."""
    if isinstance(node.op, Weight):
        return "weight"
    if isinstance(node.op, Input):
        return "input"
    if not is_read:
        return "result"
    return "view" if isinstance(node.op, VIEWS) else "op"
