"""y = W x for rows of weights read from the mapped file, in two forms that give the same bits.

"few": each row is multiplied where it lies. "many": 32 rows are unpacked into a panel, which stays in the L2 cache while all tokens pass. What
makes them agree: integers inside a block, where order doesn't matter, and floats across blocks in block order; for float weights 16
running sums over the columns and one final tree.

Arguments, int64 each, by their index: 0 address of the number of tokens, 1 rows a chunk, 2 weights, 3 bytes a row, 4 rows, 5 columns, 6 x (f32),
7 quants, 8 scales, 9 sums, 10 y, 11 bytes between y's tokens, 12 bias or 0, 13 residual or 0 (laid out as y; may be y).
"""
from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

from llvmlite import ir
from numba import njit

from . import layout
from .quants import _blocks, _kquants
from .quants._kquants import Act
from .simd import F32, F32X16, I8X32, I8X64, I32, I32X16, I64, LANES, Emitter, i64, intrinsic_of, load_i64, void

FEW_AT_ONCE = 4  # tokens whose dots share one unpacking
TILE_TOKENS = {"avx512vnni": {"q8k": 4, "q8_0": 6, "float": 4}, "avx2": {"q8k": 2, "q8_0": 2, "float": 2}, "generic": {"q8k": 2, "q8_0": 2, "float": 2}}
"""Tokens of a tile of 32 rows (of FLOAT_ROWS for float weights)."""
FLOAT_ROWS = 4
ROWS_IN_PLACE = 8
PREFETCH_AHEAD = 16384


def build(name: str, form: str, n_cols: str = "") -> Any:
    """The format's name, "few" or "many", and for few tokens and 32-weight blocks the number of columns."""
    quant = import_module(f".quants.{name}", __package__)
    return build_few(quant, FAMILIES[quant.KIND], n_cols) if form == "few" else build_many(quant, FAMILIES[quant.KIND])


class Args(NamedTuple):
    """The arguments as LLVM values."""
    count: Any
    chunk_rows: Any
    w: Any
    row_bytes: Any
    n_rows: Any
    n_cols: Any
    x: Any
    q: Any
    d: Any
    sums: Any
    y: Any
    y_stride: Any
    bias: Any
    residual: Any

    @classmethod
    def load(cls, e: Emitter, address: Any) -> Args:
        return cls(*(e.load(I64, address, 8 * i) for i in range(len(cls._fields))))


def smaller(e: Emitter, x: Any, y: Any) -> Any:
    return e.b.select(e.b.icmp_signed("<", x, y), x, y)


def clamped_rows(e: Emitter, a: Args, row: Any, count: int) -> list[Any]:
    """The addresses of `count` rows from `row` on; behind the last row the last one again, so that nothing outside is read."""
    last = e.b.sub(a.n_rows, e.int(1))
    return [e.b.add(a.w, e.b.mul(smaller(e, e.b.add(row, e.int(i)), last), a.row_bytes)) for i in range(count)]


def clamped_tokens(e: Emitter, a: Args, token: Any, count: int) -> list[Any]:
    """The numbers of `count` tokens from `token` on, the last one repeated at the end."""
    last = e.b.sub(e.load(I64, a.count), e.int(1))
    return [smaller(e, e.b.add(token, e.int(i)), last) for i in range(count)]


def finish(e: Emitter, a: Args, value: Any, row: Any, token: Any) -> None:
    """Add bias and residual to a value, or to 16 rows' values, and store."""
    b = e.b
    column = b.shl(row, e.int(2))
    place = b.add(b.mul(token, a.y_stride), column)
    slot = e.var(value)
    for base, offset in (a.bias, column), (a.residual, place):
        with b.if_then(b.icmp_unsigned("!=", base, e.int(0))):
            b.store(b.fadd(b.load(slot), e.load(value.type, base, offset)), slot)
    e.store(b.load(slot), a.y, place)


def finish_rows(e: Emitter, a: Args, values: Any, row: Any, token: Any) -> None:
    """`finish` for 16 rows, of which only those before the last row exist."""
    b = e.b
    whole = b.icmp_signed("<=", b.add(row, e.int(LANES)), a.n_rows)
    with b.if_else(whole, likely=True) as (then, otherwise):
        with then:
            finish(e, a, values, row, token)
        with otherwise:
            for i in range(LANES):
                this = b.add(row, e.int(i))
                with b.if_then(b.icmp_signed("<", this, a.n_rows)):
                    finish(e, a, b.extract_element(values, e.int(i, I32)), this, token)


def prefetch_rows(e: Emitter, following: Any, i: Any, n_bytes: int) -> None:
    """Ask for step i's share, `n_bytes`, of rows some way behind those that follow, in the order of memory and into the L2 cache.

    Rows that are read side by side are short streams, which the hardware doesn't foresee. Into L1 the requests are so many that some are lost.
    """
    start = e.b.add(following, e.b.mul(i, e.int(n_bytes)))
    for line in range(0, n_bytes, 64):
        e.prefetch(e.at(start, PREFETCH_AHEAD + line), level=2)


def with_valid(e: Emitter, a: Args, token: Any) -> Any:
    """A context whose body runs if there is a token of that number."""
    return e.b.if_then(e.b.icmp_signed("<", token, e.load(I64, a.count)))


class KQuants:
    """256-blocks with Q8_K activations."""
    few_rows = 2

    @staticmethod
    def acts(e: Emitter, a: Args, tokens: Sequence[Any]) -> tuple[Any, list[Act], list[Any]]:
        """The number of blocks, and for each token its first block and its scales."""
        b = e.b
        n_blocks = b.lshr(a.n_cols, e.int(8))
        acts = [Act(b.add(a.q, b.mul(t, a.n_cols)), b.add(a.sums, b.mul(b.mul(t, n_blocks), e.int(layout.Q8K_SUMS_BYTES)))) for t in tokens]
        return n_blocks, acts, [b.add(a.d, b.shl(b.mul(t, n_blocks), e.int(2))) for t in tokens]

    @staticmethod
    def at_block(e: Emitter, acts: Sequence[Act], i: Any) -> list[Act]:
        b = e.b
        return [Act(b.add(act.q, b.shl(i, e.int(8))), b.add(act.sums, b.mul(i, e.int(layout.Q8K_SUMS_BYTES)))) for act in acts]

    @classmethod
    def few(cls, e: Emitter, quant: Any, a: Args, row: Any, tokens: Sequence[Any]) -> None:
        """Two rows; where only one is left it is read twice."""
        b = e.b
        n_blocks, acts, scales = cls.acts(e, a, tokens)
        rows = clamped_rows(e, a, row, cls.few_rows)
        sums = [[e.var(e.float(0.0)) for _ in tokens] for _ in rows]
        with e.loop(n_blocks) as i:
            offset, here = b.mul(i, e.int(quant.BYTES)), cls.at_block(e, acts, i)
            act_d = [e.load(F32, scale, b.shl(i, e.int(2))) for scale in scales]
            blocks = [b.add(address, offset) for address in rows]
            prefetch_rows(e, b.add(rows[-1], a.row_bytes), i, cls.few_rows * quant.BYTES)
            dots = [(r, t, dot, quant.scales(e, p)) for r, p in enumerate(blocks) for t, dot in enumerate(quant.dot(e, p, here))]
            for k in range(0, len(dots), 4):
                group = dots[k:k + 4]
                values = _kquants.values_of(e, [dot for _, _, dot, _ in group], [d for *_, d in group])
                for (r, t, _, _), value in zip(group, values):
                    b.store(b.fadd(b.load(sums[r][t]), b.fmul(act_d[t], value)), sums[r][t])
        for r, of_row in enumerate(sums):
            this = b.add(row, e.int(r))
            with b.if_then(b.icmp_signed("<", this, a.n_rows), likely=True):
                for total, t in zip(of_row, tokens):
                    finish(e, a, b.load(total), this, t)

    @classmethod
    def unpack(cls, e: Emitter, quant: Any, a: Args, row: Any, panel: Any) -> None:
        b = e.b
        n_blocks = b.lshr(a.n_cols, e.int(8))
        rows = clamped_rows(e, a, row, LANES)
        with e.loop(n_blocks) as i:
            offset = b.mul(i, e.int(quant.BYTES))
            quant.unpack(e, [b.add(address, offset) for address in rows], b.add(panel, b.mul(i, e.int(quant.PANEL.n_bytes))))

    @classmethod
    def tile(cls, e: Emitter, quant: Any, a: Args, row: Any, tokens: Sequence[Any], panel: Any) -> list[list[Any]]:
        b = e.b
        n_blocks, acts, scales = cls.acts(e, a, tokens)
        panel_stride = b.mul(n_blocks, e.int(quant.PANEL.n_bytes))
        panels = [b.add(panel, b.mul(panel_stride, e.int(r))) for r in range(layout.PANEL_ROWS // LANES)]
        sums = [[e.var(e.float(0.0, F32X16)) for _ in tokens] for _ in panels]
        with e.loop(n_blocks) as i:
            offset = b.mul(i, e.int(quant.PANEL.n_bytes))
            values = quant.TILE.block(e, [b.add(address, offset) for address in panels], cls.at_block(e, acts, i))
            for r in range(len(panels)):
                for t, scale in enumerate(scales):
                    d = e.splat(e.load(F32, scale, b.shl(i, e.int(2))))
                    b.store(b.fadd(b.load(sums[r][t]), b.fmul(d, values[r][t])), sums[r][t])
        return [[b.load(total) for total in row_sums] for row_sums in sums]

    @staticmethod
    def panel_stride(e: Emitter, quant: Any, a: Args) -> Any:
        return e.b.mul(e.b.lshr(a.n_cols, e.int(8)), e.int(quant.PANEL.n_bytes))


class Blocks:
    """32-blocks with Q8_0 activations. In place 8 rows are read at once, two blocks of each."""
    few_rows = ROWS_IN_PLACE

    @staticmethod
    def few(e: Emitter, quant: Any, a: Args, row: Any, tokens: Sequence[Any], n_cols: int) -> None:
        """8 rows; where fewer are left each is read as if it were 8."""
        b = e.b
        left = b.sub(a.n_rows, row)
        whole = b.icmp_signed(">=", left, e.int(ROWS_IN_PLACE))
        with b.if_else(whole, likely=True) as (then, otherwise):
            with then:
                for t, values in zip(tokens, Blocks.rows_in_place(e, quant, a, row, tokens, n_cols, 1)):
                    finish(e, a, values, row, t)
            with otherwise, e.loop(left) as i:
                this = b.add(row, i)
                for t, values in zip(tokens, Blocks.rows_in_place(e, quant, a, this, tokens, n_cols, 0)):
                    finish(e, a, b.extract_element(values, e.int(0, I32)), this, t)

    @staticmethod
    def rows_in_place(e: Emitter, quant: Any, a: Args, row: Any, tokens: Sequence[Any], n_cols: int, stride: int) -> list[Any]:
        """f32x8 for each token: the products of 8 rows, `stride` rows apart. The columns are frozen, so that rows are at fixed distances."""
        b, n_blocks = e.b, n_cols // quant.BLOCK
        row_bytes = n_blocks * quant.BYTES * stride
        first = b.add(a.w, b.mul(row, a.row_bytes))
        sums = [e.var(e.float(0.0, ir.VectorType(F32, ROWS_IN_PLACE))) for _ in tokens]
        with e.loop(e.int(n_blocks // 2)) as pair:
            if stride:
                prefetch_rows(e, e.at(first, ROWS_IN_PLACE * row_bytes), pair, 2 * ROWS_IN_PLACE * quant.BYTES)
            Blocks.two_blocks(e, quant, a, e.at(first, b.mul(pair, e.int(2 * quant.BYTES))), row_bytes, b.shl(pair, e.int(1)), 1, tokens, n_cols, sums)
        if n_blocks % 2:
            last = n_blocks - 1
            Blocks.two_blocks(e, quant, a, e.at(first, last * quant.BYTES), row_bytes, e.int(last), 0, tokens, n_cols, sums)
        return [b.load(total) for total in sums]

    @staticmethod
    def two_blocks(e: Emitter, quant: Any, a: Args, p: Any, row_bytes: int, i: Any, step: int, tokens: Sequence[Any], n_cols: int, sums: Sequence[Any]) -> None:
        """Add blocks i and i + 1 of 8 rows to the sums, in this order; with step 0 block i alone."""
        b = e.b
        rows = [e.at(p, row_bytes * r) for r in range(ROWS_IN_PLACE)]
        weights = [quant.load_pair(e, row, e.at(row, step * quant.BYTES)) for row in rows]
        lanes = list(zip(_blocks.ROW_OF_LANE, _blocks.BLOCK_OF_LANE))
        d = _kquants.gathered_halves(e, [e.at(rows[r], step * quant.BYTES * block) for r, block in lanes], 0)
        of_block = [[lane for lane, (_, block) in enumerate(lanes) if block == which] for which in range(2)]
        for t, token in enumerate(tokens):
            at = b.add(b.add(a.q, b.mul(token, e.int(n_cols))), b.shl(i, e.int(5)))
            activations = e.concat(e.load(I8X32, at), e.load(I8X32, at, 32 * step))
            dots = [e.dot4(e.int(0, I32X16), weight, activations, quant.BELOW_128) for weight in weights]
            place = b.shl(b.add(b.mul(token, e.int(n_cols // quant.BLOCK)), i), e.int(2))
            lower = Blocks.by_block(e, a.sums, place, step, I32)
            integers = b.sub(_blocks.sums_of_rows(e, dots), b.mul(lower, e.int(quant.OFFSET, I32X16)))
            product = b.fmul(b.sitofp(integers, F32X16), b.fmul(d, Blocks.by_block(e, a.d, place, step, F32)))
            for half in of_block[:1 + step]:
                b.store(b.fadd(b.load(sums[t]), e.shuffle(product, half)), sums[t])

    @staticmethod
    def by_block(e: Emitter, base: Any, place: Any, step: int, kind: Any) -> Any:
        """Two neighbouring numbers of an array spread over the lanes of `sums_of_rows`."""
        two = e.load(ir.VectorType(kind, 1 + step), e.b.add(base, place))
        return e.shuffle(two, [step * block for block in _blocks.BLOCK_OF_LANE])

    @staticmethod
    def _add(e: Emitter, total: Any, integers: Any, d: Any, act_d: Any) -> None:
        b = e.b
        b.store(b.fadd(b.load(total), b.fmul(b.sitofp(integers, F32X16), b.fmul(d, e.splat(act_d)))), total)

    @staticmethod
    def unpack(e: Emitter, quant: Any, a: Args, row: Any, panel: Any) -> None:
        b = e.b
        rows = clamped_rows(e, a, row, LANES)
        with e.loop(b.lshr(a.n_cols, e.int(5))) as i:
            offset = b.mul(i, e.int(quant.BYTES))
            blocks, out = [b.add(address, offset) for address in rows], b.add(panel, b.mul(i, e.int(_blocks.PANEL_BYTES)))
            for k, word in enumerate(quant.quarts(e, blocks)):
                e.store(word, out, k * _blocks.VECTOR)
            e.store(_kquants.gathered_halves(e, blocks, 0), out, _blocks.QUARTS)

    @staticmethod
    def tile(e: Emitter, quant: Any, a: Args, row: Any, tokens: Sequence[Any], panel: Any) -> list[list[Any]]:
        b = e.b
        n_blocks = b.lshr(a.n_cols, e.int(5))
        stride = Blocks.panel_stride(e, quant, a)
        panels = [b.add(panel, b.mul(stride, e.int(r))) for r in range(layout.PANEL_ROWS // LANES)]
        sums = [[e.var(e.float(0.0, F32X16)) for _ in tokens] for _ in panels]
        acts = [b.add(a.q, b.mul(t, a.n_cols)) for t in tokens]
        scale_rows = [b.shl(b.mul(t, n_blocks), e.int(2)) for t in tokens]
        with e.loop(n_blocks) as i:
            blocks = [b.add(address, b.mul(i, e.int(_blocks.PANEL_BYTES))) for address in panels]
            places = [b.add(base, b.shl(i, e.int(2))) for base in scale_rows]
            starts = [e.splat(b.mul(e.load(I32, a.sums, place), e.int(-quant.OFFSET, I32))) for place in places]
            integers = [list(starts) for _ in panels]
            for k in range(8):
                weights = [b.bitcast(e.load(I32X16, block, k * _blocks.VECTOR), I8X64) for block in blocks]
                for t, act in enumerate(acts):
                    activations = b.bitcast(e.splat(e.load(I32, b.add(act, b.shl(i, e.int(5))), 4 * k)), I8X64)
                    for r, weight in enumerate(weights):
                        integers[r][t] = e.dot4(integers[r][t], weight, activations, u_below_128=quant.BELOW_128)
            for r, block in enumerate(blocks):
                d = e.load(F32X16, block, _blocks.QUARTS)
                for t, place in enumerate(places):
                    Blocks._add(e, sums[r][t], integers[r][t], d, e.load(F32, a.d, place))
        return [[b.load(total) for total in row_sums] for row_sums in sums]

    @staticmethod
    def panel_stride(e: Emitter, quant: Any, a: Args) -> Any:
        return e.b.mul(e.b.lshr(a.n_cols, e.int(5)), e.int(_blocks.PANEL_BYTES))


class Floats:
    """Float weights with float32 activations: the same code for few tokens, a row at a time so that memory is read in order, and many."""
    few_rows = 1

    @staticmethod
    def few(e: Emitter, quant: Any, a: Args, row: Any, tokens: Sequence[Any], n_rows: int = 1) -> None:
        b = e.b
        rows = clamped_rows(e, a, row, n_rows)
        acts = [b.add(a.x, b.mul(t, b.shl(a.n_cols, e.int(2)))) for t in tokens]
        sums = [[e.var(e.float(0.0, F32X16)) for _ in tokens] for _ in rows]
        rests = [[e.var(e.float(0.0)) for _ in tokens] for _ in rows]
        whole = b.lshr(a.n_cols, e.int(4))
        with e.loop(whole) as i:
            place = b.mul(i, e.int(LANES * quant.BYTES))
            xs = [e.load(F32X16, act, b.shl(i, e.int(6))) for act in acts]
            for r, address in enumerate(rows):
                weight = quant.load(e, b.add(address, place))
                for t, x in enumerate(xs):
                    b.store(e.fma(weight, x, b.load(sums[r][t])), sums[r][t])
        done = b.shl(whole, e.int(4))
        with e.loop(b.sub(a.n_cols, done)) as i:
            column = b.add(done, i)
            for r, address in enumerate(rows):
                weight = quant.load_one(e, b.add(address, b.mul(column, e.int(quant.BYTES))))
                for t, act in enumerate(acts):
                    b.store(e.fma(weight, e.load(F32, act, b.shl(column, e.int(2))), b.load(rests[r][t])), rests[r][t])
        for r in range(n_rows):
            this = b.add(row, e.int(r))
            with b.if_then(b.icmp_signed("<", this, a.n_rows)):
                for t, token in enumerate(tokens):
                    finish(e, a, b.fadd(e.sum_f32(b.load(sums[r][t])), b.load(rests[r][t])), this, token)


FAMILIES: dict[str, Any] = {"q8k": KQuants, "q8_0": Blocks, "float": Floats}


@njit(inline="always")
def rows_of(args, chunk):
    """The first and the last + 1 row of a chunk."""
    first = chunk * load_i64(args + 8)
    return first, min(first + load_i64(args + 8), load_i64(args + 32))


def build_few(quant: Any, family: Any, n_cols: str) -> Any:
    step = family.few_rows
    frozen = {"n_cols": int(n_cols)} if n_cols else {}

    @intrinsic_of(void, i64, i64, i64)
    def several(e: Emitter, args: Any, row: Any, token: Any) -> None:
        a = Args.load(e, args)
        family.few(e, quant, a, row, [e.b.add(token, e.int(t)) for t in range(FEW_AT_ONCE)], **frozen)

    @intrinsic_of(void, i64, i64, i64)
    def single(e: Emitter, args: Any, row: Any, token: Any) -> None:
        family.few(e, quant, Args.load(e, args), row, [token], **frozen)

    def few(args, chunk, scratch):
        first, last = rows_of(args, chunk)
        n_tokens = load_i64(load_i64(args))
        for row in range(first, last, step):
            token = 0
            while token + FEW_AT_ONCE <= n_tokens:
                several(args, row, token)
                token += FEW_AT_ONCE
            while token < n_tokens:
                single(args, row, token)
                token += 1
    return few


def build_many(quant: Any, family: Any) -> Any:
    from . import simd
    n_tile = TILE_TOKENS[simd._isa.__name__.rpartition(".")[2]][quant.KIND]
    if family is Floats:
        return build_many_floats(quant, n_tile)
    n_vectors = layout.PANEL_ROWS // LANES

    @intrinsic_of(void, i64, i64, i64)
    def unpack(e: Emitter, args: Any, row: Any, panel: Any) -> None:
        a = Args.load(e, args)
        with e.loop(e.int(n_vectors)) as r:
            family.unpack(e, quant, a, e.b.add(row, e.b.shl(r, e.int(4))), e.b.add(panel, e.b.mul(r, family.panel_stride(e, quant, a))))

    @intrinsic_of(void, i64, i64, i64, i64)
    def tile(e: Emitter, args: Any, row: Any, token: Any, panel: Any) -> None:
        a = Args.load(e, args)
        values = family.tile(e, quant, a, row, clamped_tokens(e, a, token, n_tile), panel)
        for t in range(n_tile):
            this = e.b.add(token, e.int(t))
            with with_valid(e, a, this):
                for r in range(n_vectors):
                    finish_rows(e, a, values[r][t], e.b.add(row, e.int(r * LANES)), this)

    def many(args, chunk, scratch):
        first, last = rows_of(args, chunk)
        n_tokens = load_i64(load_i64(args))
        if n_tokens > 0:
            for row in range(first, last, 32):
                unpack(args, row, scratch)
                for token in range(0, n_tokens, n_tile):
                    tile(args, row, token, scratch)
    return many


def build_many_floats(quant: Any, n_tile: int) -> Any:
    @intrinsic_of(void, i64, i64, i64)
    def tile(e: Emitter, args: Any, row: Any, token: Any) -> None:
        Floats.few(e, quant, Args.load(e, args), row, [e.b.add(token, e.int(t)) for t in range(n_tile)], FLOAT_ROWS)

    @intrinsic_of(void, i64, i64, i64)
    def single(e: Emitter, args: Any, row: Any, token: Any) -> None:
        Floats.few(e, quant, Args.load(e, args), row, [token], FLOAT_ROWS)

    def many(args, chunk, scratch):
        first, last = rows_of(args, chunk)
        n_tokens = load_i64(load_i64(args))
        token = 0
        while token + n_tile <= n_tokens:
            for row in range(first, last, FLOAT_ROWS):
                tile(args, row, token)
            token += n_tile
        while token < n_tokens:
            for row in range(first, last, FLOAT_ROWS):
                single(args, row, token)
            token += 1
    return many
