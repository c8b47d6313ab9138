"""Rows of attention: heads normalised, rotated and stored where they are used, queries against the cache."""

from __future__ import annotations

from dataclasses import replace

from ....kernels import layout
from ....network.graph import N_TOKENS, Attention, Columns, KVStore, Reshape, RMSNorm, Rope, Tensor
from ..memory import Value, View, address_of
from ..program import Program, float_bits, layer_bytes

KV = "the KV cache"  # what stores write and attention reads, for the order of rows


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


def head_norm(p: Program, node: Tensor) -> tuple[int, int]:
    """The weight of a head's norm (0 if it has none) and its eps, from the nodes that lead to `node`."""
    while isinstance(node.op, (Rope, Reshape)):
        node = node.src[0]
    if isinstance(node.op, RMSNorm) and len(node.shape) == 3:
        return p.weight(node.src[1]), float_bits(node.op.eps)
    return 0, 0


def rotation(p: Program, node: Tensor) -> list[int]:
    """The arguments that rotating and storing heads share."""
    x = p.values[node.name]
    _, n_head, head_dim = node.shape
    assert isinstance(n_head, int)
    assert isinstance(head_dim, int)
    if not isinstance(node.op, Rope):
        raise p.error(f"the CPU backend needs '{node.name}' to be rotated")
    angles, n_rot = address_of(p.inputs.angles), node.op.params.n_rot
    return [
        p.inputs.count(N_TOKENS),
        p.unit(N_TOKENS),
        x.place()[0],
        n_head,
        head_dim,
        *head_norm(p, node),
        angles,
        n_rot,
    ]


def in_place(p: Program, node: Tensor) -> None:
    """From now on the memory of `node` holds its heads rotated, and no longer as before."""
    x = p.values[node.name]
    p.hidden |= {name for name, value in p.values.items() if value.memory is x.memory}
    p.hidden.remove(node.name)


def rotate(p: Program, node: Tensor) -> Value:
    """Queries, in place unless they are columns of another tensor."""
    args, x = rotation(p, node), p.values[node.name]
    if x.columns is None:
        in_place(p, node)
        out, strides = x, (4 * x.width, 4 * p.model.config.head_dim)
    else:
        out, strides = p.new(node.name, x.dim, x.width), (x.columns.stride, x.columns.group_stride)
        p.hidden.remove(node.name)
    p.row(
        "heads:rotate", [*args, out.address, *strides], [x.address], [out.address], divisor=p.unit(N_TOKENS)
    )
    return out


def kv_store(p: Program, node: Tensor) -> None:
    assert isinstance(node.op, KVStore)
    k, v = node.src
    keys, values = p.compact(k).address, p.compact(v).address
    pages, slots = address_of(p.inputs.pages), address_of(p.inputs.slots)
    args = [*rotation(p, k), values, pages, slots, node.op.layer * layer_bytes(p.model, p.types)]
    in_place(p, k)
    p.row(f"heads:store:{p.types.k}:{p.types.v}", args, [keys, values], [keys, KV], divisor=p.unit(N_TOKENS))


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
    pointers, writes = address_of(p.inputs.pointers), (out.address, "partials")
    args = [
        x.address,
        out.address,
        pointers,
        c.n_head,
        c.n_head_kv,
        float_bits(node.op.scale),
        store.op.layer * layer_bytes(p.model, p.types),
    ]
    spec = f"attention:attend:{c.head_dim}:{p.types.k}:{p.types.v}"
    p.row(spec, args, [x.address, KV], writes, count=p.inputs.count("attend"))
    kind, addresses = p.quantized(node, out)
    args = [p.inputs.count(N_TOKENS), p.unit(N_TOKENS), out.address, pointers, c.n_head, *addresses]
    p.row(
        f"attention:merge:{c.head_dim}:{kind}",
        args,
        ["partials"],
        [out.address, *addresses],
        divisor=p.unit(N_TOKENS),
    )
