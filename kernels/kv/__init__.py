"""One file for each type of the KV cache: how a head's keys and values lie in a page of PAGE positions, how they are stored, and how
queries read them in place.

A type's module has a `FORMAT`, an object of `_floats.Floats` or `_blocks.Blocks`, with

- `store_key(e, x, keys, slot, head_dim)` and `store_value(e, x, values, slot, head_dim)`: `head_dim` floats at the address x, an i64
  value, become the key or the value of a slot. No byte is written that holds a part of another position.
- `score_tile(e, queries, keys, scale, out, head_dim)`: out[q][PAGE] = scale * (query . key).
- `weigh_tile(e, weights, values, n_valid, accs, factors, head_dim)`: acc[q] = acc[q] * factor[q] + weights[q] @ values. Query q sees the
  first n_valid[q] positions, at least as many as the query before it; what it doesn't see may be infinite.

For these `head_dim` is a Python integer. Where `QUANTIZED` is true, queries and weights are quantized first, into memory whose addresses
then stand for them: `quantize_query(e, query, memory, head_dim)`, and `quantize_weights(e, weights, values, n_valid, memory, head_dim)` for
one query's weights of a page, PAGE floats.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def named(kind: str) -> Any:
    """The format of a type, by its name. Raises ModuleNotFoundError for an unknown one."""
    return import_module(f".{kind}", __name__).FORMAT
