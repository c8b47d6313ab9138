"""Mixtures of experts: choose each token's experts, sort the tokens by expert, multiply each expert with its tokens, and sum the results.

Each token has `n_used` slots, the likeliest expert in the first. A slot's rows are at its place: for a single token the place is the slot;
for many tokens places are sorted by expert, then by token. A product with an expert is an ordinary product with a matrix: its arguments are
written to the thread's scratch, and a kernel of matmul.py is called, whose address is an argument here.
"""

from __future__ import annotations

from typing import Any

from numba import njit, types

from .activations import F32X1, each_lane, lanes, sum_of
from .arguments import (
    COMBINE,
    COPIED,
    ENTRY,
    GROUP,
    MANY,
    ONE,
    PRODUCT,
    PRODUCT_BYTES,
    QUANTIZED,
    ROUTE,
    SPREAD,
)
from .ops import tokens_of
from .reading import reader, writer
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
"""The least by which a token's weights are divided: the smallest normal half float, as in llama.cpp."""
IN_PLACE = 2
"""An expert with at most this many tokens is multiplied in place: unpacking its weights would take longer."""
ENTRY_BYTES, COPIED_BYTES = ENTRY.n_bytes, COPIED.n_bytes
COUNT_OF_ENTRY = ENTRY.offset("count")
FIRST_COPIED = SPREAD.offset("x_source")
N_COPIED = 1 + len(QUANTIZED.split())
read_entry, write_entry, read_copied = reader(ENTRY), writer(ENTRY), reader(COPIED)
write_product = writer(PRODUCT)

store_i32 = intrinsic_of(void, i64, i64)(lambda e, address, value: e.store(e.b.trunc(value, I32), address))


@intrinsic_of(void, i64, i64, i64)
def softmax_parts(e: Emitter, logits: Any, n: Any, out: Any) -> None:
    """Compute the largest of n logits, ignoring NaN, and the sum of exp(logit - largest), which is NaN if a logit is."""
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
    """Choose each token's likeliest experts; among equals the lower numbers win. If a logit is NaN all weights are NaN, but the ids are
    still valid.
    """
    read = reader(ROUTE)

    def route(args, chunk, scratch):
        a = read(args)
        n_expert, n_used = a.n_expert, a.n_used
        first, last = tokens_of(args, chunk)
        for t in range(first, last):
            logits = a.logits + 4 * n_expert * t
            ids = a.ids + 4 * n_used * t
            weights = a.weights + 4 * n_used * t
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
            if a.normalised:
                if total < LEAST_SUM:
                    total = types.float32(LEAST_SUM)
                for i in range(n_used):
                    store_f32(weights + 4 * i, load_f32(weights + 4 * i) / total)

    return route


def build_group() -> Any:
    """Write an ENTRY for each expert that has tokens, and for each product the number of its chunks."""
    read = reader(GROUP)

    def group(args, chunk, scratch):
        a = read(args)
        n = load_i64(a.count) * a.n_used
        for expert in range(a.n_expert):
            store_i64(a.ends + 8 * expert, 0)
        for i in range(n):
            end = a.ends + 8 * load_i32(a.ids + 4 * i)
            store_i64(end, load_i64(end) + 1)
        place = 0
        n_entries = 0
        for expert in range(a.n_expert):
            count = load_i64(a.ends + 8 * expert)
            store_i64(a.ends + 8 * expert, place)
            if count > 0:
                entry = a.entries + ENTRY_BYTES * n_entries
                write_entry(entry, expert=expert, place=place, count=count)
                place += count
                n_entries += 1
        for i in range(n):
            end = a.ends + 8 * load_i32(a.ids + 4 * i)
            place = load_i64(end)
            store_i32(a.places + 4 * i, place)
            store_i64(end, place + 1)
        for product in range(a.n_products):
            chunks = load_i64(a.chunks + 8 * product)
            store_i64(a.totals + 8 * product, n_entries * chunks)

    return group


@intrinsic_of(void, i64, i64, i64)
def copy(e: Emitter, source: Any, target: Any, n_bytes: Any) -> None:
    """Copy bytes; their number is a multiple of four."""
    each_lane(
        e,
        e.b.lshr(n_bytes, e.int(2)),
        lambda offset, kind: e.store(e.load(kind, source, offset), target, offset),
    )


def build_spread() -> Any:
    """Copy each token's rows to its places."""
    read = reader(SPREAD)

    def spread(args, chunk, scratch):
        a = read(args)
        first, last = tokens_of(args, chunk)
        for t in range(first, last):
            for which in range(N_COPIED):
                rows = read_copied(args + FIRST_COPIED + COPIED_BYTES * which)
                for i in range(a.n_used * t, a.n_used * t + a.n_used):
                    target = rows.target + rows.n_bytes * load_i32(a.places + 4 * i)
                    copy(rows.source + rows.n_bytes * t, target, rows.n_bytes)

    return spread


@njit(inline="always")
def write_record(a, record, expert, place, count):
    """Write the arguments of a product with an expert. Its rows start at `place`; `count` is the address of their number.

    `a` has the arguments for expert 0 and place 0.
    """
    write_product(
        record,
        count=count,
        chunk_rows=a.chunk_rows,
        w=a.w + expert * a.w_step,
        row_bytes=a.row_bytes,
        n_rows=a.n_rows,
        n_cols=a.n_cols,
        x=a.x + place * a.x_step,
        quants=a.quants + place * a.quants_step,
        scales=a.scales + place * a.scales_step,
        sums=a.sums + place * a.sums_step,
        y=a.y + place * a.y_stride,
        y_stride=a.y_stride,
        bias=a.bias,
        residual=a.residual,
        scale=a.scale + expert * a.scale_step,
        ahead=a.ahead,
    )


def build_one() -> Any:
    """Multiply a single token with its experts. Its places are its slots."""
    read = reader(ONE)

    def one(args, chunk, scratch):
        a = read(args)
        slot = chunk // a.expert_chunks
        write_record(a, scratch, load_i32(a.ids + 4 * slot), slot, a.count)
        call_kernel(a.one, scratch, chunk - slot * a.expert_chunks, scratch + PRODUCT_BYTES)

    return one


def build_many() -> Any:
    """Multiply many tokens, by the entries of their experts."""
    read = reader(MANY)

    def many(args, chunk, scratch):
        a = read(args)
        number = chunk // a.expert_chunks
        address = a.entries + ENTRY_BYTES * number
        entry = read_entry(address)
        write_record(a, scratch, entry.expert, entry.place, address + COUNT_OF_ENTRY)
        kernel = a.few if entry.count <= IN_PLACE else a.many
        call_kernel(kernel, scratch, chunk - number * a.expert_chunks, scratch + PRODUCT_BYTES)

    return many


def build_combine() -> Any:
    """Sum a token's rows of y times their weights, in the order of its slots, and add the residual."""
    read = reader(COMBINE)

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
        a = read(args)
        n_cols, n_used = a.n_cols, a.n_used
        first, last = tokens_of(args, chunk)
        for t in range(first, last):
            out = a.out + 4 * n_cols * t
            for i in range(n_used * t, n_used * t + n_used):
                place = load_i32(a.places + 4 * i) if a.places else i
                row = a.y + 4 * n_cols * place
                weight = load_f32(a.weights + 4 * i)
                if i == n_used * t:
                    first_slot(row, out, weight, n_cols)
                else:
                    add_slot(row, out, weight, n_cols)
            if a.residual:
                add_row(a.residual + 4 * n_cols * t, out, n_cols)

    return combine
