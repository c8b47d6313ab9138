"""Kernels called one by one, outside a program: the arguments as numbers, the memory against protected pages."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from guarded import guarded

from qwencli.backends.cpu.backend import kernels_of
from qwencli.kernels import layout
from qwencli.kernels.tiles import Tiles

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def call(isa: str, spec: str, args: Sequence[Any], n_chunks: int = 1, scratch_bytes: int = 0) -> None:
    """Run all chunks of a kernel. Arrays among `args` are passed by their address."""
    words = np.array([a.ctypes.data if isinstance(a, np.ndarray) else int(a) for a in args], np.int64)
    scratch = guarded(np.zeros(max(scratch_bytes, 64), np.uint8), "after")
    kernel = KERNEL(kernels_of(isa).load([spec])[spec])
    for chunk in range(n_chunks):
        kernel(words.ctypes.data, chunk, scratch.ctypes.data)


def bits(x: float) -> int:
    return int(np.float32(x).view(np.int32))


class Quantized:
    """Activations x, float32 [n, n_cols], as a product with weights of `kind` wants them."""

    def __init__(self, isa: str, x: np.ndarray, kind: str, side: str) -> None:
        self.kind, self.side = kind, side
        n, n_cols = x.shape
        self.x = guarded(x, side)
        q, d, sums = layout.activation_bytes(kind, n_cols)
        self.q = guarded(np.zeros((n, max(q, 1)), np.int8), side)
        self.d = guarded(np.zeros((n, max(d // 4, 1)), np.float32), side)
        self.sums = guarded(np.zeros((n, max(sums // 2, 2)), np.int16), side)
        if kind != "float":
            call(
                isa,
                f"ops:prepare:copy:{kind}",
                [np.array([n]), n, self.x, 0, n_cols, self.x, self.q, self.d, self.sums, 0],
            )

    def dequantized(self) -> np.ndarray:
        """What the kernels multiply with, as float64."""
        if self.kind == "float":
            return self.x.astype(np.float64)
        if self.kind == "bf16":
            return (self.q.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        n, n_blocks = self.d.shape
        return (self.q.reshape(n, n_blocks, -1) * self.d[..., None].astype(np.float64)).reshape(n, -1)

    def multiply(
        self,
        isa: str,
        name: str,
        form: str,
        w: np.ndarray,
        bias: np.ndarray | None = None,
        residual: np.ndarray | None = None,
        scale: float = 1.0,
        chunk_rows: int = 32,
        tile: str | None = None,
    ) -> np.ndarray:
        """y = scale * x W^T + bias + residual by the kernel for format `name`, w uint8 [rows, bytes a row]; `scale` for a scaled one."""
        n, n_cols = self.x.shape
        y = guarded(np.full((n, len(w)), np.nan, np.float32), self.side)
        weights = guarded(w, self.side)
        spec = Tiles(isa).one(name, n_cols) if form == "one" else Tiles(isa).many(name, tile)
        args = [
            np.array([n]),
            chunk_rows,
            weights,
            w.shape[1],
            len(w),
            n_cols,
            self.x,
            self.q,
            self.d,
            self.sums,
            y,
            4 * len(w),
            0 if bias is None else bias,
            0 if residual is None else residual,
            guarded(np.float32([scale]), self.side),
        ]
        call(isa, spec, args, -(-len(w) // chunk_rows), layout.panel_bytes(self.kind, n_cols))
        return y
