"""Heads normalised and rotated: queries, and keys on their way into the KV cache, where values go with them."""

from __future__ import annotations

from typing import Any

from . import kv, layout
from .activations import each_lane, rms_norm
from .ops import tokens_of
from .simd import F32, I32, Emitter, i64, intrinsic_of, load_i64, void

PAGE = layout.PAGE


def build(name: str, *variant: str) -> Any:
    return {"rotate": build_rotate, "store": build_store}[name](*variant)


def rotate_head(
    e: Emitter, x: Any, out: Any, weight: Any, eps: Any, table: Any, n_rot: Any, head_dim: Any
) -> None:
    """Normalise one head, if `weight` is not 0, and rotate it: value i with value i + n_rot / 2. `out` may be x.

    `table` has their n_rot / 2 cosines, then as many sines.
    """
    b = e.b
    has_norm = b.icmp_unsigned("!=", weight, e.int(0))
    with b.if_then(has_norm):
        rms_norm(e, x, weight, out, head_dim, b.bitcast(b.trunc(eps, I32), F32))
    with b.if_then(b.and_(b.not_(has_norm), b.icmp_unsigned("!=", x, out))):
        each_lane(e, head_dim, lambda offset, kind: e.store(e.load(kind, x, offset), out, offset))
    half = b.lshr(n_rot, e.int(1))
    half_bytes = b.shl(half, e.int(2))

    def rotate(offset: Any, kind: Any) -> None:
        first, second = e.load(kind, out, offset), e.load(kind, e.at(out, half_bytes), offset)
        cos, sin = e.load(kind, table, offset), e.load(kind, e.at(table, half_bytes), offset)
        e.store(b.fsub(b.fmul(first, cos), b.fmul(second, sin)), out, offset)
        e.store(b.fadd(b.fmul(second, cos), b.fmul(first, sin)), e.at(out, half_bytes), offset)

    each_lane(e, half, rotate)


rotate_one = intrinsic_of(void, *[i64] * 7)(rotate_head)


def build_rotate() -> Any:
    """args: count, unit, x, n_head, head_dim, weight or 0, eps (f32 bits), table, n_rot; out, bytes of x from token to token and from head
    to head. Queries; out, where they follow each other, may be x where they do so too.
    """

    def rotate(args, chunk, scratch):
        x, n_head, head_dim, weight = (
            load_i64(args + 16),
            load_i64(args + 24),
            load_i64(args + 32),
            load_i64(args + 40),
        )
        eps, table, n_rot = load_i64(args + 48), load_i64(args + 56), load_i64(args + 64)
        out, token_bytes, head_bytes = load_i64(args + 72), load_i64(args + 80), load_i64(args + 88)
        first, last = tokens_of(load_i64(args), load_i64(args + 8), chunk)
        for t in range(first, last):
            for head in range(n_head):
                to = out + 4 * head_dim * (t * n_head + head)
                rotate_one(
                    x + token_bytes * t + head_bytes * head,
                    to,
                    weight,
                    eps,
                    table + 4 * n_rot * t,
                    n_rot,
                    head_dim,
                )

    return rotate


def build_store(k_type: str, v_type: str) -> Any:
    """args: as rotate's for the keys, then values, address of each token's page, slots in these, offset of the layer in a page."""
    (k_block, k_bytes), (v_block, v_bytes) = layout.KV_TYPES[k_type], layout.KV_TYPES[v_type]

    @intrinsic_of(void, i64, i64, i64, i64, i64, i64)
    def store_head(e: Emitter, k: Any, v: Any, keys: Any, values: Any, slot: Any, head_dim: Any) -> None:
        kv.named(k_type).store_key(e, k, keys, slot, head_dim)
        kv.named(v_type).store_value(e, v, values, slot, head_dim)

    def store(args, chunk, scratch):
        k, n_head, head_dim, weight = (
            load_i64(args + 16),
            load_i64(args + 24),
            load_i64(args + 32),
            load_i64(args + 40),
        )
        eps, table, n_rot, v = (
            load_i64(args + 48),
            load_i64(args + 56),
            load_i64(args + 64),
            load_i64(args + 72),
        )
        pages, slots, layer_offset = load_i64(args + 80), load_i64(args + 88), load_i64(args + 96)
        first, last = tokens_of(load_i64(args), load_i64(args + 8), chunk)
        keys_bytes, values_bytes = (
            PAGE * (head_dim // k_block) * k_bytes,
            PAGE * (head_dim // v_block) * v_bytes,
        )
        for t in range(first, last):
            keys, slot = load_i64(pages + 8 * t) + layer_offset, load_i64(slots + 8 * t)
            for head in range(n_head):
                x = 4 * head_dim * (t * n_head + head)
                rotate_one(k + x, k + x, weight, eps, table + 4 * n_rot * t, n_rot, head_dim)
                store_head(k + x, v + x, keys, keys + keys_bytes, slot, head_dim)
                keys += keys_bytes + values_bytes

    return store
