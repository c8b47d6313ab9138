"""KV cache types with blocks of 32 values: quants as GGML packs them, then a half-precision scale for each block of a position.

The quants of keys are words of four bytes, [head_dim / 32][words][PAGE], so that positions are in lanes. The quants of values interleave
the bytes of two positions, [head_dim / 32][PAGE / 2][bytes of a block][2]. The scales of both are [head_dim / 32][PAGE].

Queries are quantized to Q8_0, as in llama.cpp, and products are summed as integers inside a block, then as floats in block order. Values
are summed as integers too, over the positions of a page: for each block, a position's weight times its scale becomes an i16, 32767 for the
largest. The error is at most 2**-16 of the largest product, and 2**-8 of a block's largest quant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from llvmlite import ir

from ..activations import largest_magnitude, quantize_q8_0
from ..layout import KV_BLOCK, PAGE
from ..simd import F32, F32X16, I8, I8X64, I16, I16X16, I16X32, I32, I32X16, LANES, Emitter
from ._slots import fetch_lines, rows_from
from ._tiles import VECTORS, Ahead, side_by_side

LARGEST = 32767.0
"""The i16 that the largest weight of a page becomes."""
NOTHING = 2.0**-100
"""If all weights are smaller than this they count as 0: their inverse might not be finite."""


class Blocks(NamedTuple):
    """A type with blocks of `n_bytes`, without the scale.

    `quantize(e, x)` returns the scale and the packed quants, i8 lanes, of the 32 floats at x. `key_parts(e, bytes)` turns i8x64 into the
    factors for the query's first quants and, if there are two, for the 16 quants after them. They are `raised` if `wide` is true, else
    `offset` has to be subtracted. `value_half(e, pair, half)` returns 16 quants of each of two positions, i16x32.
    """

    n_bytes: int
    offset: int
    wide: bool
    quantize: Callable[[Emitter, Any], tuple[Any, Any]]
    key_parts: Callable[[Emitter, Any], Sequence[Any]]
    value_half: Callable[[Emitter, Any, int], Any]
    QUANTIZED = True

    def fetch_key(self, e: Emitter, keys: Any, slot: Any, head_dim: Any) -> None:
        n_words = e.b.mul(self._n_blocks(e, head_dim), e.int(self.n_bytes // 4))
        fetch_lines(e, e.at(keys, e.b.shl(slot, e.int(2))), n_words, e.int(4 * PAGE))
        self._fetch_scales(e, keys, slot, head_dim)

    def fetch_value(self, e: Emitter, values: Any, slot: Any, head_dim: Any) -> None:
        pair = e.at(values, e.b.mul(e.b.lshr(slot, e.int(1)), e.int(2 * self.n_bytes)))
        fetch_lines(e, pair, self._n_blocks(e, head_dim), e.int(self.n_bytes * PAGE))
        self._fetch_scales(e, values, slot, head_dim)

    def _fetch_scales(self, e: Emitter, slab: Any, slot: Any, head_dim: Any) -> None:
        n_blocks = self._n_blocks(e, head_dim)
        fetch_lines(e, self._scale_at(e, slab, n_blocks, e.int(0), slot), n_blocks, e.int(2 * PAGE))

    def store_key(self, e: Emitter, x: Any, keys: Any, slot: Any, head_dim: Any) -> None:
        b, n_words = e.b, self.n_bytes // 4
        n_blocks = self._n_blocks(e, head_dim)
        with e.loop(n_blocks) as i:
            scale, packed = self.quantize(e, e.at(x, b.shl(i, e.int(7))))
            words = b.bitcast(packed, ir.VectorType(I32, n_words))
            column = e.at(keys, b.add(b.mul(i, e.int(self.n_bytes * PAGE)), b.shl(slot, e.int(2))))
            for word in range(n_words):
                e.store(b.extract_element(words, e.int(word, I32)), column, 4 * PAGE * word)
            e.store(e.f32_to_f16(scale), self._scale_at(e, keys, n_blocks, i, slot))

    def store_value(self, e: Emitter, x: Any, values: Any, slot: Any, head_dim: Any) -> None:
        b = e.b
        n_blocks = self._n_blocks(e, head_dim)
        column = b.add(b.mul(b.lshr(slot, e.int(1)), e.int(2 * self.n_bytes)), b.and_(slot, e.int(1)))
        with e.loop(n_blocks) as i:
            scale, packed = self.quantize(e, e.at(x, b.shl(i, e.int(7))))
            place = e.at(values, b.add(b.mul(i, e.int(self.n_bytes * PAGE)), column))
            # byte by byte: the bytes between may be written by another thread at the same time
            for k in range(self.n_bytes):
                e.store(b.extract_element(packed, e.int(k, I32)), place, 2 * k)
            e.store(e.f32_to_f16(scale), self._scale_at(e, values, n_blocks, i, slot))

    def store_keys(self, e: Emitter, x: Any, stride: Any, keys: Any, slot: Any, head_dim: Any) -> None:
        b, n_blocks = e.b, self._n_blocks(e, head_dim)
        packed, scales = e.memory(LANES * self.n_bytes), e.memory(4 * LANES)
        with e.loop(n_blocks) as i:
            self._quantize_rows(e, e.at(x, b.shl(i, e.int(7))), stride, packed, scales)
            column = e.at(keys, b.add(b.mul(i, e.int(self.n_bytes * PAGE)), b.shl(slot, e.int(2))))
            words = e.transposed(rows_from(e, packed, e.int(self.n_bytes)), 0, self.n_bytes // 4)
            for k, word in enumerate(words):
                e.store(word, column, 4 * PAGE * k)
            e.store(e.f32_to_f16(e.load(F32X16, scales)), self._scale_at(e, keys, n_blocks, i, slot))

    def store_values(self, e: Emitter, x: Any, stride: Any, values: Any, slot: Any, head_dim: Any) -> None:
        b, n_blocks = e.b, self._n_blocks(e, head_dim)
        packed, scales = e.memory(LANES * self.n_bytes), e.memory(4 * LANES)
        with e.loop(n_blocks) as i:
            self._quantize_rows(e, e.at(x, b.shl(i, e.int(7))), stride, packed, scales)
            pairs = e.at(values, b.mul(b.add(b.mul(i, e.int(PAGE)), slot), e.int(self.n_bytes)))
            for k in range(0, LANES * self.n_bytes, 2 * self.n_bytes):
                first, second = (
                    e.load(ir.VectorType(I8, self.n_bytes), packed, k + of_second)
                    for of_second in (0, self.n_bytes)
                )
                mask = [of_second + byte for byte in range(self.n_bytes) for of_second in (0, self.n_bytes)]
                e.store(e.shuffle(first, mask, second), pairs, k)
            e.store(e.f32_to_f16(e.load(F32X16, scales)), self._scale_at(e, values, n_blocks, i, slot))

    def _quantize_rows(self, e: Emitter, x: Any, stride: Any, packed: Any, scales: Any) -> None:
        """Quantize a block of each of LANES rows: the quants to `packed`, [LANES] of `n_bytes`, the scales to `scales`, float32."""
        b = e.b
        with e.loop(e.int(LANES)) as row:
            scale, quants = self.quantize(e, e.at(x, b.mul(row, stride)))
            e.store(quants, packed, b.mul(row, e.int(self.n_bytes)))
            e.store(scale, scales, b.shl(row, e.int(2)))

    def _n_blocks(self, e: Emitter, head_dim: Any) -> Any:
        return e.b.lshr(head_dim, e.int(5))

    def _scale_at(self, e: Emitter, slab: Any, n_blocks: Any, i: Any, slot: Any) -> Any:
        """Return the address of block i's scale in a slot."""
        b = e.b
        scales = e.at(slab, b.mul(n_blocks, e.int(self.n_bytes * PAGE)))
        return e.at(scales, b.shl(b.add(b.mul(i, e.int(PAGE)), slot), e.int(1)))

    def quantize_query(self, e: Emitter, query: Any, memory: Any, head_dim: int) -> None:
        """Store [head_dim] i8 quants, then an f32 scale for each block, then two i16 sums of quants for each block."""
        scales = head_dim + head_dim // KV_BLOCK * 4
        quantize_q8_0(e, query, memory, e.at(memory, head_dim), e.at(memory, scales), e.int(head_dim))

    def score_tile(
        self,
        e: Emitter,
        queries: Sequence[Any],
        keys: Any,
        scale: Any,
        out: Sequence[Any],
        head_dim: int,
        ahead: Ahead,
    ) -> None:
        b, n = e.b, side_by_side(e)
        n_blocks, n_words = head_dim // KV_BLOCK, self.n_bytes // 4
        dot4, offset = (e.dot4_wide, e.raised_by) if self.wide else (e.dot4, self.offset)
        with e.loop(e.int(VECTORS // n)) as part:
            totals = [[e.var(e.float(0.0, F32X16)) for _ in range(n)] for _ in queries]
            with e.loop(e.int(n_blocks)) as i:
                of_block = b.shl(i, e.int(2))
                of_quants = [
                    b.sext(e.load(I16, q, b.add(of_block, e.int(head_dim + 4 * n_blocks))), I32)
                    for q in queries
                ]
                starts = [e.splat(b.mul(total, e.int(-offset, I32))) for total in of_quants]
                sums = [[e.var(start) for _ in range(n)] for start in starts]
                with e.loop(e.int(n_words)) as word:
                    row = e.at(
                        keys,
                        b.add(
                            b.mul(b.add(b.mul(i, e.int(n_words)), word), e.int(4 * PAGE)),
                            b.mul(part, e.int(64 * n)),
                        ),
                    )
                    of_part = b.add(
                        b.mul(part, e.int(n_blocks * n_words)), b.add(b.mul(i, e.int(n_words)), word)
                    )
                    place = b.add(b.mul(i, e.int(KV_BLOCK)), b.shl(word, e.int(2)))
                    with ahead.fetching(e, of_part, VECTORS // n * n_blocks * n_words):
                        key = [self.key_parts(e, e.load(I8X64, row, 64 * j)) for j in range(n)]
                        for query, total in zip(queries, sums):
                            for which in range(len(key[0])):
                                word_at = e.at(query, place)
                                quants = b.bitcast(e.splat(e.load(I32, word_at, 16 * which)), I8X64)
                                for j in range(n):
                                    b.store(dot4(b.load(total[j]), key[j][which], quants), total[j])
                halves = e.at(keys, b.add(b.mul(i, e.int(2 * PAGE)), b.mul(part, e.int(2 * LANES * n))))
                d = [
                    e.f16_to_f32(e.load(I16X16, halves, n_blocks * self.n_bytes * PAGE + 2 * LANES * j))
                    for j in range(n)
                ]
                for query, integers, total in zip(queries, sums, totals):
                    of_query = e.splat(e.load(F32, query, b.add(of_block, e.int(head_dim))))
                    for j in range(n):
                        product = b.fmul(b.sitofp(b.load(integers[j]), F32X16), b.fmul(d[j], of_query))
                        b.store(b.fadd(b.load(total[j]), product), total[j])
            for address, total in zip(out, totals):
                for j in range(n):
                    e.store(
                        b.fmul(b.load(total[j]), e.splat(scale)),
                        b.add(address, b.mul(part, e.int(4 * LANES * n))),
                        64 * j,
                    )

    def quantize_weights(
        self, e: Emitter, weights: Any, values: Any, n_valid: Any, memory: Any, head_dim: int
    ) -> None:
        """Store [head_dim / 32][PAGE] i16 factors for the quants of each block, then the f32 scale of each block's factors."""
        b, n_blocks = e.b, head_dim // KV_BLOCK
        limit = e.splat(b.trunc(n_valid, I32))
        visible = [
            b.icmp_signed("<", ir.Constant(I32X16, [LANES * j + i for i in range(LANES)]), limit)
            for j in range(VECTORS)
        ]
        with e.loop(e.int(n_blocks)) as i:
            halves, products = e.at(values, b.mul(i, e.int(2 * PAGE))), []
            for j, sees in enumerate(visible):
                d = e.f16_to_f32(e.load(I16X16, halves, n_blocks * self.n_bytes * PAGE + 2 * LANES * j))
                products.append(
                    b.select(sees, b.fmul(e.load(F32X16, weights, 64 * j), d), e.float(0.0, F32X16))
                )
            largest = largest_magnitude(e, products)
            nothing = b.fcmp_ordered("<", largest, e.float(NOTHING))
            inverse = b.select(nothing, e.float(0.0), b.fdiv(e.float(LARGEST), largest))
            out = e.at(memory, b.mul(i, e.int(2 * PAGE)))
            for j, product in enumerate(products):
                e.store(b.trunc(e.nearest(b.fmul(product, e.splat(inverse))), I16X16), out, 2 * LANES * j)
            scale = b.select(nothing, e.float(0.0), b.fmul(largest, e.float(1.0 / LARGEST)))
            e.store(scale, memory, b.add(e.int(n_blocks * 2 * PAGE), b.shl(i, e.int(2))))

    def weigh_tile(
        self,
        e: Emitter,
        weights: Sequence[Any],
        values: Any,
        n_valid: Sequence[Any],
        accs: Sequence[Any],
        factors: Sequence[Any],
        head_dim: int,
        ahead: Ahead,
    ) -> None:
        """Two positions at once. Weights of positions that a query doesn't see are 0, which is safe since quants are finite."""
        b, n_blocks = e.b, head_dim // KV_BLOCK
        n_pairs = b.lshr(b.add(n_valid[-1], e.int(1)), e.int(1))
        together = 2 if side_by_side(e) == 4 and n_blocks % 2 == 0 else 1
        halves = [(k, half) for k in range(together) for half in (0, 1)]
        with e.loop(e.int(n_blocks // together)) as group:
            first = b.mul(group, e.int(together))
            for number, part in enumerate([halves] if side_by_side(e) == 4 else [[one] for one in halves]):
                sums = [[e.var(e.int(0, I32X16)) for _ in part] for _ in weights]
                with e.loop(n_pairs) as pair:
                    row = e.at(
                        values,
                        b.add(b.mul(first, e.int(self.n_bytes * PAGE)), b.mul(pair, e.int(2 * self.n_bytes))),
                    )
                    turn = b.add(b.mul(group, e.int(PAGE // 2)), pair)
                    n_turns = n_blocks // together * PAGE // 2
                    with ahead.fetching(e, turn, n_turns) if number == 0 else nullcontext():
                        quants = [
                            self.value_half(e, e.at(row, k * self.n_bytes * PAGE), half) for k, half in part
                        ]
                        for weight, totals in zip(weights, sums):
                            place = e.at(weight, b.add(b.mul(first, e.int(2 * PAGE)), b.shl(pair, e.int(2))))
                            two = {
                                k: b.bitcast(e.splat(e.load(I32, place, 2 * PAGE * k)), I16X32)
                                for k, _ in part
                            }
                            for (k, _), quant, total in zip(part, quants, totals):
                                b.store(e.dot2(b.load(total), quant, two[k]), total)
                results = []
                for weight, acc, factor, totals in zip(weights, accs, factors, sums):
                    scales = e.at(weight, b.add(e.int(n_blocks * 2 * PAGE), b.shl(first, e.int(2))))
                    place = e.at(acc, b.mul(first, e.int(4 * KV_BLOCK)))
                    for (k, half), total in zip(part, totals):
                        offset = 4 * KV_BLOCK * k + 64 * half
                        more = b.fmul(b.sitofp(b.load(total), F32X16), e.splat(e.load(F32, scales, 4 * k)))
                        results.append(
                            (
                                b.fadd(b.fmul(e.load(F32X16, place, offset), e.splat(factor)), more),
                                place,
                                offset,
                            )
                        )
                for result in results:  # only after all loads: the last tile may contain the same query twice
                    e.store(*result)
