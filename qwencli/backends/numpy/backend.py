"""The NumPy backend: the graph in plain float32, with nothing clever in it. It is the oracle by which compiled kernels are judged.

Weights are dequantized when they are first used and kept while they fit into a budget; what doesn't fit is dequantized again each time,
some rows at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError
from ...network.graph import Graph, Input, Weight
from ...network.model import Model
from ...sampling.sampler import Draw
from ..kv_cache import DEFAULT_TYPES, PAGE, CacheTypes, KVCache, KVSequence
from ..protocol import F32, F64, LOGITS, Batch, sample_with_numpy, score_with_numpy
from .memory import KVPages, States, WeightReader
from .ops import COMPUTE, Step


class NumpyBackend:
    """Runs `model` in NumPy.

    `n_threads` limits those of its matrix products, `weight_budget` the bytes of dequantized weights that are kept. Keys and values are
    float32, rounded as `cache_types` would.
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
        self.model, self.cache = model, KVCache(model.config.delta_nets is not None)
        self._weights = WeightReader(model.file, weight_budget)
        c = model.config
        shape = len(c.attention_layers), 2, PAGE, c.n_head_kv, c.head_dim
        self.cache_types = cache_types.chosen("f32", c.head_dim)
        self._kv, self._states = KVPages(shape, self.cache_types), States(c.delta_nets)
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
            elif type(node.op) is not Input and type(node.op) not in COMPUTE:
                raise ModelError(
                    f"{model.file.path}: the NumPy backend has no {type(node.op).__name__}, which '{node.name}' needs"
                )

    def run(
        self, fetch: Sequence[str], batch: Batch | None = None, feed: Mapping[str, F32] | None = None
    ) -> dict[str, F32]:
        """See Backend.run."""
        feed = feed or {}
        nodes = self.model.graph.subgraph(fetch, feed)
        values: dict[str, Any] = dict(feed)
        if batch is not None:
            for segment in batch.segments:
                self.reserve(segment.seq, len(segment.tokens))
            values |= {"inp_tokens": batch.tokens, "inp_pos": batch.positions, "inp_out_ids": batch.outputs}
        step = Step(self._weights, self._kv, self._states, batch)
        last_use = Graph.last_uses(nodes)
        with np.errstate(all="ignore"):  # what isn't finite is reported where logits are used
            for i, node in enumerate(nodes):
                if node.name in values:
                    continue
                if isinstance(node.op, Weight):
                    values[node.name] = node
                else:
                    values[node.name] = COMPUTE[type(node.op)](
                        step, node, *(values[s.name] for s in node.src)
                    )
                for source in node.src:
                    if last_use[source.name] == i and source.name not in fetch:
                        values.pop(source.name, None)
        if batch is not None:
            batch.commit(self.cache)
        return {name: values[name] for name in fetch}

    def step(self, batch: Batch) -> None:
        """See Backend.step."""
        self.run([LOGITS], batch)

    def sample(self, batch: Batch, draws: Sequence[Draw | None]) -> list[int | F32]:
        """See Backend.sample."""
        return sample_with_numpy(self, batch, draws)

    def score(self, hidden: F32, targets: Sequence[int]) -> F64:
        """See Backend.score."""
        return score_with_numpy(self, hidden, targets)

    def reserve(self, seq: KVSequence, n_tokens: int) -> None:
        """See Backend.reserve; the memory is taken when a page is written."""
        self.cache.reserve(seq, n_tokens)

    def copy_page(self, source: int, target: int) -> None:
        """See Backend.copy_page."""
        self._kv.page(target)[:] = self._kv.page(source)

    def page_bytes(self, page: int) -> NDArray[np.uint8]:
        """See Backend.page_bytes."""
        return self._kv.page(page).reshape(-1).view(np.uint8)

    def state_bytes(self, state: int) -> NDArray[np.uint8]:
        """See Backend.state_bytes."""
        return self._states.memory(state).view(np.uint8)
