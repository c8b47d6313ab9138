"""Normalise and rotate heads: queries, and keys on their way into the KV cache. Values are stored with the keys."""

from __future__ import annotations

from typing import Any

from . import kv, layout
from .activations import each_lane, rms_norm
from .arguments import ROTATE, STORE
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
        first = chunk * a.unit
        last = min(first + a.unit, load_i64(a.count) * a.n_head)
        t = first // a.n_head
        head = first - t * a.n_head
        for i in range(first, last):
            x = a.x + a.token_bytes * t + a.head_bytes * head
            angles = a.table + 4 * a.n_rot * t
            rotate_one(x, a.out + 4 * a.head_dim * i, a.weight, a.eps, angles, a.n_rot, a.head_dim)
            head += 1
            if head == a.n_head:
                t += 1
                head = 0

    return rotate


def build_store(k_type: str, v_type: str) -> Any:
    """Rotate keys, and store keys and values in their pages. A chunk has the tokens of one head, then those of the next: neighbours in a
    page share cache lines."""
    read = reader(STORE)
    (k_block, k_bytes), (v_block, v_bytes) = layout.KV_TYPES[k_type], layout.KV_TYPES[v_type]
    of_keys, of_values = kv.named(k_type), kv.named(v_type)

    @intrinsic_of(void, i64, i64, i64, i64)
    def fetch_slot(e: Emitter, keys: Any, values: Any, slot: Any, head_dim: Any) -> None:
        of_keys.fetch_key(e, keys, slot, head_dim)
        of_values.fetch_value(e, values, slot, head_dim)

    @intrinsic_of(void, i64, i64, i64, i64, i64, i64)
    def store_head(e: Emitter, k: Any, v: Any, keys: Any, values: Any, slot: Any, head_dim: Any) -> None:
        of_values.store_value(e, v, values, slot, head_dim)
        of_keys.store_key(e, k, keys, slot, head_dim)

    def store(args, chunk, scratch):
        a = read(args)
        keys_bytes = PAGE * (a.head_dim // k_block) * k_bytes
        values_bytes = PAGE * (a.head_dim // v_block) * v_bytes
        n_tokens = load_i64(a.count)
        first = chunk * a.unit
        last = min(first + a.unit, n_tokens * a.n_head)
        while first < last:
            head = first // n_tokens
            start = first - head * n_tokens
            end = min(start + last - first, n_tokens)
            in_page = a.layer_offset + head * (keys_bytes + values_bytes)
            for t in range(start, end):
                keys = load_i64(a.pages + 8 * t) + in_page
                slot = load_i64(a.slots + 8 * t)
                fetch_slot(keys, keys + keys_bytes, slot, a.head_dim)
                place = 4 * a.head_dim * (t * a.n_head + head)
                angles = a.table + 4 * a.n_rot * t
                rotate_one(a.k + place, scratch, a.weight, a.eps, angles, a.n_rot, a.head_dim)
                store_head(scratch, a.v + place, keys, keys + keys_bytes, slot, a.head_dim)
            first += end - start

    return store
