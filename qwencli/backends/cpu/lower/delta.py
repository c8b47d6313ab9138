"""Rows of gated delta nets: see kernels/delta.py."""

from __future__ import annotations

from ....kernels import layout
from ....kernels.arguments import CONV, GATES, NORMALISE, SCAN
from ....network.config import DeltaNets
from ....network.graph import N_TOKENS, Conv, DeltaNet, Tensor
from ..fuse import DeltaConv
from ..memory import Args, Value, address_of
from ..program import SOME_TOKENS, Program
from .order import compact, in_order
from .products import CHUNKS_PER_THREAD
from .registry import lowers


@lowers(DeltaConv)
@lowers(Conv)
def conv(p: Program, node: Tensor) -> None:
    """Add a convolution. If only a delta net reads the result, it scales queries and keys too."""
    op = node.op
    assert isinstance(op, (DeltaConv, Conv))
    n_head_k, eps = (op.n_head_k, op.eps) if isinstance(op, DeltaConv) else (0, 0.0)
    x, nets = compact(p, node.src[0]), nets_of(p)
    out = p.new(node.name, N_TOKENS, x.width)
    n_head = x.width // nets.head_dim
    chunk_heads = parts_per_chunk(p, n_head)
    p.row(
        CONV,
        nets.head_dim,
        nets.d_conv,
        amount=p.inputs.multiple("segments", -(-n_head // chunk_heads)),
        pointers=address_of(p.inputs.pointers),
        n_head=n_head,
        chunk_heads=chunk_heads,
        n_head_k=n_head_k,
        x=x.address,
        weight=p.weight(node.src[1]),
        out=out.address,
        eps=eps,
        layer_offset=p.cache.in_state(op.layer),
    )


@lowers(DeltaNet)
def delta_net(p: Program, node: Tensor) -> None:
    op, nets = node.op, nets_of(p)
    assert isinstance(op, DeltaNet)
    qkv_node, alpha_node, beta_node, dt, a = node.src
    alpha, beta = (p.values[source.name] for source in (alpha_node, beta_node))
    if alpha.place().strides != beta.place().strides:  # one is a view, the other is fed
        alpha, beta = in_order(p, alpha), in_order(p, beta)
    qkv = compact(p, qkv_node)
    if not isinstance(qkv_node.op, DeltaConv):
        qkv = normalised(p, qkv, op)
    n_head, d = nets.n_head_v, nets.head_dim
    decay, strength = (p.take(4 * p.rooms[N_TOKENS] * n_head) for _ in range(2))
    gates: Args = {"decay": address_of(decay), "strength": address_of(strength)}
    place = alpha.place()
    out = p.new(node.name, N_TOKENS, n_head * d)
    out.others += decay, strength
    p.token_row(
        GATES,
        of=out,
        alpha=place.address,
        beta=beta.place().address,
        token_bytes=place.token_bytes,
        group_heads=place.n_columns,
        group_bytes=place.group_bytes,
        n_head=n_head,
        dt=p.weight(dt),
        a=p.weight(a),
        **gates,
    )
    n_blocks = n_head * (d // layout.state_width(d))
    chunk_blocks = parts_per_chunk(p, n_blocks)
    p.row(
        SCAN,
        d,
        amount=p.inputs.multiple("segments", -(-n_blocks // chunk_blocks)),
        pointers=address_of(p.inputs.pointers),
        n_head_k=op.n_head_k,
        n_head_v=n_head,
        tiled=int(op.tiled),
        chunk_blocks=chunk_blocks,
        qkv=qkv.address,
        **gates,
        out=out.address,
        layer_offset=p.cache.in_state(op.layer) + 4 * nets.n_state[0],
    )


def normalised(p: Program, qkv: Value, op: DeltaNet) -> Value:
    """Add a row that scales queries and keys, as the convolution hasn't. Returns a copy, whose memory is freed with that of `qkv`."""
    d = nets_of(p).head_dim
    out = Value(qkv.dim, qkv.width, p.take(4 * p.rooms[qkv.dim] * qkv.width))
    qkv.others.append(out.memory)
    p.token_row(
        NORMALISE,
        d,
        of=qkv,
        x=qkv.address,
        n_head=qkv.width // d,
        n_head_k=op.n_head_k,
        out=out.address,
        eps=op.eps,
    )
    return out


def nets_of(p: Program) -> DeltaNets:
    nets = p.model.config.delta_nets
    assert nets is not None
    return nets


def parts_per_chunk(p: Program, n: int) -> int:
    """Return how many of a segment's `n` parts make a chunk: with many tokens one is enough."""
    return max(1, n // (CHUNKS_PER_THREAD * p.n_threads)) if p.rooms[N_TOKENS] <= SOME_TOKENS else 1
