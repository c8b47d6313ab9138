"""Rows of attention: heads are normalised, rotated and stored; queries are computed against the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ....kernels import layout
from ....kernels.arguments import ATTEND, MERGE, ROTATE, STORE, Arguments
from ....network.graph import N_TOKENS, Columns, KVStore, Reshape, RMSNorm, Tensor
from ..fuse import Attend, RotateHeads, StoreHeads
from ..memory import Value, View, address_of
from ..program import SOME_TOKENS, Program
from .order import compact
from .registry import lowers

HEADS_AT_ONCE = 16
"""Heads that a chunk rotates if there are few tokens: that takes less than a microsecond."""
TOKENS_AT_ONCE = 8
"""Tokens whose heads a chunk rotates if there are many."""
SLOTS_AT_ONCE = 32
"""The most tokens for which a chunk stores a head: as many half floats as fit into a cache line."""
CHUNKS_PER_THREAD = 2
"""Chunks in which the heads of a few tokens are stored."""


@lowers(Reshape)
def view(p: Program, node: Tensor) -> None:
    """Give the source's memory another name."""
    p.values[node.name] = p.values[node.src[0].name]


@lowers(Columns)
def columns(p: Program, node: Tensor) -> None:
    """Make a view of some columns of each group."""
    assert isinstance(node.op, Columns)
    x = compact(p, node.src[0])
    _, n_group, count = node.shape
    assert isinstance(n_group, int)
    assert isinstance(count, int)
    width = x.width // n_group
    if width == count:
        p.values[node.name] = x
        return
    p.values[node.name] = replace(
        x, width=n_group * count, columns=View(4 * node.op.first, 4 * x.width, count, 4 * width)
    )


# -- heads: normalised if there is a weight, rotated if n_rot isn't 0 -----------------------------------------------------


def heads_of(
    p: Program, node: Tensor, weight: Sequence[Tensor] = (), eps: float = 0.0, n_rot: int = 0
) -> dict[str, Any]:
    """Return the arguments that rotating and storing heads share. `weight` is that of the norm, or empty."""
    _, n_head, head_dim = node.shape
    return {
        "n_head": n_head,
        "head_dim": head_dim,
        "weight": p.weight(weight[0]) if weight else 0,
        "eps": eps,
        "table": address_of(p.inputs.angles),
        "n_rot": n_rot,
    }


def head_row(
    p: Program, kernel: Arguments, *variant: object, dim: str, unit: int, n_head: int, **args: Any
) -> None:
    """Add a row over the heads of all tokens (or rows). A chunk has `unit` of them."""
    amount = p.inputs.multiple(dim, n_head)
    count = p.inputs.count(dim)
    p.row(kernel, *variant, amount=amount, divisor=unit, count=count, unit=unit, n_head=n_head, **args)


def rotated(p: Program, x: Value, out: Value, heads: dict[str, Any]) -> None:
    """Add a row that normalises and rotates the heads of x. `out` may be the memory of x."""
    place = x.place()
    head_row(
        p,
        ROTATE,
        dim=out.dim,
        unit=HEADS_AT_ONCE if p.rooms[out.dim] <= SOME_TOKENS else TOKENS_AT_ONCE * heads["n_head"],
        x=place.address,
        **heads,
        out=out.address,
        token_bytes=place.token_bytes,
        head_bytes=place.group_bytes if x.columns else 4 * heads["head_dim"],
    )


def place_for(p: Program, node: Tensor, x: Value) -> Value:
    """Return where the heads of x go: they are changed in place, unless another node needs them unchanged."""
    if not p.may_overwrite(x):
        return p.new(node.name, x.dim, x.width)
    p.values[node.name] = x
    return x


@lowers(RotateHeads)
def rotate(p: Program, node: Tensor) -> None:
    assert isinstance(node.op, RotateHeads)
    x_node, *weight = node.src
    x = p.values[x_node.name]
    rotated(
        p, x, place_for(p, node, x), heads_of(p, node, weight, eps=node.op.eps, n_rot=node.op.params.n_rot)
    )


def norm(p: Program, node: Tensor) -> None:
    """Add a norm of heads that isn't followed by a rotation."""
    assert isinstance(node.op, RMSNorm)
    x_node, weight = node.src
    x = p.values[x_node.name]
    rotated(p, x, place_for(p, node, x), heads_of(p, node, [weight], eps=node.op.eps))


def store(p: Program, layer: int, k: Value, v: Value, heads: dict[str, Any]) -> None:
    """Add a row that normalises and rotates keys, and stores keys and values in the cache."""
    heads_at_once = max(1, heads["n_head"] // (CHUNKS_PER_THREAD * p.n_threads))
    head_row(
        p,
        STORE,
        p.cache.types.k,
        p.cache.types.v,
        dim=k.dim,
        unit=min(p.rooms[k.dim] * heads_at_once, SLOTS_AT_ONCE),
        k=k.address,
        **heads,
        v=v.address,
        pages=address_of(p.inputs.pages),
        slots=address_of(p.inputs.slots),
        layer_offset=p.cache.in_page(layer),
    )


@lowers(KVStore)
def kv_store(p: Program, node: Tensor) -> None:
    """Store keys without a norm or rotation."""
    assert isinstance(node.op, KVStore)
    k, v = (compact(p, source) for source in node.src)
    store(p, node.op.layer, k, v, heads_of(p, node))


@lowers(StoreHeads)
def store_heads(p: Program, node: Tensor) -> None:
    """Store rotated keys."""
    assert isinstance(node.op, StoreHeads)
    k, v, *weight = node.src
    rotation = node.op.rotation
    heads = heads_of(p, node, weight, eps=rotation.eps, n_rot=rotation.params.n_rot)
    store(p, node.op.layer, compact(p, k), compact(p, v), heads)


# -- queries against the cache --------------------------------------------------------------------------------------------


@lowers(Attend)
def attention(p: Program, node: Tensor) -> None:
    assert isinstance(node.op, Attend)
    c = p.model.config
    if c.head_dim % layout.LANES:
        raise p.error(
            f"heads of {c.head_dim} values, the CPU backend expects a multiple of {layout.LANES}: use --backend numpy"
        )
    x = compact(p, node.src[0])
    out = p.new(node.name, N_TOKENS, c.n_head * c.head_dim)
    pointers = address_of(p.inputs.pointers)
    p.row(
        ATTEND,
        c.head_dim,
        p.cache.types.k,
        p.cache.types.v,
        amount=p.inputs.count("attend"),
        q=x.address,
        out=out.address,
        pointers=pointers,
        n_head=c.n_head,
        n_head_kv=c.n_head_kv,
        scale=node.op.scale,
        layer_offset=p.cache.in_page(node.op.layer),
    )
    kind, quantized = p.quantized(node, out)
    p.token_row(
        MERGE, c.head_dim, kind, of=out, out=out.address, pointers=pointers, n_head=c.n_head, **quantized
    )
