"""Normalise and rotate heads: queries, and keys on their way into the KV cache. Values are stored with the keys."""

from __future__ import annotations

from typing import Any

from . import kv, layout
from .activations import each_lane, rms_norm
from .arguments import ROTATE, STORE
from .ops import tokens_of
from .reading import reader
from .simd import Address, Emitter, f32, i64, intrinsic_of, load_i64, void

PAGE = layout.PAGE


def rotate_head(
    e: Emitter, x: Address, out: Address, weight: Address, eps: Any, table: Address, n_rot: Any, head_dim: Any
) -> None:
    """Normalise one head, unless `weight` is 0, and rotate it: value i with value i + n_rot / 2. `out` may be x.

    `table` has n_rot / 2 cosines, then n_rot / 2 sines.
    """
    b = e.b
    has_norm = b.icmp_unsigned("!=", weight, e.int(0))
    with b.if_then(has_norm):
        rms_norm(e, x, weight, out, head_dim, eps)
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


rotate_one = intrinsic_of(void, i64, i64, i64, f32, i64, i64, i64)(rotate_head)


def build_rotate() -> Any:
    """Rotate queries. Heads are contiguous in `out`; if they are in x too, `out` may be x."""
    read = reader(ROTATE)

    def rotate(args, chunk, scratch):
        a = read(args)
        first, last = tokens_of(args, chunk)
        for t in range(first, last):
            angles = a.table + 4 * a.n_rot * t
            for head in range(a.n_head):
                x = a.x + a.token_bytes * t + a.head_bytes * head
                out = a.out + 4 * a.head_dim * (t * a.n_head + head)
                rotate_one(x, out, a.weight, a.eps, angles, a.n_rot, a.head_dim)

    return rotate


def build_store(k_type: str, v_type: str) -> Any:
    """Rotate keys in place, and store keys and values in their pages."""
    read = reader(STORE)
    (k_block, k_bytes), (v_block, v_bytes) = layout.KV_TYPES[k_type], layout.KV_TYPES[v_type]

    @intrinsic_of(void, i64, i64, i64, i64, i64, i64)
    def store_head(e: Emitter, k: Any, v: Any, keys: Any, values: Any, slot: Any, head_dim: Any) -> None:
        kv.named(k_type).store_key(e, k, keys, slot, head_dim)
        kv.named(v_type).store_value(e, v, values, slot, head_dim)

    def store(args, chunk, scratch):
        a = read(args)
        first, last = tokens_of(args, chunk)
        keys_bytes = PAGE * (a.head_dim // k_block) * k_bytes
        values_bytes = PAGE * (a.head_dim // v_block) * v_bytes
        for t in range(first, last):
            angles = a.table + 4 * a.n_rot * t
            keys = load_i64(a.pages + 8 * t) + a.layer_offset
            slot = load_i64(a.slots + 8 * t)
            for head in range(a.n_head):
                place = 4 * a.head_dim * (t * a.n_head + head)
                k = a.k + place
                rotate_one(k, k, a.weight, a.eps, angles, a.n_rot, a.head_dim)
                store_head(k, a.v + place, keys, keys + keys_bytes, slot, a.head_dim)
                keys += keys_bytes + values_bytes

    return store
