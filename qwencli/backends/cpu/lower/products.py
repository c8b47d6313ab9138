"""Rows of products with weights, and of what stands before and behind them: norms, sums, gathered rows."""

from __future__ import annotations

import numpy as np

from ....gguf.file import TensorInfo
from ....kernels import layout
from ....network.graph import Add, RMSNorm, Tensor, Weight
from ..memory import Value, address_of
from ..program import SOME_TOKENS, Program, activation_kind, float_bits, weight_info
from . import heads

CHUNK_BYTES = 16384, 262144
"""The least and the most bytes of weights that one chunk of a product reads: claiming a chunk costs as much as reading a few kB."""
CHUNKS_A_THREAD = 6
ONE = np.ones(1, np.float32)


def get_rows(p: Program, node: Tensor) -> None:
    table, ids = node.src
    dim, width = node.shape
    assert isinstance(dim, str)
    assert isinstance(width, int)
    unit, count = p.unit(dim), p.inputs.count(dim)
    out = p.new(node.name, dim, width)
    id_address = address_of(p.inputs.tokens if ids.name == "inp_tokens" else p.inputs.outputs)
    if isinstance(table.op, Weight):
        kind = table.op.info.type
        args = [
            count,
            unit,
            p.weight(table, list(layout.FORMATS)),
            kind.n_bytes(width),
            width,
            id_address,
            out.address,
        ]
        p.row(f"ops:embed:{kind.name.lower()}", args, [], [out.address], divisor=unit)
    else:
        x = p.compact(table)
        args = [count, unit, x.address, id_address, width, out.address]
        p.row("ops:gather", args, [x.address], [out.address], divisor=unit)


def rms_norm(p: Program, node: Tensor) -> None:
    """A norm of rows; one of heads is done where these are used."""
    if len(node.shape) == 3:
        return heads.view(p, node)
    assert isinstance(node.op, RMSNorm)
    p.prepare(node, "norm", [p.weight(node.src[1]), float_bits(node.op.eps)], [])


def add(p: Program, node: Tensor) -> None:
    x, y = (p.compact(source) for source in node.src)
    out = p.new(node.name, x.dim, x.width)
    args = [p.inputs.count(x.dim), p.unit(x.dim), x.address, y.address, x.width, out.address]
    p.row("ops:add", args, [x.address, y.address], [out.address], divisor=p.unit(x.dim))


def linear(p: Program, node: Tensor) -> None:
    """A product, with bias and, where its result is only added to something, the sum."""
    weight, x_node, *bias = node.src
    info = weight_info(node)
    address = p.weight(weight, list(layout.FORMATS))
    n_rows, n_cols = weight.shape
    assert isinstance(n_rows, int)
    assert isinstance(n_cols, int)
    x = p.compact(x_node)
    quantized = p.quantized_as(x, activation_kind(info))
    target, residual = residual_of(p, node)
    out = p.new(target.name, x.dim, n_rows)
    row_bytes = info.type.n_bytes(n_cols)
    rows_a_chunk = chunk_rows(p, n_rows, row_bytes, p.rooms[x.dim])
    args = [
        p.inputs.count(x.dim),
        rows_a_chunk,
        address,
        row_bytes,
        n_rows,
        n_cols,
        x.address,
        *quantized,
        out.address,
        4 * n_rows,
        p.weight(bias[0]) if bias else 0,
        residual.address if residual else 0,
        *scale_of(p, weight),
    ]
    reads = [*(quantized if any(quantized) else [x.address]), *([residual.address] if residual else [])]
    p.row(kernel_of(p, info, n_cols, x.dim), args, reads, [out.address], rows_a_chunk, count_in=4)
    p.done.add(target.name)


def kernel_of(p: Program, info: TensorInfo, n_cols: int, dim: str) -> str:
    name = info.type.name
    return str(p.tiles.one(name, n_cols) if p.form(dim) == "one" else p.tiles.many(name))


def scale_of(p: Program, weight: Tensor) -> list[int]:
    """The address of what products with a scaled type are multiplied by; 1 where the tensor has no scale."""
    assert isinstance(weight.op, Weight)
    if not weight.op.info.type.scaled:
        return []
    return [address_of(ONE if weight.op.scale is None else p.model.file.data(weight.op.scale))]


def chunk_rows(p: Program, n_rows: int, row_bytes: int, room: int) -> int:
    """Rows of a chunk: some chunks for each thread, of a size worth claiming and, with many tokens, soon done."""
    n_bytes = min(max(n_rows * row_bytes // (CHUNKS_A_THREAD * p.n_threads), CHUNK_BYTES[0]), CHUNK_BYTES[1])
    unit = int(layout.LANES if room == 1 else layout.PANEL_ROWS)
    most = n_rows if room <= SOME_TOKENS else 2 * unit
    return min(max(1, n_bytes // row_bytes // unit) * unit, most)


def residual_of(p: Program, node: Tensor) -> tuple[Tensor, Value | None]:
    """The node that a product's result is stored as, and what is added to it before: that of a sum where nothing else wants the product."""
    users = p.users[node.name]
    if len(users) == 1 and isinstance(users[0].op, Add) and node.name not in p.fetch:
        other = next((s for s in users[0].src if s is not node), None)
        if other is not None and other.name in p.values:
            return users[0], p.values[other.name]
    return node, None
