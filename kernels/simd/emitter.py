"""`Emitter`: the primitives that kernels are written with. Some of them differ from ISA to ISA."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from ..isa import named, target
from ..layout import LANES
from .vectors import F32, F32X16, I8, I16, I32, I32X4, I64, Address, Vector, like

_isa: Any = None


def set_isa(name: str) -> None:
    """Emit code for this ISA from now on. The compiler calls it before it lowers a kernel."""
    global _isa
    _isa = importlib.import_module(f".{name}", __package__)


def has_feature(name: str) -> bool:
    """Whether the CPU that code is emitted for has a feature (LLVM's name) that its ISA doesn't guarantee."""
    features: str = target(named(_isa.__name__.rpartition(".")[2])).features
    return f"+{name}" in features.split(",")


def in_quarters(lanes: Sequence[int]) -> list[int]:
    """Return the mask for the same shuffle in each quarter of two i32x16. `lanes` 0 to 3 belong to the first vector, 4 to 7 to the
    second."""
    return [4 * quarter + i % 4 + 16 * (i // 4) for quarter in range(4) for i in lanes]


class Emitter:
    """LLVM's builder with the operations that kernels need. Addresses are i64 values, offsets are Python integers or i64 values."""

    def __init__(self, builder: Any) -> None:
        self.b = builder
        self.isa = _isa
        self._lines: tuple[Any, int] | None = None
        self._vectors: list[Any] = []

    def int(self, value: int, kind: Any = I64) -> Any:
        return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)

    def float(self, value: float, kind: Any = F32) -> Any:
        return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)

    def at(self, address: Address, offset: Any) -> Any:
        if isinstance(offset, int):
            return self.b.add(address, self.int(offset)) if offset else address
        return self.b.add(address, offset)

    def load(self, kind: Any, address: Address, offset: Any = 0) -> Any:
        value = self.b.load(self.b.inttoptr(self.at(address, offset), kind.as_pointer()))
        value.align = 1
        return value

    def store(self, value: Any, address: Address, offset: Any = 0) -> None:
        if isinstance(value.type, ir.VectorType):
            self._used(value)
        self.b.store(value, self.b.inttoptr(self.at(address, offset), value.type.as_pointer())).align = 1

    def stream(self, value: Vector, address: Address, offset: Any = 0) -> None:
        """Store to an aligned address that isn't read again soon, bypassing the caches if the ISA can."""
        store = self.b.store(value, self.b.inttoptr(self.at(address, offset), value.type.as_pointer()))
        store.align = value.type.count * 4
        store.set_metadata("nontemporal", self.b.module.add_metadata([self.int(1, I32)]))

    def prefetch(self, address: Address, level: int = 1, write: bool = False) -> None:
        """Prefetch a cache line into the cache of `level`, to `write` to it or just to read it. Any address is safe: memory that can't be
        read is ignored."""
        pointer = self.b.inttoptr(address, I8.as_pointer())
        access, locality, data = self.int(int(write), I32), self.int(4 - level, I32), self.int(1, I32)
        self.call("llvm.prefetch.p0", ir.VoidType(), pointer, access, locality, data)

    @contextmanager
    def spreading(self, start: Address, n_lines: int, together: int = 1) -> Iterator[None]:
        """Prefetch `n_lines` cache lines from `start` on while the body computes: `together` at a time, in order, spread evenly over the
        vectors that the body multiplies or stores. Each comes before one of them is used: after results, which may be needed only at the
        end, LLVM could gather them there."""
        self._lines, self._vectors = (start, n_lines), []
        before = set(self.b.block.instructions)
        yield
        lines, vectors = self._lines, self._vectors
        self._lines, self._vectors = None, []
        if lines is None:  # a loop in the body has done it
            return
        block = self.b.block
        vectors = [vector for vector in vectors if vector.parent is block and vector not in before]
        n_places = -(-n_lines // together)
        for place in reversed(range(n_places)):
            vector = vectors[(2 * place + 1) * len(vectors) // (2 * n_places)]
            tied = vector
            self.b.position_after(vector)
            for line in range(place * together, min((place + 1) * together, n_lines)):
                tied = self.isa.prefetch_with(self, tied, start, 64 * line)
            for user in block.instructions[block.instructions.index(tied) + 1 :]:
                user.replace_usage(vector, tied)
        self.b.position_at_end(block)

    @contextmanager
    def sharing(self, i: Any, n: int) -> Iterator[None]:
        """Turn i of a loop of n turns in the body of `spreading`: each prefetches its share of the lines."""
        if self._lines is None:
            yield
            return
        start, n_lines = self._lines
        share = -(-n_lines // n)
        with self.spreading(self.at(start, self.b.mul(i, self.int(64 * share))), share):
            yield

    def _used(self, vector: Any) -> None:
        """Note a vector that is multiplied or stored: `spreading` may prefetch before."""
        if self._lines and isinstance(vector, ir.Instruction) and vector not in self._vectors:
            self._vectors.append(vector)

    def shuffle(self, x: Any, mask: Sequence[int], y: Any = None) -> Any:
        mask_type = ir.VectorType(I32, len(mask))
        return self.b.shuffle_vector(
            x, ir.Constant(x.type, ir.Undefined) if y is None else y, ir.Constant(mask_type, list(mask))
        )

    def splat(self, scalar: Any, lanes: int = LANES) -> Any:
        kind = ir.VectorType(scalar.type, lanes)
        return self.shuffle(
            self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, self.int(0, I32)), [0] * lanes
        )

    def concat(self, x: Any, y: Any) -> Any:
        return self.shuffle(x, range(2 * x.type.count), y)

    def join(self, four: Sequence[Any]) -> Any:
        return self.concat(self.concat(*four[:2]), self.concat(*four[2:]))

    def half(self, x: Any, which: int) -> Any:
        n = x.type.count // 2
        return self.shuffle(x, range(which * n, which * n + n))

    def call(self, name: str, result: Any, *args: Any) -> Any:
        function = cgutils.get_or_insert_function(
            self.b.module, ir.FunctionType(result, [a.type for a in args]), name
        )
        return self.b.call(function, args)

    def var(self, value: Any) -> Any:
        """Return a new variable, which LLVM turns into a register."""
        slot = cgutils.alloca_once(self.b, value.type)
        self.b.store(value, slot)
        return slot

    def memory(self, n_bytes: int) -> Any:
        """Return the address of memory on the stack. It isn't cleared: clearing a lot would call a library function."""
        with self.b.goto_entry_block():
            place = self.b.alloca(ir.ArrayType(F32X16, n_bytes // 64))
        return self.b.ptrtoint(place, I64)

    @contextmanager
    def loop(self, count: Any) -> Iterator[Any]:
        """Loop over the indices 0 .. count-1, i64. The body is emitted once."""
        with cgutils.for_range(self.b, count) as body:
            yield body.index

    def sum_i32(self, x: Any) -> Any:
        """Return the sum of all lanes. They are integers, so the order doesn't matter."""
        return self.call(f"llvm.vector.reduce.add.v{x.type.count}i32", I32, x)

    def tree(self, combine: Callable[[Any, Any], Any], x: Any) -> Any:
        """Combine all lanes pairwise, the lower half with the upper half. Floats are always reduced in this order."""
        while x.type.count > 1:
            x = combine(self.half(x, 0), self.half(x, 1))
        return self.b.extract_element(x, self.int(0, I32))

    def sum_f32(self, x: Any) -> Any:
        return self.tree(self.b.fadd, x)

    def least(self, x: Any, y: Any) -> Any:
        """Return the smaller of two signed integers."""
        return self.b.select(self.b.icmp_signed("<", x, y), x, y)

    def larger(self, x: Any, y: Any) -> Any:
        """The larger of two floats, y if one is NaN."""
        return self.b.select(self.b.fcmp_ordered(">", x, y), x, y)

    def abs(self, x: Any) -> Any:
        ints = like(x, I32)
        return self.b.bitcast(self.b.and_(self.b.bitcast(x, ints), self.int(0x7FFFFFFF, ints)), x.type)

    def nearest(self, x: Any) -> Any:
        """Round to the nearest integer, ties to even, as i32 lanes, for |x| < 2**22: x + 1.5 * 2**23 has the integer in its last bits."""
        magic = 12582912.0
        kind = ir.VectorType(I32, x.type.count)
        bits = self.b.bitcast(self.b.fadd(x, self.float(magic, x.type)), kind)
        return self.b.sub(bits, self.int(0x4B400000, kind))

    def exp(self, x: Any) -> Any:
        """e**x, relative error below 2e-7, 0 below -87, exactly 1 at 0; NaN stays NaN. Reduction and polynomial as in Cephes' expf."""
        b, f = self.b, lambda value: self.float(value, x.type)
        clamped = b.select(b.fcmp_ordered("<", x, f(-87.0)), f(-87.0), x)
        clamped = b.select(b.fcmp_ordered(">", clamped, f(88.0)), f(88.0), clamped)
        n = self.nearest(b.fmul(clamped, f(1.44269504088896341)))
        n_float = b.sitofp(n, x.type)
        r = b.fsub(b.fsub(clamped, b.fmul(n_float, f(0.693359375))), b.fmul(n_float, f(-2.12194440e-4)))
        p = f(1.9875691500e-4)
        for c in 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1:
            p = b.fadd(b.fmul(p, r), f(c))
        p = b.fadd(b.fadd(b.fmul(p, b.fmul(r, r)), r), f(1.0))
        power = b.bitcast(b.shl(b.add(n, self.int(127, n.type)), self.int(23, n.type)), x.type)
        return b.select(b.fcmp_ordered("<", x, f(-87.0)), f(0.0), b.fmul(p, power))

    def softplus(self, x: Any) -> Any:
        """log(1 + e**x), relative error below 4e-7 unless the result is below e**-87; infinity and NaN stay so.

        It is max(x, 0) + log(1 + u) with u = e**-|x| <= 1, and log(1 + u) = 2 atanh(u / (2 + u)), whose series converges fast.
        """
        b, f = self.b, lambda value: self.float(value, x.type)
        u = self.exp(b.fneg(self.abs(x)))
        s = b.fdiv(u, b.fadd(u, f(2.0)))
        square = b.fmul(s, s)
        p = f(1 / 15)
        for n in 13, 11, 9, 7, 5, 3, 1:
            p = b.fadd(b.fmul(p, square), f(1 / n))
        return b.fadd(self.larger(f(0.0), x), b.fmul(b.fadd(s, s), p))

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """x * y + z, rounded once if the ISA has an instruction for it."""
        self._used(x)
        return self.isa.fma(self, x, y, z)

    def fma_exact(self, x: Any, y: Any, z: Any) -> Any:
        """x * y + z, rounded once on every ISA, for results that are quantized next: a difference in the last bit would grow."""
        self._used(y)
        return self.isa.fma_exact(self, x, y, z)

    def f16_to_f32(self, halves: Any) -> Any:
        """i16 lanes (or one i16) holding half floats -> f32."""
        return self.isa.f16_to_f32(self, halves)

    def f32_to_f16(self, x: Any) -> Any:
        """f32 lanes (or one f32) -> half floats in i16, rounded to nearest even."""
        return self.isa.f32_to_f16(self, x)

    def dot4(self, acc: Any, u: Any, s: Any) -> Any:
        """acc[i] += sum of 4 products of bytes: i32x16, i8x64 from 0 to 127, i8x64 signed, above -128. Exact."""
        self._used(u)
        return self.isa.dot4(self, acc, u, s)

    def dot4_wide(self, acc: Any, w: Any, s: Any) -> Any:
        """dot4 for any signed bytes w, `raised` as this ISA needs them. Exact."""
        self._used(w)
        return self.isa.dot4_wide(self, acc, w, s)

    def raised(self, w: Any) -> Any:
        """Prepare signed bytes, in lanes of any width, for dot4_wide: 128 is added if the ISA multiplies unsigned bytes by signed ones."""
        return (
            self.b.xor(w, self.int(int.from_bytes(b"\x80" * (w.type.element.width // 8), "little"), w.type))
            if self.isa.RAISED
            else w
        )

    @property
    def registers(self) -> int:
        """The number of 64-byte vectors that fit into the registers."""
        return int(self.isa.REGISTERS)

    @property
    def picks_words(self) -> bool:
        """Whether one instruction can pick any 32 of the 16-bit words in two vectors."""
        return bool(self.isa.PICKS_WORDS)

    @property
    def raised_by(self) -> int:
        """The number that `raised` adds to each byte."""
        return 128 if self.isa.RAISED else 0

    def lookup(self, table: Sequence[int], indices: Any) -> Any:
        """Look up 64 bytes in a table of 16 numbers from -128 to 127. `indices` are i8 lanes from 0 to 15."""
        return self.isa.lookup(self, table, indices)

    def bits(self, data: Any, which: Sequence[int] | None = None) -> Any:
        """Bytes -> i1 lanes: the bits with the numbers `which`, by default all of them. Bit 0 is the lowest bit of the first byte."""
        which = range(8 * data.type.count) if which is None else which
        each = self.shuffle(data, [i // 8 for i in which])
        mask = ir.Constant(each.type, [(1 << i % 8 ^ 128) - 128 for i in which])
        return self.b.icmp_unsigned("!=", self.b.and_(each, mask), self.int(0, each.type))

    def constant(self, data: bytes) -> Any:
        """Return the address of constant memory with these bytes. All callers in a kernel share it, so that a table stays in the cache."""
        name = f"constant_{hashlib.sha256(data).hexdigest()[:16]}"
        module = self.b.module
        found = module.globals.get(name) or cgutils.global_constant(
            module, name, cgutils.make_bytearray(data)
        )
        found.align = 64
        return self.b.ptrtoint(found, I64)

    def pairs(self, u: Any, s: Any) -> Any:
        """Sums of 2 products u8 * i8 in i16 lanes: i8x64 unsigned below 128, i8x64 signed -> i16x32. Exact."""
        self._used(u)
        return self.isa.pairs(self, u, s)

    def dot2(self, acc: Any, x: Any, y: Any) -> Any:
        """acc[i] += sum of 2 products i16 * i16: i32x16, i16x32, i16x32. Exact."""
        self._used(x)
        return self.isa.dot2(self, acc, x, y)

    def packed(self, x: Any, y: Any) -> Any:
        """Two i32x16 of numbers that fit into 16 bits -> i16x32. Each quarter holds four of x, then four of y."""
        return self.isa.packed(self, x, y)

    def f32_to_bf16(self, x: Any) -> Any:
        """f32 lanes -> their upper halves as i16, rounded to nearest even; NaN stays NaN."""
        b, kind = self.b, like(x, I32)
        bits = b.bitcast(x, kind)
        odd = b.and_(b.lshr(bits, self.int(16, kind)), self.int(1, kind))
        rounded = b.add(bits, b.add(odd, self.int(0x7FFF, kind)))
        is_nan = b.fcmp_unordered("uno", x, x)
        rounded = b.select(is_nan, b.or_(bits, self.int(0x400000, kind)), rounded)
        return b.trunc(b.lshr(rounded, self.int(16, kind)), like(x, I16))

    def dot_bf16(self, acc: Any, x: Any, y: Any) -> Any:
        """acc[i] += the sum of 2 products bf16 * bf16: f32x16, i16x32, i16x32. Two fused additions; the odd lanes' product is added
        first."""
        self._used(x)
        return self.isa.dot_bf16(self, acc, x, y)

    def load_f16(self, address: Address, offset: Any = 0) -> Any:
        return self.f16_to_f32(self.load(I16, address, offset))

    def sums_of_quarters(self, vectors: Sequence[Any]) -> Any:
        """Four i32x16 -> an i32x16: its quarter q holds the sums of the four vectors' quarters q, by a transposed tree of additions."""

        def step(x: Any, y: Any, low: Sequence[int], high: Sequence[int]) -> Any:
            """Every four lanes of x and of y -> two sums of pairs of x, then two of y."""
            return self.b.add(self.shuffle(x, in_quarters(low), y), self.shuffle(x, in_quarters(high), y))

        two = [step(x, y, (0, 4, 1, 5), (2, 6, 3, 7)) for x, y in (vectors[:2], vectors[2:])]
        return step(*two, (0, 1, 4, 5), (2, 3, 6, 7))

    def transposed(self, rows: Sequence[Any], offset: int, n_words: int) -> list[Any]:
        """Load `n_words` u32, a multiple of 4, from each of 16 addresses. Returns `n_words` i32x16, with the rows in lanes."""
        out = []
        for first in range(offset, offset + 4 * n_words, 16):
            pieces = [self.load(I32X4, row, first) for row in rows]
            # a vector takes every fourth row, one row in each quarter: loads can do that, and then nothing is shuffled across quarters
            x = [
                self.concat(self.concat(pieces[i], pieces[4 + i]), self.concat(pieces[8 + i], pieces[12 + i]))
                for i in range(4)
            ]
            low, high = (
                [self.shuffle(x[i], in_quarters(lanes), x[i + 1]) for i in (0, 2)]
                for lanes in ((0, 4, 1, 5), (2, 6, 3, 7))
            )
            out += [
                self.shuffle(x, in_quarters(lanes), y)
                for x, y in (low, high)
                for lanes in ((0, 1, 4, 5), (2, 3, 6, 7))
            ]
        return out
