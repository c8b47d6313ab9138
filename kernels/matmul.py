"""y = W x for rows of weights read from the mapped file, in two forms that give the same bits.

"few": each row is multiplied where it lies. "many": 32 rows are unpacked into a panel, which stays in the L2 cache while all tokens
pass. What makes them agree: integers inside a block, where order doesn't matter, and floats across blocks in block order; for float
weights 16 running sums over the columns and one final tree.

Arguments, int64 each, by their index: 0 address of the number of tokens, 1 rows a chunk, 2 weights, 3 bytes a row, 4 rows, 5 columns,
6 x (f32), 7 quants, 8 scales, 9 sums, 10 y, 11 bytes between y's tokens, 12 bias or 0, 13 residual or 0 (laid out as y; may be y).
"""
from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from numba import njit

from . import layout, simd
from .products import Args, blocks, clamped_tokens, finish_rows, floats, if_token, kquants
from .simd import LANES, Emitter, i64, intrinsic_of, load_i64, void

FAMILIES = {"q8k": kquants, "q8_0": blocks, "float": floats}
FEW_AT_ONCE = 4
"""Tokens whose dots share one unpacking."""
TILE_TOKENS = {
    "avx512vnni": {"q8k": 4, "q8_0": 6, "float": 4},
    "avxvnni": {"q8k": 2, "q8_0": 2, "float": 2},
    "avx2": {"q8k": 2, "q8_0": 2, "float": 2},
    "neon_i8mm": {"q8k": 2, "q8_0": 2, "float": 2},
    "neon_dotprod": {"q8k": 2, "q8_0": 2, "float": 2},
    "neon": {"q8k": 2, "q8_0": 2, "float": 2},
    "generic": {"q8k": 2, "q8_0": 2, "float": 2}}
"""Tokens of a tile of 32 rows (of floats.MANY_ROWS for float weights)."""


def build(name: str, form: str, n_cols: str = "") -> Any:
    """The format's name, "few" or "many", and for few tokens and 32-weight blocks the number of columns."""
    quant = import_module(f".quants.{name}", __package__)
    if form == "few":
        return build_few(quant, n_cols)
    return build_many_floats(quant) if quant.KIND == "float" else build_many(quant)


@njit(inline="always")
def rows_of(args, chunk):
    """The first and the last + 1 row of a chunk."""
    first = chunk * load_i64(args + 8)
    return first, min(first + load_i64(args + 8), load_i64(args + 32))


def build_few(quant: ModuleType, n_cols: str) -> Any:
    family = FAMILIES[quant.KIND]
    step = family.FEW_ROWS
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


def build_many(quant: ModuleType) -> Any:
    family = FAMILIES[quant.KIND]
    n_tile = TILE_TOKENS[simd.isa_name()][quant.KIND]
    n_vectors = layout.PANEL_ROWS // LANES

    @intrinsic_of(void, i64, i64, i64)
    def unpack(e: Emitter, args: Any, row: Any, panel: Any) -> None:
        a = Args.load(e, args)
        with e.loop(e.int(n_vectors)) as r:
            first = e.b.add(row, e.b.shl(r, e.int(4)))
            family.unpack(e, quant, a, first, e.b.add(panel, e.b.mul(r, family.panel_bytes(e, quant, a))))

    @intrinsic_of(void, i64, i64, i64, i64)
    def tile(e: Emitter, args: Any, row: Any, token: Any, panel: Any) -> None:
        a = Args.load(e, args)
        values = family.tile(e, quant, a, clamped_tokens(e, a, token, n_tile), panel)
        for t in range(n_tile):
            this = e.b.add(token, e.int(t))
            with if_token(e, a, this):
                for r in range(n_vectors):
                    finish_rows(e, a, values[r][t], e.b.add(row, e.int(r * LANES)), this)

    def many(args, chunk, scratch):
        first, last = rows_of(args, chunk)
        n_tokens = load_i64(load_i64(args))
        if n_tokens > 0:
            for row in range(first, last, layout.PANEL_ROWS):
                unpack(args, row, scratch)
                for token in range(0, n_tokens, n_tile):
                    tile(args, row, token, scratch)
    return many


def build_many_floats(quant: ModuleType) -> Any:
    n_tile, n_rows = TILE_TOKENS[simd.isa_name()]["float"], floats.MANY_ROWS

    @intrinsic_of(void, i64, i64, i64)
    def tile(e: Emitter, args: Any, row: Any, token: Any) -> None:
        floats.few(e, quant, Args.load(e, args), row, [e.b.add(token, e.int(t)) for t in range(n_tile)], n_rows)

    @intrinsic_of(void, i64, i64, i64)
    def single(e: Emitter, args: Any, row: Any, token: Any) -> None:
        floats.few(e, quant, Args.load(e, args), row, [token], n_rows)

    def many(args, chunk, scratch):
        first, last = rows_of(args, chunk)
        n_tokens = load_i64(load_i64(args))
        token = 0
        while token + n_tile <= n_tokens:
            for row in range(first, last, n_rows):
                tile(args, row, token)
            token += n_tile
        while token < n_tokens:
            for row in range(first, last, n_rows):
                single(args, row, token)
            token += 1
    return many
