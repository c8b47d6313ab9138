"""Rows of attention: heads normalised, rotated and stored where they are used, queries against the cache."""

from __future__ import annotations

from dataclasses import replace

from ....kernels import layout
from ....kernels.arguments import ATTEND, MERGE, ROTATE, STORE
from ....network.graph import N_TOKENS, Attention, Columns, KVStore, Reshape, RMSNorm, Rope, Tensor
from ..memory import Args, Value, View, address_of
from ..program import Program, layer_bytes


def view(p: Program, node: Tensor) -> None:
    """The source's memory under another name: reshaped, or a step of heads that is done where these are used."""
    p.values[node.name] = p.values[node.src[0].name]
    if not isinstance(node.op, Reshape):
        p.hidden.add(node.name)


def columns(p: Program, node: Tensor) -> None:
    """Some columns of each group, where they lie."""
    assert isinstance(node.op, Columns)
    x = p.compact(node.src[0])
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
    p.hidden.add(node.name)


def head_norm(p: Program, node: Tensor) -> tuple[int, float]:
    """The weight of a head's norm (0 if it has none) and its eps, from the nodes that lead to `node`."""
    while isinstance(node.op, (Rope, Reshape)):
        node = node.src[0]
    if isinstance(node.op, RMSNorm) and len(node.shape) == 3:
        return p.weight(node.src[1]), node.op.eps
    return 0, 0.0


def rotation(p: Program, node: Tensor) -> Args:
    """The arguments that rotating and storing heads share."""
    _, n_head, head_dim = node.shape
    assert isinstance(n_head, int)
    assert isinstance(head_dim, int)
    if not isinstance(node.op, Rope):
        raise p.error(f"the CPU backend needs '{node.name}' to be rotated")
    weight, eps = head_norm(p, node)
    return {
        "n_head": n_head,
        "head_dim": head_dim,
        "weight": weight,
        "eps": eps,
        "table": address_of(p.inputs.angles),
        "n_rot": node.op.params.n_rot,
    }


def in_place(p: Program, node: Tensor) -> None:
    """From now on the memory of `node` holds its heads rotated, and no longer as before."""
    x = p.values[node.name]
    p.hidden |= {name for name, value in p.values.items() if value.memory is x.memory}
    p.hidden.remove(node.name)


def rotate(p: Program, node: Tensor) -> Value:
    """Queries, in place unless they are columns of another tensor."""
    x = p.values[node.name]
    heads, place = rotation(p, node), x.place()
    if x.columns is None:
        in_place(p, node)
        out = x
    else:
        out = p.new(node.name, x.dim, x.width)
        p.hidden.remove(node.name)
    p.token_row(
        ROTATE,
        of=out,
        x=place.address,
        **heads,
        out=out.address,
        token_bytes=place.token_bytes,
        head_bytes=place.group_bytes if x.columns else 4 * p.model.config.head_dim,
    )
    return out


def kv_store(p: Program, node: Tensor) -> None:
    assert isinstance(node.op, KVStore)
    k, v = node.src
    keys, values = p.compact(k), p.compact(v)
    p.token_row(
        STORE,
        p.types.k,
        p.types.v,
        of=keys,
        k=keys.address,
        **rotation(p, k),
        v=values.address,
        pages=address_of(p.inputs.pages),
        slots=address_of(p.inputs.slots),
        layer_offset=node.op.layer * layer_bytes(p.model, p.types),
    )
    in_place(p, k)


def attention(p: Program, node: Tensor) -> None:
    assert isinstance(node.op, Attention)
    q, store = node.src
    assert isinstance(store.op, KVStore)
    c = p.model.config
    if c.head_dim % layout.LANES:
        raise p.error(
            f"heads of {c.head_dim} values, the CPU backend expects a multiple of {layout.LANES}: use --backend numpy"
        )
    x = rotate(p, q)
    out = p.new(node.name, N_TOKENS, c.n_head * c.head_dim)
    pointers = address_of(p.inputs.pointers)
    p.row(
        ATTEND,
        c.head_dim,
        p.types.k,
        p.types.v,
        amount=p.inputs.count("attend"),
        q=x.address,
        out=out.address,
        pointers=pointers,
        n_head=c.n_head,
        n_head_kv=c.n_head_kv,
        scale=node.op.scale,
        layer_offset=store.op.layer * layer_bytes(p.model, p.types),
    )
    kind, quantized = p.quantized(node, out)
    p.token_row(
        MERGE, c.head_dim, kind, of=out, out=out.address, pointers=pointers, n_head=c.n_head, **quantized
    )
