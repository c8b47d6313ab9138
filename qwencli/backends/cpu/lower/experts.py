"""Rows of mixtures of experts: choose each token's experts, sort the tokens by expert, multiply and sum. See kernels/experts.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....kernels import formats, layout
from ....kernels.arguments import COMBINE, ENTRY, GROUP, MANY, ONE, ROUTE, SPREAD
from ....network.graph import ExpertLinear, ExpertSum, Route, SwiGLU, Tensor, Weight
from ..memory import I64, Args, Bytes, Value, address_of
from ..program import SOME_TOKENS, Program, activation_kind, weight_info
from .order import compact
from .products import chunk_rows, scale_of
from .registry import lowers


@dataclass
class Routed(Value):
    """A route: `memory` is the experts of each token, i32 [tokens, width], and `weights` are theirs, f32.

    `places` has the place of each slot, i32 (None: its number), and `entries` is the address of those of experts that have tokens.
    `chunks` has for each product the chunks per expert; `totals` is the address of its chunks in all.
    """

    weights: Bytes = field(default_factory=lambda: np.zeros(0, np.uint8))
    places: Bytes | None = None
    entries: int = 0
    chunks: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    totals: int = 0
    n_products: int = 0
    """The products that are in `chunks` by now."""
    spread: dict[tuple[str, str], Args] = field(default_factory=dict)
    """The addresses of activations that are copied to places, by name and kind."""

    def read(self, n: int, shape: Sequence[int]) -> Any:
        """Return the experts of `n` tokens, i32 [n, width], and their weights, f32."""
        experts, weights = self._numbers(self.memory, np.int32, n), self._numbers(self.weights, np.float32, n)
        return experts.copy(), weights.copy()

    def write(self, rows: Any) -> None:
        experts, weights = rows
        self._numbers(self.memory, np.int32, len(experts))[:] = experts
        self._numbers(self.weights, np.float32, len(weights))[:] = weights

    def _numbers(self, memory: Bytes, kind: type[np.number[Any]], n: int) -> NDArray[Any]:
        return memory[: 4 * n * self.width].view(kind).reshape(n, self.width)


@lowers(Route)
def route(p: Program, node: Tensor) -> None:
    assert isinstance(node.op, Route)
    logits = compact(p, node.src[0])
    routed = new_route(p, node)
    p.token_row(
        ROUTE,
        of=logits,
        logits=logits.address,
        n_expert=logits.width,
        n_used=routed.width,
        normalised=int(node.op.normalised),
        ids=routed.address,
        weights=address_of(routed.weights),
    )
    group(p, node, routed)


def new_route(p: Program, node: Tensor) -> Routed:
    """Make memory for a route."""
    dim, n_used = node.shape
    n_expert = node.src[0].shape[1]
    assert isinstance(dim, str)
    assert isinstance(n_used, int)
    assert isinstance(n_expert, int)
    n_slots = p.rooms[dim] * n_used
    ids, *others = (
        p.take(n) for n in (4 * n_slots, 4 * n_slots, 4 * n_slots, 8 * n_expert, ENTRY.n_bytes * n_expert)
    )
    products = p.n_readers(node, ExpertLinear)
    chunks, totals = np.zeros(products, np.int64), np.zeros(products, np.int64)
    routed = Routed(dim, n_used, ids, others=others, weights=others[0], chunks=chunks, totals=p.keep(totals))
    p.values[node.name] = routed
    return routed


def group(p: Program, node: Tensor, routed: Routed) -> None:
    """Add a row that sorts the slots by expert, if there are many tokens."""
    if p.form(routed.dim) == "one":
        return
    _, routed.places, ends, entries = routed.others
    routed.entries = address_of(entries)
    p.row(
        GROUP,
        amount="one",
        one=1,
        count=p.inputs.count(routed.dim),
        n_used=routed.width,
        n_expert=node.src[0].shape[1],
        ids=routed.address,
        places=address_of(routed.places),
        ends=address_of(ends),
        entries=routed.entries,
        n_products=len(routed.chunks),
        chunks=p.keep(routed.chunks),
        totals=routed.totals,
    )


def has_slots(node: Tensor) -> bool:
    """Whether a tensor has a row for each slot of a token: it is a product with experts, or computed from one."""
    return isinstance(node.op, ExpertLinear) or (
        isinstance(node.op, SwiGLU) and len(node.shape) == 3 and has_slots(node.src[0])
    )


@lowers(ExpertLinear)
def linear(p: Program, node: Tensor) -> None:
    """Add a product of each expert with its tokens."""
    weight, x_node, _ = node.src
    assert isinstance(weight.op, Weight)
    info = weight_info(node)
    x = compact(p, x_node)
    routed = routed_by(p, node)
    n_expert, n_rows, n_cols = (d for d in weight.shape if isinstance(d, int))
    row_bytes = info.type.n_bytes(n_cols)
    inputs, steps = activations(p, x_node, x, activation_kind(info), routed)
    out = p.new(node.name, x.dim, n_rows, routed.width)
    out.at_places = routed.places
    n_chunks, chunk_rows = chunks_of_expert(
        p, n_rows, row_bytes, min(n_expert, p.rooms[x.dim] * routed.width), x.dim
    )
    product: Args = {
        "count": p.inputs.count(x.dim),
        "chunk_rows": chunk_rows,
        "w": p.weight(weight, list(formats.FORMATS)),
        "row_bytes": row_bytes,
        "n_rows": n_rows,
        "n_cols": n_cols,
        **inputs,
        "y": out.address,
        "y_stride": 4 * n_rows,
        "bias": 0,
        "residual": 0,
        "scale": scale_of(p, weight),
        "ahead": p.tiles.ahead(info.type.name),
        # the stride in the file's tensor: the weight may be only some of its rows
        "w_step": row_bytes * info.shape[1],
        "scale_step": 4 if weight.op.scale else 0,
        **steps,
    }
    few = p.tiles.one(info.type.name, n_cols)
    if p.form(x.dim) == "one":
        p.row(
            ONE,
            amount=p.inputs.multiple(x.dim, routed.width * n_chunks),
            calls={"one": few},
            expert_chunks=n_chunks,
            ids=routed.address,
            **product,
        )
    else:
        total = routed.totals + routed.chunks.itemsize * routed.n_products
        routed.chunks[routed.n_products] = n_chunks
        routed.n_products += 1
        p.row(
            MANY,
            amount=total,
            calls={"few": few, "many": p.tiles.many(info.type.name)},
            expert_chunks=n_chunks,
            entries=routed.entries,
            **product,
        )


def activations(p: Program, node: Tensor, x: Value, kind: str, routed: Routed) -> tuple[Args, Args]:
    """Return a product's activations, and their bytes from place to place.

    A row that a token has only once is copied to all of its places, but not for a single token: then all slots read the same row. Rows in
    the order of slots are each copied to their place.
    """
    arrays = p.activations(x, kind)
    n_bytes = (0 if kind != "float" else 4 * x.width, *layout.activation_bytes(kind, x.width))
    sizes = dict(zip(arrays, n_bytes))
    steps = {f"{array}_step": size for array, size in sizes.items()}
    if routed.places is None:
        return arrays, steps if x.per_token > 1 else dict.fromkeys(steps, 0)
    if x.at_places is not None:
        return arrays, steps
    if (node.name, kind) not in routed.spread:
        n_places = p.rooms[x.dim] * routed.width
        buffers = {array: p.take(n_places * size) for array, size in sizes.items()}
        x.others += buffers.values()
        places = {array: address_of(buffers[array]) if sizes[array] else 0 for array in arrays}
        routed.spread[node.name, kind] = places
        copied = {
            f"{array}_{field}": value
            for array in arrays
            for field, value in (
                ("source", arrays[array]),
                ("target", places[array]),
                ("n_bytes", sizes[array]),
            )
        }
        p.token_row(
            SPREAD, of=x, n_used=routed.width // x.per_token, places=address_of(routed.places), **copied
        )
    return routed.spread[node.name, kind], steps


@lowers(ExpertSum)
def combine(p: Program, node: Tensor, plus: Value | None = None) -> None:
    x, routed = p.values[node.src[0].name], routed_by(p, node)
    out = p.new(node.name, x.dim, x.width)
    p.token_row(
        COMBINE,
        of=out,
        y=x.address,
        places=0 if x.at_places is None else address_of(x.at_places),
        weights=address_of(routed.weights),
        n_used=routed.width,
        n_cols=x.width,
        out=out.address,
        residual=plus.address if plus else 0,
    )


def routed_by(p: Program, node: Tensor) -> Routed:
    routed = p.values[node.src[-1].name]
    assert isinstance(routed, Routed)
    return routed


def chunks_of_expert(p: Program, n_rows: int, row_bytes: int, n_experts: int, dim: str) -> tuple[int, int]:
    """Return the number of chunks of each expert in a product with `n_experts`, all of about the same size, and the rows in a chunk.

    Even with many tokens each expert has few. So chunks may be as large as for few tokens; then they prefetch less that another thread
    reads.
    """
    unit = int(layout.LANES if p.rooms[dim] == 1 else layout.PANEL_ROWS)
    room = min(p.rooms[dim], SOME_TOKENS)
    n_chunks = -(-n_rows // chunk_rows(p.n_threads, n_rows * n_experts, row_bytes, room))
    rows = unit * -(-n_rows // (unit * n_chunks))
    return -(-n_rows // rows), rows
