"""Rows in order: copies of values that are views of columns, or whose rows lie at the places of slots (see kernels/experts.py)."""

from __future__ import annotations

from ....kernels.arguments import GATHER, ROTATE
from ....network.graph import Tensor
from ..memory import Value, address_of
from ..program import Program


def compact(p: Program, node: Tensor) -> Value:
    """Return the value of a node for a kernel that reads contiguous rows: a copy if it is a view. Slots may lie at their places."""
    value = p.values[node.name]
    return in_order(p, value) if value.columns else value


def in_order(p: Program, x: Value) -> Value:
    """Return x with its rows contiguous, in the order of tokens and slots: x itself, or a copy, whose memory is freed with that of x."""
    if x.is_in_order:
        return x
    out = Value(x.dim, x.width, p.take(4 * p.rooms[x.dim] * x.per_token * x.width), per_token=x.per_token)
    x.others.append(out.memory)
    if x.at_places is not None:
        p.token_row(GATHER, of=x, x=x.address, ids=address_of(x.at_places), n_cols=x.width, out=out.address)
        return out
    place = x.place()  # its groups of columns are heads that are neither normalised nor rotated
    n_head = x.width // place.n_columns
    unit = p.unit(x.dim) * n_head
    p.row(
        ROTATE,
        amount=p.inputs.multiple(x.dim, n_head),
        divisor=unit,
        count=p.inputs.count(x.dim),
        unit=unit,
        x=place.address,
        n_head=n_head,
        head_dim=place.n_columns,
        weight=0,
        eps=0.0,
        table=0,
        n_rot=0,
        out=out.address,
        token_bytes=place.token_bytes,
        head_bytes=place.group_bytes,
    )
    return out
