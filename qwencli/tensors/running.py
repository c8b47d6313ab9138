"""One computation of a graph: inputs are checked and fed, results come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..backends.kv_cache import KVSequence
from ..backends.protocol import F32, I32, Backend, Batch, Segment
from ..errors import InputError, ModelError
from ..gguf.file import TensorInfo
from ..gguf.memory import TensorsInMemory
from ..network.graph import N_TOKENS, GetRows, Graph, Input, KVStore, Route, Tensor, Weight
from . import operands
from .constants import as_array

Fetch = str | Tensor | Sequence[str | Tensor] | None
"""A node, several, or None for all that no other node reads."""


def names_of(graph: Graph, fetch: Fetch) -> list[str]:
    """Return the names of what is to be computed. Raises ModelError for a node that has no rows."""
    if fetch is None:
        names = graph.results()
    else:
        wanted = [fetch] if isinstance(fetch, (str, Tensor)) else fetch
        names = [
            operands.own(graph, "compute", node).name if isinstance(node, Tensor) else node for node in wanted
        ]
    if not names:
        raise ModelError("graph: there is nothing to compute")
    for name in names:
        node = graph.nodes.get(name)
        if node and isinstance(node.op, (Weight, KVStore, Route)):
            raise ModelError(f"graph: '{name}' is {operands.kind(node)}, expected rows to fetch")
    return names


def run(
    backend: Backend,
    constants: TensorsInMemory,
    as_rows: Mapping[str, Tensor],
    fetch: Sequence[str],
    inputs: Mapping[str, ArrayLike],
) -> dict[str, F32]:
    """Compute the nodes named in `fetch`. The inputs in `as_rows` are constants, the others are given. Raises what Graph.compute does."""
    graph = backend.model.graph
    nodes = graph.subgraph(fetch)
    needed = {node.name: node for node in nodes if isinstance(node.op, Input) and node is not graph.positions}
    of_user = {name for name in needed if name not in as_rows}
    all_inputs = {name for name, node in graph.nodes.items() if isinstance(node.op, Input)}
    check_names(of_user, inputs, all_inputs - as_rows.keys() - {graph.positions.name})
    rows: dict[str, F32] = {}
    ids: dict[str, I32] = {}
    for name in of_user:
        if len(needed[name].shape) == 1:
            ids[name] = ids_of(name, inputs[name])
        else:
            rows[name] = rows_of(needed[name], inputs[name])
    n = number_of_rows(
        rows, ids.get(graph.tokens.name), {name: as_rows[name] for name in needed if name in as_rows}
    )
    for name in needed.keys() & as_rows.keys():
        rows[name] = np.broadcast_to(values_of(constants, as_rows[name]), (n, int(needed[name].shape[1])))
    tokens = ids.get(graph.tokens.name, np.zeros(n, np.int32))
    tables = [
        node.src[0] for node in nodes if isinstance(node.op, GetRows) and isinstance(node.src[0].op, Weight)
    ]
    for table in tables:
        check_range(graph.tokens.name, tokens, int(table.shape[0]), f"rows of '{table.name}'")
    batch = Batch([Segment(KVSequence(), tokens, n)])
    if graph.outputs.name in ids:
        batch.outputs = ids[graph.outputs.name]
        check_range(graph.outputs.name, batch.outputs, n, "rows of the inputs")
    try:
        found = backend.run(list(fetch), batch, rows)
        return {name: own(value, rows) for name, value in found.items()}
    finally:
        backend.cache.release(batch.segments[0].seq)


def own(value: F32, given: Mapping[str, F32]) -> F32:
    """Return a result in memory of its own: NumPy's may be a view of what was given."""
    return value.copy() if any(np.may_share_memory(value, each) for each in given.values()) else value


def check_names(needed: set[str], given: Mapping[str, ArrayLike], known: set[str]) -> None:
    """Raise InputError if an input is missing, or if there is no input of a name."""
    if unknown := sorted(given.keys() - known):
        raise InputError(
            f"the graph has no input '{unknown[0]}', it has {', '.join(sorted(needed)) or 'none'}"
        )
    if missing := sorted(needed - given.keys()):
        raise InputError(f"the input '{missing[0]}' is missing")


def rows_of(node: Tensor, values: ArrayLike) -> F32:
    """Return the rows of an input, float32 [k, n]. Raises InputError."""
    array = as_array(node.name, values)
    if array.ndim != 2 or array.shape[1] != node.shape[1] or not len(array):
        raise InputError(
            f"the input '{node.name}' is {list(array.shape)}, expected [{N_TOKENS}, {node.shape[1]}]"
        )
    return array.astype(np.float32, copy=False)


def ids_of(name: str, values: ArrayLike) -> I32:
    """Return row numbers, i32 [k]. Raises InputError."""
    array = as_array(name, values)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise InputError(
            f"the input '{name}' is {array.dtype} {list(array.shape)}, expected integers [{N_TOKENS}]"
        )
    ids: I32 = np.clip(array, -1, 2**31 - 1).astype(np.int32)
    return ids


def check_range(name: str, ids: I32, n: int, of_what: str) -> None:
    """Raise InputError for a row that isn't there: kernels don't check."""
    for number in (int(ids.min()), int(ids.max())):
        if not 0 <= number < n:
            raise InputError(f"the input '{name}' has the row {number}, but there are {n} {of_what}")


def number_of_rows(rows: Mapping[str, F32], tokens: I32 | None, constants: Mapping[str, Tensor]) -> int:
    """Return the number of rows of all inputs and of the constants that are taken as rows. Raises InputError if they differ."""
    shapes = {name: list(array.shape) for name, array in rows.items()}
    if tokens is not None:
        shapes["inp_tokens"] = list(tokens.shape)
    shapes |= {
        each.name: [int(size) for size in each.shape if isinstance(size, int)]
        for each in constants.values()
        if len(each.shape) > 1
    }
    if not shapes:
        return 1  # only vectors
    (first, shape), *others = shapes.items()
    for name, other in others:
        if other[0] != shape[0]:
            raise InputError(
                f"'{first}' is {shape} and '{name}' is {other}, expected the same number of rows"
            )
    return int(shape[0])


def values_of(constants: TensorsInMemory, node: Tensor) -> F32:
    """Return an F32 constant."""
    assert isinstance(node.op, Weight)
    info: TensorInfo = node.op.info
    return constants.data(info).view(np.float32)
