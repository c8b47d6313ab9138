"""Gated delta nets: the convolution before them, their gates, and the recurrence itself.

Each sequence of a step has a segment, described by an arguments.STATE. There may be a border in the segment, where the state is kept too. A
state that is read is never written. Tokens are computed one by one and all sums have a fixed order, so the state and the results are the
same bits however a sequence is divided into segments.

A layer's part of a state is the last d_conv - 1 rows that entered the convolution, then the matrix S of each head, in blocks of
`layout.state_width` columns. A block is stored row by row, so that the memory that a chunk works on is contiguous and stays in the L1
cache.
"""

from __future__ import annotations

from typing import Any

from . import activations, layout
from .arguments import CONV, GATES, NORMALISE, POINTERS, SCAN, STATE
from .ops import tokens_of
from .reading import reader
from .runtime import fence
from .simd import F32, F32X16, Emitter, f32, i64, intrinsic_of, load_f32, store_f32, void

LANES = layout.LANES
STATE_BYTES = STATE.n_bytes
read_pointers, read_state = reader(POINTERS), reader(STATE)
AT_ONCE = 4  # rows of S per turn of a loop


def copy_of(n_bytes: int) -> Any:
    """Return f(source, to), which copies `n_bytes`, a multiple of 64."""

    @intrinsic_of(void, i64, i64)
    def copy(e: Emitter, source: Any, to: Any) -> None:
        with e.loop(e.int(n_bytes // 64)) as i:
            offset = e.b.shl(i, e.int(6))
            e.store(e.load(F32X16, source, offset), to, offset)

    return copy


def clear_of(n_bytes: int) -> Any:
    @intrinsic_of(void, i64)
    def clear(e: Emitter, to: Any) -> None:
        with e.loop(e.int(n_bytes // 64)) as i:
            e.store(e.float(0.0, F32X16), to, e.b.shl(i, e.int(6)))

    return clear


def normalise_of(d: int) -> Any:
    """Return f(out, eps, is_query), which divides a head by sqrt(sum of squares + eps), a query also by sqrt(d)."""

    @intrinsic_of(void, i64, f32, i64)
    def normalise(e: Emitter, out: Any, eps: Any, is_query: Any) -> None:
        b, n = e.b, e.int(d)

        def square(offset: Any, kind: Any) -> Any:
            value = e.load(kind, out, offset)
            return b.fmul(value, value)

        total = b.fadd(activations.sum_of(e, n, square), eps)
        scale = b.select(b.icmp_signed("!=", is_query, e.int(0)), e.float(d**-0.5), e.float(1.0))
        scale = b.fdiv(scale, e.call("llvm.sqrt.f32", F32, total))
        activations.each_lane(
            e,
            n,
            lambda offset, kind: e.store(
                b.fmul(e.load(kind, out, offset), activations.lanes(e, scale, kind)), out, offset
            ),
        )

    return normalise


def build_conv(d_text: str, d_conv_text: str) -> Any:
    """out = silu(convolution). Heads of queries and keys are then divided by sqrt(sum of their squares + eps), queries also by sqrt(d).

    A chunk is some heads of a segment, of d channels each. x and out are float32 [tokens, heads, d], weight is [heads * d, d_conv].
    """
    d, d_conv = int(d_text), int(d_conv_text)
    read = reader(CONV)
    n_before, head_bytes = d_conv - 1, 4 * d

    @intrinsic_of(i64)
    def memory_of_taps(e: Emitter) -> Any:
        return e.memory(d_conv * head_bytes)

    @intrinsic_of(i64)
    def memory_of_rows(e: Emitter) -> Any:
        return e.memory(2 * n_before * head_bytes)

    @intrinsic_of(void, i64, i64)
    def load_taps(e: Emitter, weight: Any, taps: Any) -> None:
        """[d, d_conv] -> [d_conv, d]"""
        with e.loop(e.int(d // LANES)) as i:
            to = e.b.shl(i, e.int(6))
            parts = [e.load(F32X16, e.at(weight, e.b.mul(to, e.int(d_conv))), 64 * j) for j in range(d_conv)]
            for tap in range(d_conv):
                e.store(
                    picked(e, parts, [d_conv * lane + tap for lane in range(LANES)]),
                    e.at(taps, to),
                    head_bytes * tap,
                )

    @intrinsic_of(void, i64, i64, i64, i64)
    def convolve(e: Emitter, rows: Any, stride: Any, taps: Any, out: Any) -> None:
        """Compute a head of a token from d_conv rows of the head; the last one is the token's own."""
        b = e.b
        places = [e.at(rows, b.mul(stride, e.int(j))) for j in range(d_conv)]
        with e.loop(e.int(d // LANES)) as i:
            offset = b.shl(i, e.int(6))
            total = None
            for j, place in enumerate(places):
                x, tap = e.load(F32X16, place, offset), e.load(F32X16, e.at(taps, head_bytes * j), offset)
                total = b.fmul(x, tap) if total is None else e.fma(x, tap, total)
            e.store(activations.silu(e, total), out, offset)

    copy, clear, normalise = copy_of(head_bytes), clear_of(head_bytes), normalise_of(d)

    def conv(args, chunk, scratch):
        a = read(args)
        n_chunks = (a.n_head + a.chunk_heads - 1) // a.chunk_heads  # in a segment
        state = read_state(read_pointers(a.pointers).states + STATE_BYTES * (chunk // n_chunks))
        n, before = state.n, state.before
        row = head_bytes * a.n_head
        taps, rows = memory_of_taps(), memory_of_rows()
        first_head = chunk % n_chunks * a.chunk_heads
        for head in range(first_head, min(first_head + a.chunk_heads, a.n_head)):
            column = head_bytes * head
            x = a.x + row * state.first + column
            out = a.out + row * state.first + column
            n_near = min(n, n_before)
            load_taps(a.weight + column * d_conv, taps)
            for i in range(n_before):  # the rows that the first tokens look at, made contiguous
                if before:
                    copy(before + a.layer_offset + row * i + column, rows + head_bytes * i)
                else:
                    clear(rows + head_bytes * i)
            for i in range(n_near):
                copy(x + row * i, rows + head_bytes * (n_before + i))
            for t in range(n):
                if t < n_before:
                    convolve(rows + head_bytes * t, head_bytes, taps, out + row * t)
                else:
                    convolve(x + row * (t - n_before), row, taps, out + row * t)
                if head < 2 * a.n_head_k:
                    normalise(out + row * t, a.eps, head < a.n_head_k)
            for i in range(2 if state.border else 1):
                done, kept = (state.border, state.at_border) if i else (n, state.after)
                for j in range(n_before):
                    seen = done + j
                    source = (
                        rows + head_bytes * seen if seen < n_before + n_near else x + row * (seen - n_before)
                    )
                    copy(source, kept + a.layer_offset + row * j + column)

    return conv


def picked(e: Emitter, parts: list[Any], indices: list[int]) -> Any:
    """Pick the lanes at 16 ascending indices from the concatenation of vectors."""
    found = parts[indices[0] // LANES]
    lanes = [index % LANES if index // LANES == indices[0] // LANES else -1 for index in indices]
    found = e.shuffle(found, [max(lane, 0) for lane in lanes])
    for number in sorted({index // LANES for index in indices} - {indices[0] // LANES}):
        mask = [LANES + index % LANES if index // LANES == number else i for i, index in enumerate(indices)]
        found = e.shuffle(found, mask, parts[number])
    return found


def build_normalise(d_text: str) -> Any:
    """Copy heads of queries, keys and values, and scale queries and keys as a convolution for a delta net does."""
    d = int(d_text)
    read = reader(NORMALISE)
    head_bytes = 4 * d
    copy, normalise = copy_of(head_bytes), normalise_of(d)

    def scale_heads(args, chunk, scratch):
        a = read(args)
        first, last = tokens_of(args, chunk)
        for t in range(first, last):
            for head in range(a.n_head):
                place = head_bytes * (a.n_head * t + head)
                copy(a.x + place, a.out + place)
                if head < 2 * a.n_head_k:
                    normalise(a.out + place, a.eps, head < a.n_head_k)

    return scale_heads


def build_gates() -> Any:
    """decay = exp(a * softplus(alpha + dt)) and strength = sigmoid(beta), float32 [tokens, n_head]."""
    read = reader(GATES)

    @intrinsic_of(void, i64, i64, i64, i64, i64)
    def gates_of(e: Emitter, decay: Any, strength: Any, dt: Any, a: Any, n: Any) -> None:
        """Compute the gates in place: `decay` holds alphas, `strength` betas."""
        b = e.b

        def write(offset: Any, kind: Any) -> None:
            rate = e.softplus(b.fadd(e.load(kind, decay, offset), e.load(kind, dt, offset)))
            e.store(e.exp(b.fmul(e.load(kind, a, offset), rate)), decay, offset)
            e.store(activations.sigmoid(e, e.load(kind, strength, offset)), strength, offset)

        activations.each_lane(e, n, write)

    def gates(args, chunk, scratch):
        a = read(args)
        first, last = tokens_of(args, chunk)
        for t in range(first, last):
            decay = a.decay + 4 * a.n_head * t
            strength = a.strength + 4 * a.n_head * t
            for head in range(a.n_head):
                place = (
                    a.token_bytes * t + a.group_bytes * (head // a.group_heads) + 4 * (head % a.group_heads)
                )
                store_f32(decay + 4 * head, load_f32(a.alpha + place))
                store_f32(strength + 4 * head, load_f32(a.beta + place))
            gates_of(decay, strength, a.dt, a.a, a.n_head)

    return gates


def build_scan(d_text: str) -> Any:
    """Run the recurrence over `qkv`, the convolution's result. A chunk is some blocks of columns of a segment's heads; out is float32
    [tokens, n_head_v, d].
    """
    read = reader(SCAN)
    d = int(d_text)
    width = layout.state_width(d)
    vectors = range(width // LANES)
    block_bytes = 4 * d * width
    head_bytes = 4 * d

    @intrinsic_of(i64)
    def memory_of_products(e: Emitter) -> Any:
        return e.memory(4 * width)

    def rows_of(e: Emitter, scalars: list[Any], body: Any) -> None:
        """Emit body(offset of the row, *scalars of the row, splat) for each row of S, AT_ONCE rows per turn of the loop."""
        with e.loop(e.int(d // AT_ONCE)) as i:
            number, row = e.b.mul(i, e.int(4 * AT_ONCE)), e.b.mul(i, e.int(4 * AT_ONCE * width))
            for r in range(AT_ONCE):
                body(
                    e.at(row, 4 * width * r), *(e.splat(e.load(F32, e.at(x, number), 4 * r)) for x in scalars)
                )

    @intrinsic_of(void, i64, i64, i64)
    def look_up(e: Emitter, state: Any, key: Any, products: Any) -> None:
        """products = S^T k"""
        sums = [e.var(e.float(0.0, F32X16)) for _ in vectors]

        def add(offset: Any, k: Any) -> None:
            for j in vectors:
                e.b.store(e.fma(k, e.load(F32X16, e.at(state, offset), 64 * j), e.b.load(sums[j])), sums[j])

        rows_of(e, [key], add)
        for j in vectors:
            e.store(e.b.load(sums[j]), products, 64 * j)

    def update_of(alone: bool) -> Any:
        @intrinsic_of(void, *[i64] * 10)
        def update(
            e: Emitter,
            state: Any,
            new: Any,
            query: Any,
            key: Any,
            value: Any,
            decay: Any,
            strength: Any,
            following: Any,
            products: Any,
            out: Any,
        ) -> None:
            """Compute a token: the new S, the result, and in the same pass the products of the new S with `following`, the next token's
            key.

            If the token is `alone` there is no next key. Then S is read from memory and written back past the caches, and `following` is
            the next block, which is prefetched meanwhile.
            """
            b = e.b
            decay, strength = (e.splat(e.load(F32, x)) for x in (decay, strength))
            deltas = [
                b.fmul(
                    strength,
                    b.fsub(e.load(F32X16, value, 64 * j), b.fmul(decay, e.load(F32X16, products, 64 * j))),
                )
                for j in vectors
            ]
            results, sums = ([e.var(e.float(0.0, F32X16)) for _ in vectors] for _ in range(2))

            def step(offset: Any, k: Any, q: Any, next_k: Any = None) -> None:
                source, to = e.at(state, offset), e.at(new, offset)
                for j in vectors:
                    s = e.fma(k, deltas[j], b.fmul(decay, e.load(F32X16, source, 64 * j)))
                    b.store(e.fma(q, s, b.load(results[j])), results[j])
                    if alone:
                        e.stream(s, to, 64 * j)
                        e.prefetch(e.at(e.at(following, offset), 64 * j))
                    else:
                        e.store(s, to, 64 * j)
                        b.store(e.fma(next_k, s, b.load(sums[j])), sums[j])

            rows_of(e, [key, query] if alone else [key, query, following], step)
            for j in vectors:
                e.store(b.load(results[j]), out, 64 * j)
                e.store(b.load(sums[j]), products, 64 * j)

        return update

    update, update_alone = update_of(alone=False), update_of(alone=True)

    copy, clear = copy_of(block_bytes), clear_of(block_bytes)

    def scan(args, chunk, scratch):
        a = read(args)
        n_blocks = a.n_head_v * (d // width)
        n_chunks = (n_blocks + a.chunk_blocks - 1) // a.chunk_blocks  # in a segment
        segment = read_state(read_pointers(a.pointers).states + STATE_BYTES * (chunk // n_chunks))
        first, n, before = segment.first, segment.n, segment.before
        row = head_bytes * (2 * a.n_head_k + a.n_head_v)
        products = memory_of_products()
        first_block = chunk % n_chunks * a.chunk_blocks
        end = min(first_block + a.chunk_blocks, n_blocks)
        for block in range(first_block, end):
            head, column = block // (d // width), block % (d // width) * 4 * width
            shared = head % a.n_head_k if a.tiled else head // (a.n_head_v // a.n_head_k)
            place = a.layer_offset + block_bytes * block
            new = segment.after + place
            state = before + place if before else new
            if before == 0:
                clear(new)
            q = a.qkv + row * first + head_bytes * shared
            k = a.qkv + row * first + head_bytes * (a.n_head_k + shared)
            v = a.qkv + row * first + head_bytes * (2 * a.n_head_k + head) + column
            out = a.out + head_bytes * (a.n_head_v * first + head) + column
            decay = a.decay + 4 * (a.n_head_v * first + head)
            strength = a.strength + 4 * (a.n_head_v * first + head)
            look_up(state, k, products)
            if n == 1:
                following = state + block_bytes if block + 1 < end else state
                update_alone(state, new, q, k, v, decay, strength, following, products, out)
            for t in range(n if n > 1 else 0):
                of_token = 4 * a.n_head_v * t
                update(
                    state,
                    new,
                    q + row * t,
                    k + row * t,
                    v + row * t,
                    decay + of_token,
                    strength + of_token,
                    k + row * min(t + 1, n - 1),
                    products,
                    out + head_bytes * a.n_head_v * t,
                )
                state = new
                if t + 1 == segment.border:
                    copy(new, segment.at_border + place)
        if n == 1:
            fence()  # streamed stores must be visible before the chunk is counted as done

    return scan
