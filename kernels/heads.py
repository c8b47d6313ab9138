"""Normalise and rotate heads: queries, and keys on their way into the KV cache. Values are stored with the keys."""

from __future__ import annotations

from typing import Any

from numba import njit

from . import kv, layout
from .activations import each_lane, rms_norm
from .arguments import ROTATE, STORE
from .reading import reader
from .simd import LANES, Address, Emitter, f32, i64, intrinsic_of, load_i64, void

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


@njit(inline="always")
def are_together(a, t, n_tokens):
    """Whether the LANES tokens from t on have slots of one page that follow each other, the first of them a multiple of LANES."""
    if t < 0 or t + LANES > n_tokens:
        return False
    page, slot = load_i64(a.pages + 8 * t), load_i64(a.slots + 8 * t)
    if slot % LANES:
        return False
    n = 1
    while (
        n < LANES and load_i64(a.slots + 8 * (t + n)) == slot + n and load_i64(a.pages + 8 * (t + n)) == page
    ):
        n += 1
    return n == LANES


def build_store(k_type: str, v_type: str) -> Any:
    """Rotate keys, and store keys and values in their pages. Tokens are taken in blocks of `unit`, in each block one head after the other:
    neighbours in a page share cache lines. LANES tokens that are together are stored together, by the chunk that has the first one."""
    read = reader(STORE)
    (k_block, k_bytes), (v_block, v_bytes) = layout.KV_TYPES[k_type], layout.KV_TYPES[v_type]
    of_keys, of_values = kv.named(k_type), kv.named(v_type)

    @intrinsic_of(void, i64, i64, i64, i64)
    def fetch_slot(e: Emitter, keys: Any, values: Any, slot: Any, head_dim: Any) -> None:
        of_keys.fetch_key(e, keys, slot, head_dim)
        of_values.fetch_value(e, values, slot, head_dim)

    @intrinsic_of(void, i64, i64, i64, i64, i64, i64)
    def store_one(e: Emitter, k: Any, v: Any, keys: Any, values: Any, slot: Any, head_dim: Any) -> None:
        of_values.store_value(e, v, values, slot, head_dim)
        of_keys.store_key(e, k, keys, slot, head_dim)

    @intrinsic_of(void, i64, i64, i64, i64, i64, i64, i64)
    def store_together(
        e: Emitter, k: Any, v: Any, stride: Any, keys: Any, values: Any, slot: Any, head_dim: Any
    ) -> None:
        of_values.store_values(e, v, stride, values, slot, head_dim)
        of_keys.store_keys(e, k, e.b.shl(head_dim, e.int(2)), keys, slot, head_dim)

    @njit(inline="always")
    def store_tokens(a, head, t, end, scratch):
        """Store a head of the tokens from t to end, and of those after them that are together with one of these."""
        keys_bytes = PAGE * (a.head_dim // k_block) * k_bytes
        values_bytes = PAGE * (a.head_dim // v_block) * v_bytes
        in_page = a.layer_offset + head * (keys_bytes + values_bytes)
        head_bytes = 4 * a.head_dim
        n_tokens, token_bytes = load_i64(a.count), head_bytes * a.n_head
        together = t - load_i64(a.slots + 8 * t) % LANES
        if together < t and are_together(a, together, n_tokens):
            t = together + LANES  # another chunk stores these
        while t < end:
            keys = load_i64(a.pages + 8 * t) + in_page
            values = keys + keys_bytes
            slot = load_i64(a.slots + 8 * t)
            k = a.k + token_bytes * t + head_bytes * head
            v = a.v + token_bytes * t + head_bytes * head
            n = 1
            if are_together(a, t, n_tokens):
                n = LANES
            else:
                fetch_slot(keys, values, slot, a.head_dim)
            for i in range(n):
                angles = a.table + 4 * a.n_rot * (t + i)
                to = scratch + head_bytes * i
                rotate_one(k + token_bytes * i, to, a.weight, a.eps, angles, a.n_rot, a.head_dim)
            if n == LANES:
                store_together(scratch, v, token_bytes, keys, values, slot, a.head_dim)
            else:
                store_one(scratch, v, keys, values, slot, a.head_dim)
            t += n

    def store(args, chunk, scratch):
        a = read(args)
        block = chunk // a.n_head
        first = block * a.unit
        n = min(a.unit, load_i64(a.count) - first)  # tokens in the block
        i = (chunk - block * a.n_head) * a.unit
        end = min(i + a.unit, n * a.n_head)
        while i < end:
            head = i // n
            t = i - head * n
            count = min(end - i, n - t)
            store_tokens(a, head, first + t, first + t + count, scratch)
            i += count

    return store
