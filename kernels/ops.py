"""Kernels over tokens: embedding rows, norms and gates with the quantization of their result, sums, gathered rows.

Arguments, int64 each: see the function that reads them. `count` is the address of the number of tokens, which changes from step to step,
and `unit` how many of them make a chunk.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from numba import njit

from . import activations
from .simd import F32, I32, I64, Emitter, i64, intrinsic_of, load_i32, load_i64, store_f32, void

MORE = {"gate": 3, "share": 1, "gated_norm": 2}
"""How many arguments a prologue has behind those of all."""


def build(name: str, *variant: str) -> Any:
    return {"embed": build_embed, "prepare": build_prepare, "add": build_add, "gather": build_gather}[name](
        *variant
    )


@njit(inline="always")
def tokens_of(count, unit, chunk):
    """The first and the last + 1 token of a chunk."""
    first = chunk * unit
    return first, min(first + unit, load_i64(count))


def build_embed(name: str) -> Any:
    """args: count, unit, table, bytes a row, n_cols, ids (i32), out. Rows of the embedding as float32."""
    quant = import_module(f".quants.{name}", __package__)
    value, block, n_bytes = quant.value, quant.BLOCK, quant.BYTES

    def embed(args, chunk, scratch):
        table, row_bytes, n_cols = load_i64(args + 16), load_i64(args + 24), load_i64(args + 32)
        ids, out = load_i64(args + 40), load_i64(args + 48)
        first, last = tokens_of(load_i64(args), load_i64(args + 8), chunk)
        for t in range(first, last):
            row, to = table + load_i32(ids + 4 * t) * row_bytes, out + 4 * n_cols * t
            if block == 1:
                for i in range(n_cols):
                    store_f32(to + 4 * i, value(row, i))
            else:
                for j in range(n_cols // block):
                    for i in range(block):
                        store_f32(to + 4 * (j * block + i), value(row + j * n_bytes, i))

    return embed


def build_prepare(prologue: str, kind: str) -> Any:
    """args: count, unit, x, y, n_cols, out, quants, scales, sums, eps (f32 bits), more; quantized also from where the result is float32.

    "norm": y is the weight; "swiglu": x is the gate and y what it gates; "copy": out is x. "gate": y gates x, columns of groups: bytes
    from token to token, columns of a group, bytes from group to group. "share": y gates x, one number a token, and what is added or 0.
    "gated_norm": x is the gate, y is normalised in heads: their weight and size. `kind` names the quantization, or is "f32".
    """

    @intrinsic_of(void, i64, i64)
    def prepare_token(e: Emitter, args: Any, token: Any) -> None:
        b = e.b
        x, y, n, first_out, q, d, sums, eps = (e.load(I64, args, 16 + 8 * i) for i in range(8))
        more = [e.load(I64, args, 80 + 8 * i) for i in range(MORE.get(prologue, 0))]
        row, eps = b.mul(token, b.shl(n, e.int(2))), b.bitcast(b.trunc(eps, I32), F32)
        x, out = e.at(x, row), e.at(first_out, row)
        if prologue == "norm":
            activations.rms_norm(e, x, y, out, n, eps)
        elif prologue == "swiglu":
            activations.swiglu(e, x, e.at(y, row), out, n)
        elif prologue == "gate":
            token_bytes, size, group_bytes = more
            y = e.at(y, b.mul(token, token_bytes))
            with e.loop(b.udiv(n, size)) as i:
                place = b.mul(i, b.shl(size, e.int(2)))
                activations.gate(e, e.at(x, place), e.at(y, b.mul(i, group_bytes)), e.at(out, place), size)
        elif prologue == "share":
            other = b.select(b.icmp_unsigned("!=", more[0], e.int(0)), e.at(more[0], row), e.int(0))
            activations.share(e, x, e.at(y, b.shl(token, e.int(2))), other, out, n)
        elif prologue == "gated_norm":
            weight, size = more
            with e.loop(b.udiv(n, size)) as i:
                place = b.mul(i, b.shl(size, e.int(2)))
                activations.gated_norm(
                    e, e.at(x, place), e.at(e.at(y, row), place), weight, e.at(out, place), size, eps
                )
        activations.quantize_row(e, kind, first_out, q, d, sums, n, token)

    def prepare(args, chunk, scratch):
        first, last = tokens_of(load_i64(args), load_i64(args + 8), chunk)
        for t in range(first, last):
            prepare_token(args, t)

    return prepare


def build_add() -> Any:
    """args: count, unit, x, y, n_cols, out. out = x + y."""

    @intrinsic_of(void, i64, i64, i64, i64)
    def add_row(e: Emitter, x: Any, y: Any, out: Any, n: Any) -> None:
        activations.each_lane(
            e,
            n,
            lambda offset, kind: e.store(
                e.b.fadd(e.load(kind, x, offset), e.load(kind, y, offset)), out, offset
            ),
        )

    def add(args, chunk, scratch):
        x, y, n_cols, out = load_i64(args + 16), load_i64(args + 24), load_i64(args + 32), load_i64(args + 40)
        first, last = tokens_of(load_i64(args), load_i64(args + 8), chunk)
        add_row(
            x + 4 * n_cols * first, y + 4 * n_cols * first, out + 4 * n_cols * first, (last - first) * n_cols
        )

    return add


def build_gather() -> Any:
    """args: count, unit, x, ids (i32), n_cols, out. out[i] = x[ids[i]]."""

    @intrinsic_of(void, i64, i64, i64)
    def copy_row(e: Emitter, x: Any, out: Any, n: Any) -> None:
        activations.each_lane(e, n, lambda offset, kind: e.store(e.load(kind, x, offset), out, offset))

    def gather(args, chunk, scratch):
        x, ids, n_cols, out = (
            load_i64(args + 16),
            load_i64(args + 24),
            load_i64(args + 32),
            load_i64(args + 40),
        )
        first, last = tokens_of(load_i64(args), load_i64(args + 8), chunk)
        for i in range(first, last):
            copy_row(x + 4 * n_cols * load_i32(ids + 4 * i), out + 4 * n_cols * i, n_cols)

    return gather
