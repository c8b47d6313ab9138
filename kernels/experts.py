"""Mixtures of experts: which of them a token takes, tokens put together by expert, products of each expert with its tokens, sums.

Each token has `n_used` slots, the likeliest expert in the first. A place is where a slot's rows lie: for one token it is the slot; for
many tokens places are sorted by expert, then by token. A product with an expert is one with a matrix: a record of its arguments, as
matmul.py has them, is written into the thread's scratch, and that module's kernel is called, whose address is an argument here.

Arguments, int64 each: see the function that reads them. `count` is the address of the number of tokens, `unit` how many make a chunk.
"""

from __future__ import annotations

from typing import Any

from numba import njit, types

from . import layout
from .activations import F32X1, each_lane, lanes, sum_of
from .ops import tokens_of
from .runtime import call_kernel
from .sampling import exp
from .simd import (
    F32X16,
    I32,
    Emitter,
    f32,
    i64,
    intrinsic_of,
    load_f32,
    load_i32,
    load_i64,
    store_f32,
    store_i64,
    void,
)

LEAST_SUM = 2.0**-14
"""By which a token's weights are divided at least: the smallest normal half float, as llama.cpp has it."""
ENTRY_BYTES = 8 * layout.ENTRY_WORDS
STEPS, RECORD = 32, 80
"""Offsets among the arguments of a product."""
IN_PLACE = 2
"""An expert with so many tokens or fewer is multiplied in place: to unpack its weights would take longer."""

store_i32 = intrinsic_of(void, i64, i64)(lambda e, address, value: e.store(e.b.trunc(value, I32), address))


def build(name: str) -> Any:
    return {
        "route": build_route,
        "group": build_group,
        "spread": build_spread,
        "one": build_one,
        "many": build_many,
        "combine": build_combine,
    }[name]()


@intrinsic_of(void, i64, i64, i64)
def softmax_parts(e: Emitter, logits: Any, n: Any, out: Any) -> None:
    """The largest of n logits, NaN left aside, and the sum of exp(logit - the largest), NaN if one is."""
    b = e.b
    least = float("-inf")
    largest = {16: e.var(e.float(least, F32X16)), 1: e.var(e.float(least, F32X1))}
    each_lane(
        e,
        n,
        lambda offset, kind: b.store(
            e.larger(e.load(kind, logits, offset), b.load(largest[kind.count])), largest[kind.count]
        ),
    )
    top = e.larger(e.tree(e.larger, b.load(largest[1])), e.tree(e.larger, b.load(largest[16])))
    e.store(top, out)
    e.store(
        sum_of(e, n, lambda offset, kind: e.exp(b.fsub(e.load(kind, logits, offset), lanes(e, top, kind)))),
        out,
        4,
    )


def build_route() -> Any:
    """args: count, unit, logits, n_expert, n_used, normalised, ids (i32), weights (f32).

    Of each token's experts the likeliest, of equals those of lower numbers. Where a logit is NaN all weights are, and ids still are
    those of experts.
    """

    def route(args, chunk, scratch):
        all_logits, n_expert, n_used = load_i64(args + 16), load_i64(args + 24), load_i64(args + 32)
        normalised, all_ids, all_weights = load_i64(args + 40), load_i64(args + 48), load_i64(args + 56)
        first, last = tokens_of(load_i64(args), load_i64(args + 8), chunk)
        for t in range(first, last):
            logits, ids, weights = (
                all_logits + 4 * n_expert * t,
                all_ids + 4 * n_used * t,
                all_weights + 4 * n_used * t,
            )
            for expert in range(n_expert):
                value = load_f32(logits + 4 * expert)
                if expert < n_used:
                    i = expert
                elif value > load_f32(weights + 4 * (n_used - 1)):
                    i = n_used - 1
                else:
                    continue
                while i > 0 and load_f32(weights + 4 * (i - 1)) < value:
                    store_f32(weights + 4 * i, load_f32(weights + 4 * (i - 1)))
                    store_i32(ids + 4 * i, load_i32(ids + 4 * (i - 1)))
                    i -= 1
                store_f32(weights + 4 * i, value)
                store_i32(ids + 4 * i, expert)
            softmax_parts(logits, n_expert, scratch)
            total = types.float32(0)
            for i in range(n_used):
                weight = exp(load_f32(weights + 4 * i) - load_f32(scratch)) / load_f32(scratch + 4)
                store_f32(weights + 4 * i, weight)
                total += weight
            if normalised:
                if total < LEAST_SUM:
                    total = types.float32(LEAST_SUM)
                for i in range(n_used):
                    store_f32(weights + 4 * i, load_f32(weights + 4 * i) / total)

    return route


def build_group() -> Any:
    """args: count, 1 (chunk), n_used, n_expert, ids, places (i32), ends (i64, one an expert), entries, n_products, chunks, totals (i64).

    An entry of layout.ENTRY_WORDS for each expert that has tokens: its number, its first place, how many it has. For each product with
    them the number of its chunks, of which it has `chunks` an expert.
    """

    def group(args, chunk, scratch):
        n, n_expert, ids = (
            load_i64(load_i64(args)) * load_i64(args + 16),
            load_i64(args + 24),
            load_i64(args + 32),
        )
        places, ends, entry = load_i64(args + 40), load_i64(args + 48), load_i64(args + 56)
        for expert in range(n_expert):
            store_i64(ends + 8 * expert, 0)
        for i in range(n):
            end = ends + 8 * load_i32(ids + 4 * i)
            store_i64(end, load_i64(end) + 1)
        place, n_entries = 0, 0
        for expert in range(n_expert):
            count = load_i64(ends + 8 * expert)
            store_i64(ends + 8 * expert, place)
            if count > 0:
                store_i64(entry, expert)
                store_i64(entry + 8, place)
                store_i64(entry + 16, count)
                place += count
                n_entries += 1
                entry += ENTRY_BYTES
        for i in range(n):
            end = ends + 8 * load_i32(ids + 4 * i)
            place = load_i64(end)
            store_i32(places + 4 * i, place)
            store_i64(end, place + 1)
        for product in range(load_i64(args + 64)):
            store_i64(
                load_i64(args + 80) + 8 * product, n_entries * load_i64(load_i64(args + 72) + 8 * product)
            )

    return group


@intrinsic_of(void, i64, i64, i64)
def copy(e: Emitter, source: Any, target: Any, n_bytes: Any) -> None:
    """Copy a multiple of four bytes."""
    each_lane(
        e,
        e.b.lshr(n_bytes, e.int(2)),
        lambda offset, kind: e.store(e.load(kind, source, offset), target, offset),
    )


def build_spread() -> Any:
    """args: count, unit, n_used, places, then four times: source, target, bytes a row. Each token's rows copied to its places."""

    def spread(args, chunk, scratch):
        n_used, places = load_i64(args + 16), load_i64(args + 24)
        first, last = tokens_of(load_i64(args), load_i64(args + 8), chunk)
        for t in range(first, last):
            for which in range(4):
                array = args + 32 + 24 * which
                source, target, n_bytes = load_i64(array), load_i64(array + 8), load_i64(array + 16)
                for i in range(n_used * t, n_used * t + n_used):
                    copy(source + n_bytes * t, target + n_bytes * load_i32(places + 4 * i), n_bytes)

    return spread


@njit(inline="always")
def write_record(args, record, expert, place, count):
    """The arguments of a product with an expert, whose rows are those from `place` on, as many as `count` is the address of.

    What differs from expert to expert, by its index: 2 weights, 6 to 9 x and its quantized form, 10 y (11 is a step), 14 scale.
    """
    for i in range(0, 8 * layout.PRODUCT_WORDS, 8):
        store_i64(record + i, load_i64(args + RECORD + i))
    store_i64(record, count)
    store_i64(record + 16, load_i64(record + 16) + expert * load_i64(args + STEPS))
    store_i64(record + 112, load_i64(record + 112) + expert * load_i64(args + STEPS + 8))
    for i in range(0, 32, 8):
        store_i64(record + 48 + i, load_i64(record + 48 + i) + place * load_i64(args + STEPS + 16 + i))
    store_i64(record + 80, load_i64(record + 80) + place * load_i64(record + 88))


def build_one() -> Any:
    """args: kernel for one token, 0, chunks an expert, ids (i32), then steps in bytes: from an expert to the next of weights and of scales,
    from a place to the next of x, quants, scales and sums; then the product's arguments for expert 0 and place 0.

    One token, whose places are its slots; steps from place to place are 0 where all of them read the same activations.
    """

    def one(args, chunk, scratch):
        n_chunks = load_i64(args + 16)
        slot = chunk // n_chunks
        write_record(args, scratch, load_i32(load_i64(args + 24) + 4 * slot), slot, load_i64(args + RECORD))
        call_kernel(load_i64(args), scratch, chunk - slot * n_chunks, scratch + layout.PRODUCT_BYTES)

    return one


def build_many() -> Any:
    """args: kernels for one token and for many, chunks an expert, entries (see build_group), and more as in build_one."""

    def many(args, chunk, scratch):
        n_chunks = load_i64(args + 16)
        number = chunk // n_chunks
        entry = load_i64(args + 24) + ENTRY_BYTES * number
        write_record(args, scratch, load_i64(entry), load_i64(entry + 8), entry + 16)
        kernel = load_i64(args) if load_i64(entry + 16) <= IN_PLACE else load_i64(args + 8)
        call_kernel(kernel, scratch, chunk - number * n_chunks, scratch + layout.PRODUCT_BYTES)

    return many


def build_combine() -> Any:
    """args: count, unit, y, places or 0, weights (f32), n_used, n_cols, out, residual or 0.

    The sum over a token's slots, in their order, of its rows of y times their weights, plus the residual. Without places they are slots.
    """

    @intrinsic_of(void, i64, i64, f32, i64)
    def first_slot(e: Emitter, y: Any, out: Any, weight: Any, n: Any) -> None:
        each_lane(
            e,
            n,
            lambda offset, kind: e.store(
                e.b.fmul(e.load(kind, y, offset), lanes(e, weight, kind)), out, offset
            ),
        )

    @intrinsic_of(void, i64, i64, f32, i64)
    def add_slot(e: Emitter, y: Any, out: Any, weight: Any, n: Any) -> None:
        def add(offset: Any, kind: Any) -> None:
            product = e.b.fmul(e.load(kind, y, offset), lanes(e, weight, kind))
            e.store(e.b.fadd(e.load(kind, out, offset), product), out, offset)

        each_lane(e, n, add)

    @intrinsic_of(void, i64, i64, i64)
    def add_row(e: Emitter, x: Any, out: Any, n: Any) -> None:
        each_lane(
            e,
            n,
            lambda offset, kind: e.store(
                e.b.fadd(e.load(kind, out, offset), e.load(kind, x, offset)), out, offset
            ),
        )

    def combine(args, chunk, scratch):
        y, places, weights, n_used = (
            load_i64(args + 16),
            load_i64(args + 24),
            load_i64(args + 32),
            load_i64(args + 40),
        )
        n_cols, all_out, residual = load_i64(args + 48), load_i64(args + 56), load_i64(args + 64)
        first, last = tokens_of(load_i64(args), load_i64(args + 8), chunk)
        for t in range(first, last):
            out = all_out + 4 * n_cols * t
            for i in range(n_used * t, n_used * t + n_used):
                place = load_i32(places + 4 * i) if places else i
                row, weight = y + 4 * n_cols * place, load_f32(weights + 4 * i)
                if i == n_used * t:
                    first_slot(row, out, weight, n_cols)
                else:
                    add_slot(row, out, weight, n_cols)
            if residual:
                add_row(residual + 4 * n_cols * t, out, n_cols)

    return combine
