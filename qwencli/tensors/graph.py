"""A graph that is built and computed in Python, without a model file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..backends.protocol import Backend
from ..errors import InputError, ModelError
from ..gguf.memory import TensorsInMemory
from ..network import graph as network
from ..network.graph import DeltaNet, KVStore, Tensor, Weight
from ..network.model import Model
from ..network.rope import RopeParams
from . import operands
from .constants import blocks_of, scales_of
from .devices import Devices, Usage, backend_for, placement_of, splits_of, usage_of
from .hyperparameters import config_of
from .running import Fetch, names_of, run


class Graph:
    """Tensors and what is computed from them, on any device.

        g = Graph()
        a = g.constant([[2, 8], [5, 1], [4, 2], [8, 6]])
        b = g.input("b", 2)
        g.mul_mat(a, b, name="d")
        g.compute({"b": [[10, 5], [9, 9], [5, 4]]})["d"]  # float32 [3, 4]

    Shapes are in NumPy's order, rows first. Constants have fixed shapes. Inputs, and all that is computed from them, are rows: one for each
    token, as many as `compute` is given, so that their shapes begin with "n_tokens". An op that needs rows takes an F32 constant too: a
    matrix, or a vector, which is then every row.

    Each op returns its node and checks the shapes: a ModelError names them. Without a `name` a node is called by its op and a number, such
    as mul_mat-0. `nodes` has all nodes by name. A graph can be computed at any time, and grow afterwards.

    `n_threads` is how many threads the device cpu has, by default one per core. `report` is called with a line if kernels have to be
    compiled.
    """

    def __init__(self, n_threads: int | None = None, report: Callable[[str], None] | None = None) -> None:
        if n_threads is not None and n_threads < 1:
            raise InputError(f"a graph is computed by {n_threads} threads, expected 1 or more")
        self._n_threads, self._report = n_threads, report
        self._graph = network.Graph()
        self._constants = TensorsInMemory("graph")
        self._rows: dict[str, Tensor] = {}  # constants that are fed as rows, by the name of the node
        self._backends: dict[object, tuple[int, Backend]] = {}  # each with the number of nodes that it knows
        self.nodes: Mapping[str, Tensor] = self._graph.nodes

    # -- leaves -----------------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> Tensor:
        """The input inp_tokens, int [n_tokens]: rows of a table for `get_rows`."""
        return self._graph.tokens

    @property
    def outputs(self) -> Tensor:
        """The input inp_out_ids, int [n_outputs]: which rows `get_rows` takes from other rows."""
        return self._graph.outputs

    def input(self, name: str, n_cols: int) -> Tensor:
        """Rows that `compute` is given: [n_tokens, n_cols]."""
        if n_cols < 1:
            raise InputError(f"input '{name}' has {n_cols} columns, expected 1 or more")
        return self._graph.input(name, n_cols)

    def constant(
        self,
        values: ArrayLike | bytes,
        name: str | None = None,
        type: str | None = None,
        shape: Sequence[int] | None = None,
        scale: ArrayLike | None = None,
    ) -> Tensor:
        """A copy of an array: a vector [n], a matrix [m, n], or a matrix for each expert, [n_expert, m, n].

        Numbers become F32, or F16 where a matrix is float16. With the `type` "q4_k", or any other of GGML's that has weights, `values` are
        the bytes of its blocks: uint8 [..., bytes of a row], or any bytes if `shape` says the shape in numbers. A scaled type (NVFP4) needs
        its `scale`, one number or one per expert, by which products are multiplied.

        Raises InputError for values that aren't numbers or bytes, and for rows that aren't whole blocks.
        """
        name = self._name(name, "constant")
        if name in self.nodes:
            raise ModelError(f"graph: two tensors are named '{name}'")
        found = blocks_of(name, values, type, shape)
        scales = scales_of(name, found, scale)
        info = self._constants.add(name, *found)
        return self._graph.weight(info, self._constants.add(f"{name}.scale", *scales) if scales else None)

    # -- ops --------------------------------------------------------------------------------------------------------------

    def mul_mat(self, a: Tensor, b: Tensor, bias: Tensor | None = None, name: str | None = None) -> Tensor:
        """The constant a [m, n] and rows b [k, n] -> b @ a.T, plus the constant bias [m] if there is one: [k, m].

        As in llama.cpp, rows b are rounded to 8 bits in blocks if a is quantized, and to BF16 if a is, on every device but numpy.
        """
        name = self._name(name, "mul_mat")
        if bias is not None:
            operands.floats(name, bias)
        return self._graph.linear(operands.constant(name, a), self._as_rows(name, b), name, bias)

    def mul_mat_id(self, a: Tensor, b: Tensor, route: Tensor, name: str | None = None) -> Tensor:
        """The constant a [n_expert, m, n], and rows b [k, n] or a row for each expert [k, n_used, n], -> each row times the matrices of the
        experts that `route` has chosen for it: [k, n_used, m]."""
        name = self._name(name, "mul_mat_id")
        is_routed = len(operands.a_tensor(name, b).shape) == 3
        b = operands.of_experts(name, b, route) if is_routed else self._as_rows(name, b)
        return self._graph.expert_linear(operands.constant(name, a), b, operands.a_route(name, route), name)

    def add(self, x: Tensor, y: Tensor, name: str | None = None) -> Tensor:
        """x + y, of the same shape; or one of them is a constant vector, which is added to every row."""
        name = self._name(name, "add")
        return self._graph.add(self._as_rows(name, x), self._as_rows(name, y), name)

    def rms_norm(
        self, x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, name: str | None = None
    ) -> Tensor:
        """x / sqrt(mean(x**2) + eps) over the last dimension, times the constant weight [n] if there is one."""
        name = self._name(name, "rms_norm")
        x = self._as_rows(name, x)
        if weight is None:
            weight = self.constant(np.ones(operands.size(x), np.float32), f"{name}.weight")
        operands.floats(name, weight)
        return self._graph.rms_norm(x, weight, eps, name)

    def swiglu(self, gate: Tensor, up: Tensor, name: str | None = None) -> Tensor:
        """silu(gate) * up, of the same shape. Both may be products of the same experts."""
        name = self._name(name, "swiglu")
        route = operands.route_of(operands.a_tensor(name, gate))
        if route:
            return self._graph.swiglu(gate, operands.of_experts(name, up, route), name)
        return self._graph.swiglu(self._as_rows(name, gate), self._as_rows(name, up), name)

    def gate(self, x: Tensor, gate: Tensor, name: str | None = None) -> Tensor:
        """x * sigmoid(gate). The gate has the shape of x [k, n], or is one number per row: [k, 1]."""
        name = self._name(name, "gate")
        return self._graph.gate(self._as_rows(name, x), self._as_rows(name, gate), name)

    def get_rows(self, x: Tensor, ids: Tensor, name: str | None = None) -> Tensor:
        """x[ids]: rows of a constant table by `tokens`, as float32, or some of the rows x by `outputs`."""
        name = self._name(name, "get_rows")
        is_table = isinstance(operands.a_tensor(name, x).op, Weight)
        if operands.a_tensor(name, ids) is not (self.tokens if is_table else self.outputs):
            wanted = "a constant by graph.tokens" if is_table else "rows by graph.outputs"
            raise ModelError(f"graph: '{name}' takes rows of '{x.name}' by '{ids.name}', expected {wanted}")
        return self._graph.get_rows(x if is_table else self._as_rows(name, x), ids, name)

    def heads(self, x: Tensor, n_head: int, name: str | None = None) -> Tensor:
        """x [k, n_head * head_dim] -> [k, n_head, head_dim]"""
        name = self._name(name, "heads")
        return self._graph.heads(self._as_rows(name, x), n_head, name)

    def flat(self, x: Tensor, name: str | None = None) -> Tensor:
        """x [k, n_head, head_dim] -> [k, n_head * head_dim]"""
        name = self._name(name, "flat")
        return self._graph.flat(self._as_rows(name, x), name)

    def columns(self, x: Tensor, n_group: int, first: int, count: int, name: str | None = None) -> Tensor:
        """x [k, n_group * width] -> [k, n_group, count]: the columns from `first` on of each group."""
        name = self._name(name, "columns")
        return self._graph.columns(self._as_rows(name, x), n_group, first, count, name)

    def rope(
        self, x: Tensor, n_rot: int | None = None, freq_base: float = 10000.0, name: str | None = None
    ) -> Tensor:
        """x [k, n_head, head_dim] with each head rotated by its row's position, which counts from 0. NeoX style: of the first n_rot values
        (by default all), value i is rotated with value i + n_rot / 2 (https://arxiv.org/abs/2104.09864)."""
        name = self._name(name, "rope")
        with self._all_or_nothing():
            return self._graph.rope(
                self._as_rows(name, x), RopeParams(n_rot or operands.size(x), freq_base), name
            )

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, name: str | None = None
    ) -> Tensor:
        """q [k, n_head, head_dim], keys and values [k, n_head_kv, head_dim] -> causal softmax(q K^T * scale) V, [k, n_head * head_dim].

        The rows are one sequence: each attends to itself and those before it. n_head / n_head_kv consecutive heads of q share one of k and
        v. The scale is by default 1 / sqrt(head_dim).
        """
        name = self._name(name, "attention")
        q, k, v = (self._as_rows(name, x) for x in (q, k, v))
        with self._all_or_nothing():
            kv = self._graph.kv_store(k, v, self._count(KVStore), f"{name}.kv")
            return self._graph.attention(q, kv, operands.size(q) ** -0.5 if scale is None else scale, name)

    def route(self, logits: Tensor, n_used: int, normalised: bool = True, name: str | None = None) -> Tensor:
        """logits [k, n_expert] -> each row's n_used likeliest experts and their weights, for `mul_mat_id` and `expert_sum`.

        Weights are softmax(logits), if `normalised` divided by the sum of those chosen.
        """
        name = self._name(name, "route")
        return self._graph.route(self._as_rows(name, logits), n_used, normalised, name)

    def expert_sum(self, x: Tensor, route: Tensor, name: str | None = None) -> Tensor:
        """x [k, n_used, n], products of the experts of `route`, -> their sum times the experts' weights: [k, n]."""
        name = self._name(name, "expert_sum")
        return self._graph.expert_sum(operands.of_experts(name, x, route), route, name)

    def delta_net(
        self,
        qkv: Tensor,
        conv: Tensor,
        alpha: Tensor,
        beta: Tensor,
        dt: Tensor,
        a: Tensor,
        n_head_k: int,
        head_dim: int,
        eps: float = 1e-6,
        tiled: bool = False,
        name: str | None = None,
    ) -> Tensor:
        """A gated delta net over the rows as one sequence, after silu of a convolution (https://arxiv.org/abs/2412.06464).

        qkv [k, (2 * n_head_k + n_head_v) * head_dim], the constant conv [its columns, d_conv], alpha and beta [k, n_head_v], the constants
        dt and a [n_head_v] -> [k, n_head_v, head_dim]. The formulas are those of Conv and DeltaNet in network/graph.py.
        """
        name = self._name(name, "delta_net")
        for constant in conv, dt, a:
            operands.floats(name, constant)
        qkv, alpha, beta = (self._as_rows(name, x) for x in (qkv, alpha, beta))
        layer = self._count(DeltaNet)
        if n_head_k < 1 or len(dt.shape) != 1 or int(dt.shape[0]) % n_head_k:
            raise ModelError(
                f"graph: '{name}' has value heads {list(dt.shape)}, expected a multiple of {n_head_k} key heads"
            )
        if not 2 <= int(conv.shape[-1]) <= 64:
            raise ModelError(
                f"graph: '{conv.name}' is {list(conv.shape)}, expected a convolution over 2 to 64 rows"
            )
        with self._all_or_nothing():
            mixed = self._graph.conv(qkv, conv, layer, f"{name}.conv")
            op = DeltaNet(layer, n_head_k, eps, tiled)
            return self._graph.delta_net(mixed, alpha, beta, dt, a, op, head_dim, name)

    # -- computing --------------------------------------------------------------------------------------------------------

    def compute(
        self, inputs: Mapping[str, ArrayLike] | None = None, device: Devices = "cpu", fetch: Fetch = None
    ) -> Any:
        """Compute what is to be fetched, by default all nodes that no other reads.

        `device` is "cpu", "cpu:N" for a NUMA node, "cpus:0-3" for these CPUs, or "numpy". For several devices it maps names of nodes to
        names of devices, such as {"first": "cpus:0", "second": "cpus:1"}. Nodes that it lacks run where the first node that they read
        runs, or else on the first device.

        `inputs` are arrays by the inputs' names, all with the same number of rows. Returns float32 arrays by name; if `fetch` is one node
        or name, its array alone. The first call for some results and a number of rows plans them, later ones are faster.

        Raises InputError for inputs that are missing, unknown or have the wrong shape, ModelError for a node that has no value or that the
        device can't compute, QwenError if there is too little memory.
        """
        names = names_of(self._graph, fetch)
        values = run(self._backend(device), self._constants, self._rows, names, inputs or {})
        return values[names[0]] if isinstance(fetch, (str, Tensor)) else values

    def usage(self, device: Devices = "cpu") -> Usage:
        """Return what the graph runs on, and the memory of the plans that it has made there. Raises as `compute` does."""
        return usage_of(device, self._backend(device))

    def splits(self, device: Devices, n_rows: int = 1) -> list[str]:
        """Return how the graph is cut where the device changes, and what is copied for `n_rows` rows: a line for each split, in the way of
        GGML's debugging output; none if there is one device. Raises as `compute` does."""
        return splits_of(self._backend(device), n_rows)

    def placement(self, device: Devices) -> dict[str, str]:
        """Return the name of each node's device. Raises InputError as `compute` does."""
        return placement_of(self._graph, device).names()

    def model(self) -> Model:
        """Return the graph with its constants, as the backends take it."""
        return Model(self._constants, config_of(self._graph), self._graph, ())

    def _backend(self, device: Devices) -> Backend:
        """Return the backend for a device, or for several, which is kept until the graph grows."""
        key = device if isinstance(device, str) else tuple(device.items())
        n_nodes, backend = self._backends.get(key, (0, None))
        if backend is None or n_nodes != len(self.nodes):
            backend = backend_for(device, self.model(), self._n_threads, self._report)
            self._backends[key] = len(self.nodes), backend
        return backend

    # -- what ops need ----------------------------------------------------------------------------------------------------

    def _name(self, name: str | None, op: str) -> str:
        if name is not None:
            return name
        return next(each for number in count() if (each := f"{op}-{number}") not in self.nodes)

    def _count(self, op: type[network.Op]) -> int:
        return sum(isinstance(node.op, op) for node in self.nodes.values())

    def _as_rows(self, name: str, tensor: Tensor) -> Tensor:
        """Return what the node `name` reads as rows. For a constant that is an input, which is fed."""
        if not isinstance(operands.a_tensor(name, tensor).op, Weight):
            return operands.rows(name, tensor)
        operands.own(self._graph, name, tensor)
        if len(operands.floats(name, tensor).shape) > 2:
            raise ModelError(
                f"graph: '{name}' takes '{tensor.name}', {operands.kind(tensor)}, as rows: expected a matrix"
            )
        fed = f"{tensor.name} as rows"
        self._rows[fed] = tensor
        return self.nodes.get(fed) or self._graph.input(fed, operands.size(tensor))

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Add no node if one of several can't be added, or contradicts those that the graph has."""
        before = dict(self._graph.nodes)
        try:
            yield
            config_of(self._graph)
        except ModelError:
            self._graph.nodes.clear()
            self._graph.nodes.update(before)
            raise
