"""Attention over the paged KV cache: queries against pages, and partial results merged and quantized. See kv/ for how a page is read.

Every query is computed in the same way, whatever else is in the step: its positions are read in splits of SPLIT positions, each page by
page with a running softmax, and splits are merged in order. So one token at a time, a whole prompt and a reused prefix give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from . import kv, layout
from .activations import quantize_row
from .arguments import ATTEND, ITEM, MERGE, PARTS, POINTERS
from .kv._tiles import VECTORS, Ahead
from .ops import tokens_of
from .products import lines_of
from .reading import load, reader
from .simd import F32, F32X16, I32, I32X16, LANES, Address, Emitter, f32, i64, intrinsic_of, load_i64, void

PAGE, SPLIT = layout.PAGE, layout.SPLIT
PAGES_A_SPLIT = SPLIT // PAGE
ITEM_BYTES, PARTS_BYTES = ITEM.n_bytes, PARTS.n_bytes
read_pointers, read_item, read_parts = reader(POINTERS), reader(ITEM), reader(PARTS)


def softmax_step(e: Emitter, scores: Address, state: Address, n_valid: Any) -> Any:
    """Turn a page's scores into weights relative to the running maximum, and update `state`: the maximum and the sum.

    Returns the factor by which the sums over earlier pages have to be multiplied.
    """
    b = e.b
    limit = e.splat(b.trunc(n_valid, I32))
    masked = []
    for j in range(VECTORS):
        index = ir.Constant(I32X16, [LANES * j + i for i in range(LANES)])
        visible = b.icmp_signed("<", index, limit)
        masked.append(b.select(visible, e.load(F32X16, scores, 64 * j), e.float(float("-inf"), F32X16)))
    old = e.load(F32, state)
    largest = e.tree(e.larger, e.larger(e.larger(masked[0], masked[1]), e.larger(masked[2], masked[3])))
    new = e.larger(largest, old)
    weights = [e.exp(b.fsub(m, e.splat(new))) for m in masked]
    for j, w in enumerate(weights):
        e.store(w, scores, 64 * j)
    total = e.sum_f32(b.fadd(b.fadd(weights[0], weights[1]), b.fadd(weights[2], weights[3])))
    factor = exp_scalar(e, b.fsub(old, new))
    e.store(b.fadd(b.fmul(e.load(F32, state, 4), factor), total), state, 4)
    e.store(new, state)
    return factor


def exp_scalar(e: Emitter, x: Any) -> Any:
    return e.b.extract_element(e.exp(e.splat(x, 1)), e.int(0, I32))


def merge_into(e: Emitter, total: Address, part: Address, head_dim: int) -> None:
    """Merge the partial result `part` into `total`. Each is [head_dim] values, the maximum and the sum."""
    b = e.b
    m1, l1, m2, l2 = (e.load(F32, base, 4 * (head_dim + i)) for base in (total, part) for i in (0, 1))
    new = e.larger(m2, m1)
    a1, a2 = exp_scalar(e, b.fsub(m1, new)), exp_scalar(e, b.fsub(m2, new))
    for j in range(head_dim // LANES):
        x, y = e.load(F32X16, total, 64 * j), e.load(F32X16, part, 64 * j)
        e.store(b.fadd(b.fmul(x, e.splat(a1)), b.fmul(y, e.splat(a2))), total, 64 * j)
    e.store(new, total, 4 * head_dim)
    e.store(b.fadd(b.fmul(l1, a1), b.fmul(l2, a2)), total, 4 * head_dim + 4)


def copy_floats(e: Emitter, x: Address, out: Address, n: int) -> None:
    for j in range(n // LANES):
        e.store(e.load(F32X16, x, 64 * j), out, 64 * j)


def divide_out(e: Emitter, part: Address, out: Address, head_dim: int) -> None:
    """out = values / sum"""
    b = e.b
    total = e.splat(e.load(F32, part, 4 * head_dim + 4))
    for j in range(head_dim // LANES):
        e.store(b.fdiv(e.load(F32X16, part, 64 * j), total), out, 64 * j)


TILE_QUERIES, SMALL_TILE_QUERIES = 4, 2
"""Queries in a tile, which read a page together, and in the tile for the remaining queries."""


def build_attend(head_dim_text: str, k_type: str, v_type: str) -> Any:
    """Compute attention. A chunk is an item for one key-value head.

    Scratch holds for each query of the item: scores, a running and a merged partial result, a factor, and the quantized query and weights
    if the types of keys and values need them.
    """
    read = reader(ATTEND)
    head_dim = int(head_dim_text)
    width = head_dim + LANES  # floats of a partial result
    keys_as, values_as = kv.named(k_type), kv.named(v_type)
    keys_bytes, values_bytes = layout.kv_bytes(k_type, head_dim), layout.kv_bytes(v_type, head_dim)
    per_query = layout.attention_scratch(1, head_dim, k_type, v_type)
    running, merged, factor_at = 4 * PAGE, 4 * (PAGE + width), 4 * (PAGE + 2 * width)
    query_at = factor_at + 4 * LANES
    weights_at = query_at + layout.query_bytes(k_type, head_dim) if values_as.QUANTIZED else 0

    def tile_numbers(e: Emitter, tile: int, first: Any, n_queries: Any) -> list[Any]:
        """Return the numbers of `tile` queries from `first` on. After the last query it is repeated."""
        last = e.b.sub(n_queries, e.int(1))
        return [e.least(e.b.add(first, e.int(i)), last) for i in range(tile)]

    def places(e: Emitter, numbers: Sequence[Any], memory: Any) -> list[Any]:
        return [e.at(memory, e.b.mul(n, e.int(per_query))) for n in numbers]

    def query_address(e: Emitter, q: Any, n_head: Any, shared: Any, n: Any) -> Any:
        """Return the address of query n: head n % shared of token n // shared."""
        b = e.b
        return e.at(q, b.mul(b.add(b.mul(b.udiv(n, shared), n_head), b.urem(n, shared)), e.int(4 * head_dim)))

    def score_of(tile: int) -> Any:
        @intrinsic_of(void, i64, i64, i64, i64, i64, i64, f32, i64)
        def score(
            e: Emitter,
            q: Any,
            n_head: Any,
            shared: Any,
            first: Any,
            n_queries: Any,
            keys: Any,
            scale: Any,
            memory: Any,
        ) -> None:
            """Compute the scores of `tile` queries from `first` on."""
            # only the first queries prefetch: the others prefetch what they read, which is in the cache
            ahead = e.b.select(e.b.icmp_signed("==", first, e.int(0)), e.at(keys, keys_bytes), keys)
            numbers = tile_numbers(e, tile, first, n_queries)
            out = places(e, numbers, memory)
            queries = [
                e.at(place, query_at) if keys_as.QUANTIZED else query_address(e, q, n_head, shared, n)
                for n, place in zip(numbers, out)
            ]
            keys_as.score_tile(e, queries, keys, scale, out, head_dim, Ahead(ahead, values_bytes))

        return score

    def weigh_of(tile: int) -> Any:
        @intrinsic_of(void, i64, i64, i64, i64, i64, i64, i64)
        def weigh(
            e: Emitter,
            first: Any,
            n_queries: Any,
            values: Any,
            following: Any,
            n_before: Any,
            shared: Any,
            memory: Any,
        ) -> None:
            """Add a page's weighted values. The item's first token sees `n_before` positions of the page, each later token one more."""
            numbers = tile_numbers(e, tile, first, n_queries)
            queries = places(e, numbers, memory)
            factors = [e.load(F32, query, factor_at) for query in queries]
            n_valid = [e.least(e.b.add(n_before, e.b.udiv(n, shared)), e.int(PAGE)) for n in numbers]
            weights = [e.at(query, weights_at) for query in queries]
            ahead = e.b.select(e.b.icmp_signed("==", first, e.int(0)), following, values)
            accs = [e.at(query, running) for query in queries]
            values_as.weigh_tile(
                e, weights, values, n_valid, accs, factors, head_dim, Ahead(ahead, keys_bytes)
            )

        return weigh

    score, small_score = score_of(TILE_QUERIES), score_of(SMALL_TILE_QUERIES)
    weigh, small_weigh = weigh_of(TILE_QUERIES), weigh_of(SMALL_TILE_QUERIES)

    @intrinsic_of(void, i64)
    def fetch_keys(e: Emitter, keys: Any) -> None:
        with e.loop(e.int(lines_of(keys_bytes))) as i:
            e.prefetch(e.b.add(keys, e.b.shl(i, e.int(6))), level=2)

    @intrinsic_of(void, i64, i64, i64, i64, i64)
    def prepare(e: Emitter, q: Any, n_head: Any, shared: Any, n: Any, memory: Any) -> None:
        if keys_as.QUANTIZED:
            keys_as.quantize_query(
                e, query_address(e, q, n_head, shared, n), e.at(memory, query_at), head_dim
            )

    @intrinsic_of(void, i64, i64, i64)
    def apply_softmax(e: Emitter, memory: Any, n_valid: Any, values: Any) -> None:
        factor = softmax_step(e, memory, e.at(memory, running + 4 * head_dim), n_valid)
        e.store(factor, memory, factor_at)
        if values_as.QUANTIZED:
            values_as.quantize_weights(e, memory, values, n_valid, e.at(memory, weights_at), head_dim)

    @intrinsic_of(void, i64, i64)
    def skip_page(e: Emitter, memory: Any, values: Any) -> None:
        """Set the weights to 0 and the factor to 1, for a query that sees nothing of a page."""
        for j in range(VECTORS):
            e.store(e.float(0.0, F32X16), memory, 64 * j)
        e.store(e.float(1.0), memory, factor_at)
        if values_as.QUANTIZED:
            values_as.quantize_weights(e, memory, values, e.int(0), e.at(memory, weights_at), head_dim)

    @intrinsic_of(void, i64)
    def clear(e: Emitter, memory: Any) -> None:
        for j in range(width // LANES):
            e.store(e.float(0.0, F32X16), memory, running + 64 * j)
        e.store(e.float(float("-inf")), memory, running + 4 * head_dim)

    @intrinsic_of(void, i64)
    def start_merging(e: Emitter, memory: Any) -> None:
        copy_floats(e, e.at(memory, running), e.at(memory, merged), width)

    @intrinsic_of(void, i64)
    def merge(e: Emitter, memory: Any) -> None:
        merge_into(e, e.at(memory, merged), e.at(memory, running), head_dim)

    @intrinsic_of(void, i64, i64)
    def write_final(e: Emitter, memory: Any, out: Any) -> None:
        divide_out(e, e.at(memory, merged), out, head_dim)

    @intrinsic_of(void, i64, i64)
    def write_partial(e: Emitter, memory: Any, out: Any) -> None:
        copy_floats(e, e.at(memory, merged), out, width)

    def attend(args, chunk, scratch):
        a = read(args)
        pointers = read_pointers(a.pointers)
        item = read_item(pointers.items + ITEM_BYTES * (chunk // a.n_head_kv))
        kv_head = chunk % a.n_head_kv
        first_token, first_position, pages = item.first_token, item.first_position, item.pages
        n_head = a.n_head
        shared = n_head // a.n_head_kv
        n_queries = item.n_tokens * shared
        n_tiled = (n_queries + TILE_QUERIES - SMALL_TILE_QUERIES - 1) // TILE_QUERIES * TILE_QUERIES
        q_first = a.q + 4 * head_dim * (first_token * n_head + kv_head * shared)
        slab = a.layer_offset + (keys_bytes + values_bytes) * kv_head
        fetch_keys(load_i64(pages + 8 * item.first_split * PAGES_A_SPLIT) + slab)
        for i in range(n_queries):
            prepare(q_first, n_head, shared, i, scratch + per_query * i)
        for split in range(item.first_split, item.end_split):
            for i in range(n_queries):
                clear(scratch + per_query * i)
            last_page = min((split + 1) * PAGES_A_SPLIT, (first_position + item.n_tokens + PAGE - 1) // PAGE)
            for page in range(split * PAGES_A_SPLIT, last_page):
                keys = load_i64(pages + 8 * page) + slab
                values = keys + keys_bytes
                n_before = first_position + 1 - page * PAGE
                following = load_i64(pages + 8 * page + 8) + slab if page + 1 < last_page else values
                for i in range(0, n_queries - SMALL_TILE_QUERIES, TILE_QUERIES):
                    score(q_first, n_head, shared, i, n_queries, keys, a.scale, scratch)
                for i in range(n_tiled, n_queries, SMALL_TILE_QUERIES):
                    small_score(q_first, n_head, shared, i, n_queries, keys, a.scale, scratch)
                for i in range(n_queries):
                    n_valid = first_position + i // shared + 1 - page * PAGE
                    if n_valid > 0:
                        apply_softmax(scratch + per_query * i, min(n_valid, PAGE), values)
                    else:
                        skip_page(scratch + per_query * i, values)
                for i in range(0, n_queries - SMALL_TILE_QUERIES, TILE_QUERIES):
                    if n_before + (min(i + TILE_QUERIES, n_queries) - 1) // shared > 0:
                        weigh(i, n_queries, values, following, n_before, shared, scratch)
                for i in range(n_tiled, n_queries, SMALL_TILE_QUERIES):
                    if n_before + (min(i + SMALL_TILE_QUERIES, n_queries) - 1) // shared > 0:
                        small_weigh(i, n_queries, values, following, n_before, shared, scratch)
            for i in range(n_queries):
                memory = scratch + per_query * i
                if split == item.first_split:
                    start_merging(memory)
                elif first_position + i // shared >= split * SPLIT:
                    merge(memory)
        for i in range(n_queries):
            memory = scratch + per_query * i
            head = kv_head * shared + i % shared
            if item.slot < 0:
                write_final(memory, a.out + 4 * head_dim * ((first_token + i // shared) * n_head + head))
            else:
                write_partial(memory, pointers.partials + 4 * width * (item.slot * n_head + head))

    return attend


def build_merge(head_dim_text: str, kind: str) -> Any:
    """Merge the partial results of tokens that have several splits into `out`, then quantize its rows as `kind` for the product that
    follows.
    """
    read = reader(MERGE)
    head_dim = int(head_dim_text)
    width = head_dim + LANES

    @intrinsic_of(void, i64, i64)
    def merge_two(e: Emitter, total: Any, part: Any) -> None:
        merge_into(e, total, part, head_dim)

    @intrinsic_of(void, i64, i64)
    def divide(e: Emitter, part: Any, out: Any) -> None:
        divide_out(e, part, out, head_dim)

    @intrinsic_of(void, i64, i64)
    def quantize(e: Emitter, args: Any, token: Any) -> None:
        a = load(e, MERGE, args)
        n_cols = e.b.mul(a.n_head, e.int(head_dim))
        row = e.at(a.out, e.b.shl(e.b.mul(token, n_cols), e.int(2)))
        quantize_row(e, kind, row, a.quants, a.scales, a.sums, n_cols, token)

    def merge(args, chunk, scratch):
        a = read(args)
        pointers = read_pointers(a.pointers)
        first, last = tokens_of(args, chunk)
        for token in range(first, last):
            parts = read_parts(pointers.parts + PARTS_BYTES * token)
            if parts.n_slots > 0:
                for head in range(a.n_head):
                    total = pointers.partials + 4 * width * (parts.first_slot * a.n_head + head)
                    for i in range(1, parts.n_slots):
                        merge_two(total, total + 4 * width * a.n_head * i)
                    divide(total, a.out + 4 * head_dim * (token * a.n_head + head))
            quantize(args, token)

    return merge
