"""One file per type of the KV cache: how a page of PAGE positions holds a head's keys and values, how they are stored, and how queries read
them in place.

The module of a type has a `FORMAT`, a `_floats.Floats` or `_blocks.Blocks`, with these methods:

- `fetch_key(e, keys, slot, head_dim)` and `fetch_value(e, values, slot, head_dim)` prefetch the lines that storing to a slot writes to.
- `store_key(e, x, keys, slot, head_dim)` and `store_value(e, x, values, slot, head_dim)` store the `head_dim` floats at the address x as
  the key or the value of a slot; here `head_dim` is an i64 value. No byte that belongs to another position is written.
- `store_keys(e, x, stride, keys, slot, head_dim)` and `store_values(e, x, stride, values, slot, head_dim)` do this for the LANES slots from
  `slot` on, a multiple of LANES. From slot to slot x is `stride` bytes apart. Whole vectors are written, so this is faster.
- `score_tile(e, queries, keys, scale, out, head_dim, ahead)`: out[q][PAGE] = scale * (query . key).
- `weigh_tile(e, weights, values, n_valid, accs, factors, head_dim, ahead)`: acc[q] = acc[q] * factor[q] + weights[q] @ values. Query q sees
  the first n_valid[q] positions, at least as many as the query before it. Values that it doesn't see may be infinite.

In `score_tile` and `weigh_tile`, `head_dim` is a Python integer. If `QUANTIZED` is true, queries and weights are quantized first, to memory
whose address is then passed in their place: by `quantize_query(e, query, memory, head_dim)`, and for one query's weights of a page, PAGE
floats, by `quantize_weights(e, weights, values, n_valid, memory, head_dim)`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def named(kind: str) -> Any:
    """Return the format of a type by its name. Raises ModuleNotFoundError for an unknown name."""
    return import_module(f".{kind}", __name__).FORMAT
