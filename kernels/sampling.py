"""The default chain of samplers in machine code: penalties, top-k, top-p, min-p, temperature, draw. `choose` in qwencli/sampling does the
same in Python. And `score`: the two numbers from which a token's likelihood is computed."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types

from . import layout
from .activations import F32X1, each_lane
from .arguments import CHOOSE, DRAW, LIKELIHOOD, SCORE
from .attention import exp_scalar
from .reading import reader
from .simd import (
    F32,
    F32X16,
    I32,
    I32X16,
    I64,
    Emitter,
    f32,
    i64,
    intrinsic_of,
    like,
    load_f32,
    load_i64,
    store_f32,
    store_i64,
    void,
)

BLOCK = 64
IDS = 8 * layout.MAX_TOP_K
"""Where the candidates' ids (i64) start in scratch; their logits (f32) come before them. The likeliest is the first."""
EXPONENT = 0x7F800000
DRAW_BYTES, LIKELIHOOD_BYTES = DRAW.n_bytes, LIKELIHOOD.n_bytes
read_draw = reader(DRAW)


@intrinsic_of(f32, f32)
def exp(e: Emitter, x: Any) -> Any:
    return exp_scalar(e, x)


@intrinsic_of(f32, i64)
def block_max(e: Emitter, logits: Any) -> Any:
    """Return the largest of 64 logits, or NaN if one of them isn't finite."""
    b = e.b
    values = [e.load(F32X16, logits, 64 * i) for i in range(4)]
    largest, special = values[0], e.int(0, I32X16)
    for v in values:
        largest = e.larger(v, largest)
        exponent = b.and_(b.bitcast(v, I32X16), e.int(EXPONENT, I32X16))
        special = b.or_(special, b.sext(b.icmp_unsigned("==", exponent, e.int(EXPONENT, I32X16)), I32X16))
    bad = b.icmp_unsigned("!=", e.call("llvm.vector.reduce.or.v16i32", I32, special), e.int(0, I32))
    return b.select(bad, e.float(float("nan")), e.tree(e.larger, largest))


@intrinsic_of(i64, f32)
def is_special(e: Emitter, x: Any) -> Any:
    """1 for NaN and infinity."""
    bits = e.b.and_(e.b.bitcast(x, I32), e.int(EXPONENT, I32))
    return e.b.zext(e.b.icmp_unsigned("==", bits, e.int(EXPONENT, I32)), I64)


@njit(inline="always")
def consider(scratch, n_kept, limit, value, token):
    """Insert a candidate among those that are kept, after its equals. Returns the number that are kept."""
    if n_kept < limit:
        i = n_kept
        n_kept += 1
    else:
        i = limit - 1
    while i > 0 and load_f32(scratch + 4 * (i - 1)) < value:
        store_f32(scratch + 4 * i, load_f32(scratch + 4 * (i - 1)))
        store_i64(scratch + IDS + 8 * i, load_i64(scratch + IDS + 8 * (i - 1)))
        i -= 1
    store_f32(scratch + 4 * i, value)
    store_i64(scratch + IDS + 8 * i, token)
    return n_kept


@njit(inline="always")
def penalize(logits, draw):
    repeat = types.float32(draw.repeat)
    for i in range(draw.n_recent):
        place = logits + 4 * load_i64(draw.recent + 8 * i)
        value = load_f32(place)
        value = value * repeat if value <= 0 else value / repeat
        count = load_i64(draw.counts + 8 * i)
        store_f32(place, value - types.float32(count * draw.frequency + draw.presence))


def build_choose() -> Any:
    """Choose a token. A chunk is a row of logits; out is the token, or -1 if a logit isn't finite. Penalties change the logits in place."""
    read = reader(CHOOSE)

    def choose(args, chunk, scratch):
        a = read(args)
        n_vocab = a.n_vocab
        draw = read_draw(a.draws + DRAW_BYTES * chunk)
        logits = a.logits + 4 * n_vocab * chunk
        out = a.out + 8 * chunk
        penalize(logits, draw)
        temp, limit = draw.temp, draw.top_k
        n = 0
        for start in range(0, n_vocab, BLOCK):
            end = min(start + BLOCK, n_vocab)
            largest = types.float32(0)
            if end - start == BLOCK:
                largest = block_max(logits + 4 * start)
                if largest != largest:
                    store_i64(out, -1)
                    return
            if n < limit or end - start < BLOCK or largest > load_f32(scratch + 4 * (limit - 1)):
                for token in range(start, end):
                    value = load_f32(logits + 4 * token)
                    if is_special(value):
                        store_i64(out, -1)
                        return
                    if n < limit or value > load_f32(scratch + 4 * (limit - 1)):
                        n = consider(scratch, n, limit, value, token)
        first = load_f32(scratch)
        if temp > 0 and n > 1:
            total = 0.0
            if draw.top_p < 1:
                for i in range(n):
                    total += exp(load_f32(scratch + 4 * i) - first)
                reached, i = 0.0, 0
                while i < n and reached < draw.top_p * total:
                    reached += exp(load_f32(scratch + 4 * i) - first)
                    i += 1
                n = max(i, 1)
            kept = 1
            while kept < n and (draw.min_p <= 0 or exp(load_f32(scratch + 4 * kept) - first) >= draw.min_p):
                kept += 1
            n = kept
            total = 0.0
            for i in range(n):  # divided as float64: the lowest temperatures are 0 as float32
                total += exp(types.float32((load_f32(scratch + 4 * i) - first) / temp))
            goal = draw.chance * total
            reached, i = 0.0, 0
            while True:
                reached += exp(types.float32((load_f32(scratch + 4 * i) - first) / temp))
                if reached > goal or i == n - 1:
                    break
                i += 1
            store_i64(out, load_i64(scratch + IDS + 8 * i))
        else:
            store_i64(out, load_i64(scratch + IDS))

    return choose


def build_score() -> Any:
    """Compute a LIKELIHOOD. A chunk is a row of logits. If a logit is NaN or +infinity, at least one of the two numbers isn't finite."""
    read = reader(SCORE)

    @intrinsic_of(void, i64, i64, i64, i64)
    def score_row(e: Emitter, logits: Any, n: Any, target: Any, out: Any) -> None:
        b, doubles = e.b, ir.DoubleType()
        minus_infinity = float("-inf")
        maxima = {16: e.var(e.float(minus_infinity, F32X16)), 1: e.var(e.float(minus_infinity, F32X1))}

        def compare(offset: Any, kind: Any) -> None:
            b.store(e.larger(e.load(kind, logits, offset), b.load(maxima[kind.count])), maxima[kind.count])

        each_lane(e, n, compare)
        largest = e.larger(e.tree(e.larger, b.load(maxima[1])), e.tree(e.larger, b.load(maxima[16])))
        sums = {n: e.var(ir.Constant(ir.VectorType(doubles, n), [0.0] * n)) for n in (16, 1)}

        def add(offset: Any, kind: Any) -> None:
            term = e.exp(b.fsub(e.load(kind, logits, offset), e.splat(largest, kind.count)))
            b.store(b.fadd(b.load(sums[kind.count]), b.fpext(term, like(term, doubles))), sums[kind.count])

        each_lane(e, n, add)
        e.store(
            b.fadd(e.tree(b.fadd, b.load(sums[16])), e.tree(b.fadd, b.load(sums[1]))),
            out,
            LIKELIHOOD.offset("sum"),
        )
        wanted = e.load(F32, logits, b.shl(target, e.int(2)))
        e.store(b.fpext(b.fsub(wanted, largest), doubles), out, LIKELIHOOD.offset("difference"))

    def score(args, chunk, scratch):
        a = read(args)
        target = load_i64(a.targets + 8 * chunk)
        score_row(a.logits + 4 * a.n_vocab * chunk, a.n_vocab, target, a.out + LIKELIHOOD_BYTES * chunk)

    return score
