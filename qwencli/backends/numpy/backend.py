"""The NumPy backend: the graph in plain float32, without anything clever. Compiled kernels are compared with it.

Weights are dequantized when they are first used, and kept as long as they fit into a budget. Those that don't fit are dequantized each
time, some rows at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...network.graph import Graph, Weight
from ...network.model import Model
from ...sampling.sampler import Draw
from ..buffers import Buffer, buffer_of, in_layers, weights
from ..kv_cache import DEFAULT_TYPES, PAGE, CacheTypes, KVCache
from ..protocol import F32, F64, HIDDEN, LOGITS, Batch, sample_with_numpy, score_with_numpy
from .memory import KVPages, States, WeightReader
from .ops import Step, computes


class NumpyBackend:
    """Runs `model` in NumPy.

    `n_threads` limits the threads of matrix products, `weight_budget` the bytes of dequantized weights that are kept. Keys and values are
    float32, rounded to the precision of `cache_types`. Raises ModelError for a model with an op or a tensor type that it can't run,
    InputError for cache types that can't be used.
    """

    def __init__(
        self,
        model: Model,
        n_threads: int | None = None,
        weight_budget: int = 4 * 2**30,
        cache_types: CacheTypes = DEFAULT_TYPES,
    ) -> None:
        if n_threads:
            from threadpoolctl import threadpool_limits

            threadpool_limits(n_threads)
        computes.check(model)
        self.model = model
        self._weights = WeightReader(model.file, weight_budget)
        c = model.config
        shape = len(c.attention_layers), 2, PAGE, c.n_head_kv, c.head_dim
        self.cache_types = cache_types.chosen("f32", c.head_dim)
        self._kv = KVPages(shape, self.cache_types)
        self._states = States(c.delta_nets)
        self.cache = KVCache(c.delta_nets is not None, self._kv.page, self._states.memory)
        rounded = (
            ""
            if self.cache_types == ("f32", "f32")
            else f" rounded to {self.cache_types.k} and {self.cache_types.v}"
        )
        states = f", states [{c.n_state_values}]" if c.delta_nets else ""
        self.kv_layout = f"{np.dtype(np.float32).str} {list(shape)}{rounded}{states}"
        for node in model.graph.nodes.values():
            if isinstance(node.op, Weight):
                self._weights.check(node)

    def run(
        self, fetch: Sequence[str], batch: Batch | None = None, feed: Mapping[str, F32] | None = None
    ) -> dict[str, F32]:
        """See Backend.run."""
        feed = feed or {}
        nodes = self.model.graph.subgraph(fetch, feed)
        values: dict[str, Any] = dict(feed)
        if batch is not None:
            batch.reserve(self.cache)
            graph = self.model.graph
            values[graph.tokens.name] = batch.tokens
            values[graph.positions.name] = batch.positions
            values[graph.outputs.name] = batch.outputs
        step = Step(self._weights, self._kv, self._states, batch)
        last_use = Graph.last_uses(nodes)
        with np.errstate(all="ignore"):  # values that aren't finite are reported where logits are used
            for i, node in enumerate(nodes):
                if node.name in values:
                    continue
                if isinstance(node.op, Weight):
                    values[node.name] = node
                else:
                    compute = computes[type(node.op)]
                    values[node.name] = compute(step, node, *(values[source.name] for source in node.src))
                for source in node.src:
                    if last_use[source.name] == i and source.name not in fetch:
                        values.pop(source.name, None)
        if batch is not None:
            batch.commit(self.cache)
        return {name: values[name] for name in fetch}

    def step(self, batch: Batch) -> None:
        """See Backend.step."""
        self.run([LOGITS], batch)

    def hidden(self, batch: Batch) -> F32:
        """See Backend.hidden."""
        return self.run([HIDDEN], batch)[HIDDEN]

    def sample(self, batch: Batch, draws: Sequence[Draw | None]) -> list[int | F32]:
        """See Backend.sample."""
        return sample_with_numpy(self, batch, draws)

    def score(self, hidden: F32, targets: Sequence[int]) -> F64:
        """See Backend.score."""
        return score_with_numpy(self, hidden, targets)

    def copy_page(self, source: int, target: int) -> None:
        """See Backend.copy_page."""
        self._kv.page(target)[:] = self._kv.page(source)

    def page_bytes(self, page: int) -> NDArray[np.uint8]:
        """See Backend.page_bytes."""
        return self._kv.page(page).reshape(-1).view(np.uint8)

    def state_bytes(self, state: int) -> NDArray[np.uint8]:
        """See Backend.state_bytes."""
        return self._states.memory(state).view(np.uint8)

    def buffers(self) -> list[Buffer]:
        """See Backend.buffers. Activations live only as long as a step."""
        c, nets = self.model.config, self.model.config.delta_nets
        pages, states = self._kv.arrays, self._states.arrays
        floats = [
            buffer_of("weights as float32", "numpy", arrays, layer) for layer, arrays in self._weights.kept
        ]
        return [
            *weights(self.model, "numpy"),
            *floats,
            *in_layers("KV cache", "numpy", c.attention_layers, pages, pages[0].nbytes if pages else 0),
            *in_layers(
                "states", "numpy", nets.layers if nets else (), states, states[0].nbytes if states else 0
            ),
        ]
