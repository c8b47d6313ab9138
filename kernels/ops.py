"""Kernels over tokens: embedding rows; norms and gates, with their results quantized; sums; gathered rows."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from numba import njit

from . import activations
from .arguments import ADD, EMBED, GATHER, PREPARE, TOKENS
from .reading import load, reader
from .simd import Address, Emitter, i64, intrinsic_of, load_i32, load_i64, store_f32, void

read_tokens = reader(TOKENS)


@njit(inline="always")
def tokens_of(args, chunk):
    """Return the range of a chunk's tokens: the first and the last + 1."""
    tokens = read_tokens(args)
    first = chunk * tokens.unit
    return first, min(first + tokens.unit, load_i64(tokens.count))


def build_embed(name: str) -> Any:
    """Look up rows of the embedding, as float32."""
    quant = import_module(f".quants.{name}", __package__)
    value, block, n_bytes = quant.value, quant.BLOCK, quant.BYTES
    read = reader(EMBED)

    def embed(args, chunk, scratch):
        a = read(args)
        first, last = tokens_of(args, chunk)
        for t in range(first, last):
            row = a.table + load_i32(a.ids + 4 * t) * a.row_bytes
            to = a.out + 4 * a.n_cols * t
            if block == 1:
                for i in range(a.n_cols):
                    store_f32(to + 4 * i, value(row, i))
            else:
                for j in range(a.n_cols // block):
                    for i in range(block):
                        store_f32(to + 4 * (j * block + i), value(row + j * n_bytes, i))

    return embed


def build_prepare(prologue: str, kind: str) -> Any:
    """Compute a prologue for each token and quantize the result as `kind`. With "f32" the result stays as it is; "copy" computes nothing, x
    is quantized. If `out` is 0, only the quantized result is kept: the floats stay in the cache."""
    arguments = PREPARE[prologue]

    @intrinsic_of(void, i64, i64, i64)
    def prepare_token(e: Emitter, args: Any, token: Any, scratch: Any) -> None:
        a = load(e, arguments, args)
        if prologue == "copy":
            out = row_of(e, a, token, a.x)
        else:
            wanted = e.b.icmp_unsigned("!=", a.out, e.int(0))
            out = e.b.select(wanted, row_of(e, a, token, a.out), scratch)
            PROLOGUES[prologue](e, a, token, out)
        if kind != "f32":
            activations.quantize_row(e, kind, out, a.quants, a.scales, a.sums, a.n_cols, token)

    def prepare(args, chunk, scratch):
        first, last = tokens_of(args, chunk)
        for t in range(first, last):
            prepare_token(args, t, scratch)

    return prepare


def row_of(e: Emitter, a: Any, token: Any, x: Address) -> Any:
    """Return the address of a token's row in x, float32 [tokens, n_cols]."""
    return e.at(x, e.b.mul(token, e.b.shl(a.n_cols, e.int(2))))


def norm(e: Emitter, a: Any, token: Any, out: Address) -> None:
    activations.rms_norm(e, row_of(e, a, token, a.x), a.weight, out, a.n_cols, a.eps)


def swiglu(e: Emitter, a: Any, token: Any, out: Address) -> None:
    gate, up = (row_of(e, a, token, x) for x in (a.gate, a.up))
    activations.swiglu(e, gate, up, out, a.n_cols)


def gate(e: Emitter, a: Any, token: Any, out: Address) -> None:
    b = e.b
    x = row_of(e, a, token, a.x)
    gates = e.at(a.gate, b.mul(token, a.token_bytes))
    with e.loop(b.udiv(a.n_cols, a.group_cols)) as i:
        place = b.mul(i, b.shl(a.group_cols, e.int(2)))
        of_group = e.at(gates, b.mul(i, a.group_bytes))
        activations.gate(e, e.at(x, place), of_group, e.at(out, place), a.group_cols)


def share(e: Emitter, a: Any, token: Any, out: Address) -> None:
    b = e.b
    x, other = (row_of(e, a, token, x) for x in (a.x, a.other))
    other = b.select(b.icmp_unsigned("!=", a.other, e.int(0)), other, e.int(0))
    activations.share(e, x, e.at(a.gate, b.shl(token, e.int(2))), other, out, a.n_cols)


def gated_norm(e: Emitter, a: Any, token: Any, out: Address) -> None:
    b = e.b
    gate, x = (row_of(e, a, token, x) for x in (a.gate, a.x))
    with e.loop(b.udiv(a.n_cols, a.head_dim)) as i:
        place = b.mul(i, b.shl(a.head_dim, e.int(2)))
        gate_of_head, x_of_head, out_of_head = (e.at(row, place) for row in (gate, x, out))
        activations.gated_norm(e, gate_of_head, x_of_head, a.weight, out_of_head, a.head_dim, a.eps)


PROLOGUES: dict[str, Callable[[Emitter, Any, Any, Address], None]] = {
    each.__name__: each for each in (norm, swiglu, gate, share, gated_norm)
}


def build_add() -> Any:
    """out = x + y"""
    read = reader(ADD)

    @intrinsic_of(void, i64, i64, i64, i64)
    def add_row(e: Emitter, x: Any, y: Any, out: Any, n: Any) -> None:
        def write(offset: Any, kind: Any) -> None:
            e.store(e.b.fadd(e.load(kind, x, offset), e.load(kind, y, offset)), out, offset)

        activations.each_lane(e, n, write)

    def add(args, chunk, scratch):
        a = read(args)
        first, last = tokens_of(args, chunk)
        start = 4 * a.n_cols * first
        add_row(a.x + start, a.y + start, a.out + start, (last - first) * a.n_cols)

    return add


def build_gather() -> Any:
    """out[i] = x[ids[i]]"""
    read = reader(GATHER)

    @intrinsic_of(void, i64, i64, i64)
    def copy_row(e: Emitter, x: Any, out: Any, n: Any) -> None:
        activations.each_lane(e, n, lambda offset, kind: e.store(e.load(kind, x, offset), out, offset))

    def gather(args, chunk, scratch):
        a = read(args)
        first, last = tokens_of(args, chunk)
        for i in range(first, last):
            copy_row(a.x + 4 * a.n_cols * load_i32(a.ids + 4 * i), a.out + 4 * a.n_cols * i, a.n_cols)

    return gather
