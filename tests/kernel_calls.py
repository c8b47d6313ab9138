"""Kernels called one by one, outside a program: the memory against protected pages."""

import ctypes
from typing import Any

import numpy as np
from guarded import guarded

from qwencli.backends.cpu.backend import kernels_of
from qwencli.kernels import layout
from qwencli.kernels.arguments import COPY, PRODUCT, Arguments, Record
from qwencli.kernels.tiles import AHEAD, TOGETHER, Tiles

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def call(
    isa: str,
    kernel: Arguments,
    *variant: object,
    spec: str = "",
    n_chunks: int = 1,
    scratch_bytes: int = 0,
    **args: Any,
) -> None:
    """Run all chunks of a kernel in a variant, or of the kernel `spec`. Arrays among `args` are passed by their address."""
    spec = spec or kernel.spec(*variant)
    words = packed(kernel, **args)
    scratch = guarded(np.zeros(max(scratch_bytes, 64), np.uint8), "after")
    function = KERNEL(kernels_of(isa).load([spec])[spec])
    for chunk in range(n_chunks):
        function(words.ctypes.data, chunk, scratch.ctypes.data)


def packed(record: Record, **fields: Any) -> np.ndarray:
    """A record, with arrays among its fields as their addresses; they have to live as long as it is used."""
    return record.pack(
        **{name: a.ctypes.data if isinstance(a, np.ndarray) else a for name, a in fields.items()}
    )


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
            count = np.array([n])
            call(isa, COPY, kind, count=count, unit=n, x=self.x, n_cols=n_cols, **self.quantized)

    @property
    def quantized(self) -> dict[str, np.ndarray]:
        """As arguments."""
        return {"quants": self.q, "scales": self.d, "sums": self.sums}

    def dequantized(self) -> np.ndarray:
        """What the kernels multiply with, as float64."""
        if self.kind == "float":
            return self.x.astype(np.float64)
        if self.kind == "bf16":
            return (self.q.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        n, n_blocks = self.d.shape
        quants = self.q[:, : self.x.shape[1]].reshape(n, n_blocks, -1)
        return (quants * self.d[..., None].astype(np.float64)).reshape(n, -1)

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
        together: int = TOGETHER,
        ahead: int = AHEAD,
    ) -> np.ndarray:
        """y = scale * x W^T + bias + residual by the kernel for format `name`, w uint8 [rows, bytes a row]; `scale` for a scaled one."""
        n, n_cols = self.x.shape
        y = guarded(np.full((n, len(w)), np.nan, np.float32), self.side)
        weights = guarded(w, self.side)
        tiles = Tiles(isa)
        spec = tiles.one(name, n_cols, together) if form == "one" else tiles.many(name, tile)
        call(
            isa,
            PRODUCT,
            spec=spec,
            n_chunks=-(-len(w) // chunk_rows),
            scratch_bytes=layout.panel_bytes(self.kind, n_cols),
            count=np.array([n]),
            chunk_rows=chunk_rows,
            w=weights,
            row_bytes=w.shape[1],
            n_rows=len(w),
            n_cols=n_cols,
            x=self.x,
            **self.quantized,
            y=y,
            y_stride=4 * len(w),
            bias=0 if bias is None else bias,
            residual=0 if residual is None else residual,
            scale=guarded(np.float32([scale]), self.side),
            ahead=ahead,
        )
        return y
