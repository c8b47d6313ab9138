"""Rows of mixtures of experts: tokens get theirs and are put together by expert, see kernels/experts.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from ....kernels import layout
from ....network.graph import ExpertLinear, Route, Tensor, Weight
from ..memory import I64, Value, address_of
from ..program import SOME_TOKENS, Program, activation_kind, weight_info
from .products import chunk_rows, residual_of, scale_of


@dataclass
class Routed(Value):
    """A route: the experts of each token, i32 [tokens, width], are its memory. Beside it are addresses: of their weights, of their places
    (0: a slot's place is its number), of the entries of experts that have tokens; and for each product the chunks that an expert has."""

    weights: int = 0
    places: int = 0
    entries: int = 0
    chunks: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    totals: int = 0
    n_products: int = 0
    """How many have their chunks by now."""
    spread: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """Where activations lie that were copied to the places, by their name and kind."""


def route(p: Program, node: Tensor) -> None:
    assert isinstance(node.op, Route)
    logits = p.compact(node.src[0])
    dim, n_expert, n_used = logits.dim, logits.width, node.op.n_used
    count, unit, n_slots = p.inputs.count(dim), p.unit(dim), p.rooms[dim] * n_used
    ids, weights, places, ends, entries = others = [
        p.take(n)
        for n in (4 * n_slots, 4 * n_slots, 4 * n_slots, 8 * n_expert, 8 * layout.ENTRY_WORDS * n_expert)
    ]
    products = sum(isinstance(user.op, ExpertLinear) for user in p.users[node.name])
    chunks, totals = np.zeros(products, np.int64), np.zeros(products, np.int64)
    routed = Routed(
        dim, n_used, ids, others=others[1:], weights=address_of(weights), chunks=chunks, totals=p.keep(totals)
    )
    p.values[node.name] = routed
    p.hidden.add(node.name)
    args = [
        count,
        unit,
        logits.address,
        n_expert,
        n_used,
        int(node.op.normalised),
        routed.address,
        routed.weights,
    ]
    p.row("experts:route", args, [logits.address], [routed.address, routed.weights], divisor=unit)
    if p.form(dim) == "many":
        routed.places, routed.entries = address_of(places), address_of(entries)
        args = [
            count,
            1,
            n_used,
            n_expert,
            routed.address,
            routed.places,
            address_of(ends),
            routed.entries,
            products,
            p.keep(chunks),
            routed.totals,
        ]
        p.row(
            "experts:group",
            args,
            [routed.address],
            [routed.places, address_of(ends), routed.entries],
            count_in=1,
        )


def linear(p: Program, node: Tensor) -> None:
    """A product of each expert with its tokens."""
    weight, x_node, _ = node.src
    assert isinstance(weight.op, Weight)
    info, x, routed = weight_info(node), p.compact(x_node), routed_by(p, node)
    n_expert, n_rows, n_cols = (d for d in weight.shape if isinstance(d, int))
    address, row_bytes = p.weight(weight, list(layout.FORMATS)), info.type.n_bytes(n_cols)
    x_addresses, steps = activations(p, x_node, x, activation_kind(info), routed)
    out = p.new(node.name, x.dim, n_rows, routed.width)
    n_chunks, rows = chunks_of_expert(
        p, n_rows, row_bytes, min(n_expert, p.rooms[x.dim] * routed.width), x.dim
    )
    steps = [row_bytes * info.shape[1], 4 if weight.op.scale else 0, *steps]
    record = [
        p.inputs.count(x.dim),
        rows,
        address,
        row_bytes,
        n_rows,
        n_cols,
        *x_addresses,
        out.address,
        4 * n_rows,
        0,
        0,
        *(scale_of(p, weight) or [0]),
    ]
    calls, reads = [p.tiles.one(info.type.name, n_cols)], [a for a in x_addresses if a]
    if p.form(x.dim) == "one":
        count = p.inputs.multiple(x.dim, routed.width * n_chunks)
        p.row(
            "experts:one",
            [0, 0, n_chunks, routed.address, *steps, *record],
            [*reads, routed.address],
            [out.address],
            count=count,
            calls=calls,
        )
    else:
        count = routed.totals + 8 * routed.n_products
        routed.chunks[routed.n_products] = n_chunks
        routed.n_products += 1
        p.row(
            "experts:many",
            [0, 0, n_chunks, routed.entries, *steps, *record],
            [*reads, routed.entries],
            [out.address],
            count=count,
            calls=[*calls, p.tiles.many(info.type.name)],
        )


def activations(p: Program, node: Tensor, x: Value, kind: str, routed: Routed) -> tuple[list[int], list[int]]:
    """Where a product's x, quants, scales and sums are, 0 for what it doesn't read, and their bytes from one place to the next.

    What a token has once is copied to its places, but for a single token, whose slots all read the same.
    """
    quantized = p.quantized_as(x, kind)
    arrays = [0 if any(quantized) else x.address, *quantized]
    steps = [4 * x.width if arrays[0] else 0, *layout.activation_bytes(kind, x.width)]
    if x.per_token > 1:
        return arrays, steps
    if p.form(x.dim) == "one":
        return arrays, [0] * len(steps)
    if (node.name, kind) not in routed.spread:
        buffers = [p.take(p.rooms[x.dim] * routed.width * step) for step in steps]
        x.others += buffers
        routed.spread[node.name, kind] = places = [
            address_of(buffer) if step else 0 for buffer, step in zip(buffers, steps)
        ]
        args = [
            p.inputs.count(x.dim),
            p.unit(x.dim),
            routed.width,
            routed.places,
            *chain(*zip(arrays, places, steps)),
        ]
        p.row(
            "experts:spread",
            args,
            [routed.places, *(a for a in arrays if a)],
            [a for a in places if a],
            divisor=p.unit(x.dim),
        )
    return routed.spread[node.name, kind], steps


def combine(p: Program, node: Tensor) -> None:
    """The sum over the experts and, where it is only added to something, that sum."""
    x, routed = p.values[node.src[0].name], routed_by(p, node)
    target, residual = residual_of(p, node)
    out, unit = p.new(target.name, x.dim, x.width), p.unit(x.dim)
    args = [
        p.inputs.count(x.dim),
        unit,
        x.address,
        routed.places,
        routed.weights,
        routed.width,
        x.width,
        out.address,
        residual.address if residual else 0,
    ]
    reads = [x.address, routed.places, routed.weights, *([residual.address] if residual else [])]
    p.row("experts:combine", args, reads, [out.address], divisor=unit)
    p.done.add(target.name)


def routed_by(p: Program, node: Tensor) -> Routed:
    routed = p.values[node.src[-1].name]
    if not isinstance(routed, Routed):
        raise p.error(f"the CPU backend can't take '{node.src[-1].name}' as given; use the NumPy backend")
    return routed


def chunks_of_expert(p: Program, n_rows: int, row_bytes: int, n_experts: int, dim: str) -> tuple[int, int]:
    """Of a product with so many experts: how many chunks each has, all of about the same size, and how many rows these have.

    An expert has few tokens even where there are many: chunks may be as large as for few, and then fetch less that another thread takes.
    """
    unit = int(layout.LANES if p.rooms[dim] == 1 else layout.PANEL_ROWS)
    n_chunks = -(-n_rows // chunk_rows(p, n_rows * n_experts, row_bytes, min(p.rooms[dim], SOME_TOKENS)))
    rows = unit * -(-n_rows // (unit * n_chunks))
    return -(-n_rows // rows), rows
