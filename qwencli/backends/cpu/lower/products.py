"""Rows of products with weights, and of the ops before and after them: embeddings, norms, sums, gathered rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ....gguf.file import TensorInfo
from ....kernels import formats, layout
from ....kernels.arguments import ADD, EMBED, GATHER, NORM, PRODUCT
from ....network.graph import Add, GetRows, Linear, RMSNorm, Tensor, Weight
from ..fuse import Plus
from ..memory import Value, address_of
from ..program import SOME_TOKENS, Program, activation_kind, weight_info
from . import heads
from .order import compact
from .registry import lowers

CHUNK_BYTES = 16384, 262144
"""The least and the most bytes of weights that one chunk of a product reads: claiming a chunk costs as much as reading a few kB."""
CHUNKS_PER_THREAD = 6
ONE = np.ones(1, np.float32)


@lowers(GetRows)
def get_rows(p: Program, node: Tensor) -> None:
    table, id_node = node.src
    dim, width = node.shape
    assert isinstance(dim, str)
    assert isinstance(width, int)
    out = p.new(node.name, dim, width)
    ids = address_of(p.inputs.tokens if id_node.name == p.model.graph.tokens.name else p.inputs.outputs)
    if isinstance(table.op, Weight):
        kind = table.op.info.type
        p.token_row(
            EMBED,
            kind.name.lower(),
            of=out,
            table=p.weight(table, list(formats.FORMATS)),
            row_bytes=kind.n_bytes(width),
            n_cols=width,
            ids=ids,
            out=out.address,
        )
    else:
        p.token_row(GATHER, of=out, x=compact(p, table).address, ids=ids, n_cols=width, out=out.address)


@lowers(RMSNorm)
def rms_norm(p: Program, node: Tensor) -> None:
    """Add a norm of rows, or of heads."""
    assert isinstance(node.op, RMSNorm)
    if len(node.shape) == 3:
        return heads.norm(p, node)
    x = compact(p, node.src[0])
    p.prepare(node, NORM, of=x, x=x.address, weight=p.weight(node.src[1]), eps=node.op.eps)


@lowers(Add)
def add(p: Program, node: Tensor) -> None:
    x, y = (compact(p, source) for source in node.src)
    out = p.new(node.name, x.dim, x.width)
    p.token_row(ADD, of=out, x=x.address, y=y.address, n_cols=x.width, out=out.address)


@lowers(Plus)
def plus(p: Program, node: Tensor) -> None:
    """Add the rows of the inner op, which also add `other` to its result."""
    assert isinstance(node.op, Plus)
    *sources, other = node.src
    op = node.op.op
    lowers[type(op)](p, replace(node, op=op, src=tuple(sources)), plus=compact(p, other))


@lowers(Linear)
def linear(p: Program, node: Tensor, plus: Value | None = None) -> None:
    """Add a product, with its bias."""
    weight, x_node, *bias = node.src
    info = weight_info(node)
    address = p.weight(weight, list(formats.FORMATS))
    n_rows, n_cols = weight.shape
    assert isinstance(n_rows, int)
    assert isinstance(n_cols, int)
    x = compact(p, x_node)
    inputs = p.activations(x, activation_kind(info))
    out = p.new(node.name, x.dim, n_rows)
    row_bytes = info.type.n_bytes(n_cols)
    rows_a_chunk = chunk_rows(p.n_threads, n_rows, row_bytes, p.rooms[x.dim])
    p.row(
        PRODUCT,
        spec=kernel_of(p, info, n_cols, x.dim),
        amount="n_rows",
        divisor=rows_a_chunk,
        count=p.inputs.count(x.dim),
        chunk_rows=rows_a_chunk,
        w=address,
        row_bytes=row_bytes,
        n_rows=n_rows,
        n_cols=n_cols,
        **inputs,
        y=out.address,
        y_stride=4 * n_rows,
        bias=p.weight(bias[0]) if bias else 0,
        residual=plus.address if plus else 0,
        scale=scale_of(p, weight),
        ahead=p.tiles.ahead(info.type.name),
        data=address,
        chunk_bytes=rows_a_chunk * row_bytes,
    )


def kernel_of(p: Program, info: TensorInfo, n_cols: int, dim: str) -> str:
    name = info.type.name
    return str(p.tiles.one(name, n_cols) if p.form(dim) == "one" else p.tiles.many(name))


def scale_of(p: Program, weight: Tensor) -> int:
    """Return the address of the scale for products with a scaled type, which is 1 if the tensor has none. Returns 0 for other types."""
    assert isinstance(weight.op, Weight)
    if not weight.op.info.type.scaled:
        return 0
    return address_of(ONE if weight.op.scale is None else p.model.file.data(weight.op.scale))


def chunk_rows(n_threads: int, n_rows: int, row_bytes: int, room: int) -> int:
    """Return the rows in a chunk: several chunks per thread, large enough to be worth claiming and, with many tokens, small enough to end
    soon."""
    n_bytes = min(max(n_rows * row_bytes // (CHUNKS_PER_THREAD * n_threads), CHUNK_BYTES[0]), CHUNK_BYTES[1])
    unit = int(layout.LANES if room == 1 else layout.PANEL_ROWS)
    most = n_rows if room <= SOME_TOKENS else 2 * unit
    return min(max(1, n_bytes // row_bytes // unit) * unit, most)
