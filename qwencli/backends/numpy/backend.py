"""The NumPy backend: the graph in plain float32, without anything clever. Compiled kernels are compared with it.

Weights are dequantized when they are first used, and kept as long as they fit into a budget. Those that don't fit are dequantized each
time, some rows at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...network.graph import Graph, Tensor, Weight
from ...network.model import Model
from ..buffers import Buffer, buffer_of, in_layers, weights
from ..kv_cache import DEFAULT_TYPES, PAGE, CacheTypes, KVCache, Layers
from ..protocol import LOGITS, Bytes, Results, Share, Stepping, Task, choose_with_numpy, score_with_numpy
from ..values import check_batch, check_fetched, checked_feed, counts_of, inputs_of, reader_of_batch
from .memory import KVPages, States, WeightReader
from .ops import Step, computes


class NumpyBackend(Stepping):
    """Runs `model` in NumPy.

    `n_threads` limits the threads of matrix products, `weight_budget` the bytes of dequantized weights that are kept. Keys and values are
    float32, rounded to the precision of `cache_types`. `share` is what a device of a scheduler is given. Raises ModelError for a model with
    an op or a tensor type that it can't run, InputError for cache types that can't be used.
    """

    def __init__(
        self,
        model: Model,
        n_threads: int | None = None,
        weight_budget: int = 4 * 2**30,
        cache_types: CacheTypes = DEFAULT_TYPES,
        share: Share | None = None,
    ) -> None:
        if n_threads:
            from threadpoolctl import threadpool_limits

            threadpool_limits(n_threads)
        self.model = model
        self._weights = WeightReader(model.file, weight_budget)
        c = model.config
        shape = len(c.attention_layers), 2, PAGE, c.n_head_kv, c.head_dim
        self.cache_types = cache_types.chosen("f32", c.head_dim)
        self._nodes = nodes = share.nodes if share else [*model.graph.nodes.values()]
        self._layers = layers = Layers.of(nodes)
        self._kv = KVPages(layers.attention, shape[1:], self.cache_types)
        self._states = States(layers.recurrent, c.delta_nets)
        self.cache = (
            share.cache if share else KVCache(c.delta_nets is not None, self.make_page, self.make_state)
        )
        rounded = (
            ""
            if self.cache_types == ("f32", "f32")
            else f" rounded to {self.cache_types.k} and {self.cache_types.v}"
        )
        states = f", states [{c.n_state_values}]" if c.delta_nets else ""
        self.kv_layout = f"{np.dtype(np.float32).str} {list(shape)}{rounded}{states}"
        computes.check(model.file.path, nodes)
        for node in nodes:
            if isinstance(node.op, Weight):
                self._weights.check(node)

    def begin(self, task: Task) -> Task:
        """See Backend.begin. The step runs in `finish`."""
        return task

    def finish(self, begun: Task) -> Results:
        """See Backend.finish."""
        values = self._compute(begun)
        chosen = choose_with_numpy(values[LOGITS], begun.draws) if begun.draws else []
        scores = None if begun.targets is None else score_with_numpy(values[LOGITS], begun.targets)
        return Results(values, chosen, scores)

    def _compute(self, task: Task) -> dict[str, Any]:
        """Compute the tensors that a step fetches, by name."""
        graph, fetch, batch = self.model.graph, task.fetch, task.batch
        check_fetched(graph, fetch)
        feed = checked_feed(graph, task.feed)
        counts_of(graph, batch, feed)
        nodes = graph.subgraph(fetch, feed)
        check_batch(reader_of_batch(nodes), batch)
        values: dict[str, Any] = feed | inputs_of(graph, batch)
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
        return {
            name: self._weights.whole(value) if isinstance(value := values[name], Tensor) else value
            for name in fetch
        }

    def make_page(self, page: int) -> None:
        """See Backend.make_page."""
        self._kv.page(page)

    def make_state(self, state: int) -> None:
        """See Backend.make_state."""
        self._states.memory(state)

    def copy_page(self, source: int, target: int) -> None:
        """See Backend.copy_page."""
        self._kv.page(target)[:] = self._kv.page(source)

    def read_page(self, page: int, layer: int) -> Bytes:
        """See Backend.read_page. It is a view."""
        return self._kv.layer(page, layer).reshape(-1).view(np.uint8)

    def write_page(self, page: int, layer: int, data: Bytes) -> None:
        """See Backend.write_page."""
        self.read_page(page, layer)[:] = data

    def read_state(self, state: int, layer: int) -> Bytes:
        """See Backend.read_state. It is a view."""
        return self._states.whole_layer(state, layer).view(np.uint8)

    def write_state(self, state: int, layer: int, data: Bytes) -> None:
        """See Backend.write_state."""
        self.read_state(state, layer)[:] = data

    def buffers(self) -> list[Buffer]:
        """See Backend.buffers. Activations live only as long as a step."""
        kept = [
            buffer_of("weights as float32", "numpy", arrays, layer) for layer, arrays in self._weights.kept
        ]
        layers = self._layers.of_model(self.model.config)
        pages, states = self._kv.arrays, self._states.arrays
        page_bytes, state_bytes = (arrays[0].nbytes if arrays else 0 for arrays in (pages, states))
        return [
            *weights(self.model.file, self._nodes, "numpy"),
            *kept,
            *in_layers(
                "KV cache",
                "numpy",
                layers.attention,
                pages,
                page_bytes,
                page_bytes // max(1, len(layers.attention)),
            ),
            *in_layers(
                "states",
                "numpy",
                layers.recurrent,
                states,
                state_bytes,
                state_bytes // max(1, len(layers.recurrent)),
            ),
        ]
