"""Rows of gated delta nets: see kernels/delta.py."""

from __future__ import annotations

from ....kernels import layout
from ....network.config import DeltaNets
from ....network.graph import N_TOKENS, Conv, DeltaNet, Tensor
from ..memory import address_of
from ..program import SOME_TOKENS, Program, float_bits
from .products import CHUNKS_A_THREAD


def conv(p: Program, node: Tensor) -> None:
    """The convolution; its queries and keys come out normalised, as the delta net behind it wants them."""
    assert isinstance(node.op, Conv)
    net = next((user.op for user in p.users[node.name] if isinstance(user.op, DeltaNet)), None)
    if net is None:
        raise p.error(
            f"the CPU backend computes '{node.name}' together with a delta net: only the NumPy backend can fetch it"
        )
    x, nets = p.compact(node.src[0]), nets_of(p)
    out = p.new(node.name, N_TOKENS, x.width)
    p.hidden.add(node.name)
    n_head = x.width // nets.head_dim
    a_chunk = some_of(p, n_head)
    args = [
        address_of(p.inputs.pointers),
        n_head,
        a_chunk,
        net.n_head_k,
        x.address,
        p.weight(node.src[1]),
        out.address,
        float_bits(net.eps),
        layer_offset(nets, node.op.layer),
    ]
    count = p.inputs.multiple("segments", -(-n_head // a_chunk))
    p.row(f"delta:conv:{nets.head_dim}:{nets.d_conv}", args, [x.address], [out.address], count=count)


def delta_net(p: Program, node: Tensor) -> None:
    op, nets = node.op, nets_of(p)
    assert isinstance(op, DeltaNet)
    qkv_node, alpha_node, beta_node, dt, a = node.src
    if qkv_node.name not in p.hidden:
        raise p.error(f"the CPU backend can't take '{qkv_node.name}' as given; use the NumPy backend")
    qkv, alpha, beta = (p.values[source.name] for source in node.src[:3])
    n_head, d = nets.n_head_v, nets.head_dim
    decay, strength = (p.take(4 * p.rooms[N_TOKENS] * n_head) for _ in range(2))
    (alpha_at, *strides), (beta_at, *others) = alpha.place(), beta.place()
    if strides != others:
        raise p.error(
            f"the CPU backend can't take '{alpha_node.name}' and '{beta_node.name}' from different places"
        )
    unit = p.unit(N_TOKENS)
    gates = [address_of(decay), address_of(strength)]
    args = [
        p.inputs.count(N_TOKENS),
        unit,
        alpha_at,
        beta_at,
        *strides,
        n_head,
        p.weight(dt),
        p.weight(a),
        *gates,
    ]
    p.row("delta:gates", args, [alpha.address, beta.address], gates, divisor=unit)
    out = p.new(node.name, N_TOKENS, n_head * d)
    out.others += decay, strength
    n_blocks = n_head * (d // layout.state_width(d))
    a_chunk = some_of(p, n_blocks)
    args = [
        address_of(p.inputs.pointers),
        op.n_head_k,
        n_head,
        int(op.tiled),
        a_chunk,
        qkv.address,
        *gates,
        out.address,
        layer_offset(nets, op.layer) + 4 * nets.n_state[0],
    ]
    p.row(
        f"delta:scan:{d}",
        args,
        [qkv.address, *gates],
        [out.address],
        count=p.inputs.multiple("segments", -(-n_blocks // a_chunk)),
    )


def nets_of(p: Program) -> DeltaNets:
    nets = p.model.config.delta_nets
    assert nets is not None
    return nets


def layer_offset(nets: DeltaNets, layer: int) -> int:
    """Of a layer's part of a state."""
    return 4 * layer * sum(nets.n_state)


def some_of(p: Program, n: int) -> int:
    """How many of a segment's `n` parts make a chunk: with many tokens one is enough."""
    return max(1, n // (CHUNKS_A_THREAD * p.n_threads)) if p.rooms[N_TOKENS] <= SOME_TOKENS else 1
