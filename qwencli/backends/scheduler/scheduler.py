"""The scheduler: a backend that is made of backends, one for each device that has a part of the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ...errors import InputError
from ...network.graph import LOGITS, N_OUTPUTS, N_TOKENS, Tensor, Weight
from ...network.model import Model
from ...units import size
from ..buffers import Buffer
from ..cpu.program import RowTime
from ..kv_cache import CacheTypes, KVCache, Layers
from ..protocol import Backend, Batch, Bytes, Part, Results, Share, Stepping, Task
from ..values import check_fetched, checked_feed, counts_of
from .placement import Placement
from .splits import Split, cut

Make = Callable[[int, Share], Backend]
"""Makes the backend of the device with this number, for its share of the graph."""


@runtime_checkable
class Profiled(Protocol):
    """A device whose rows can be timed."""

    def timed(self, task: Task) -> tuple[Results, list[RowTime]]: ...


class Begun(NamedTuple):
    """A step: its splits, and what the device of the first one has returned for it."""

    task: Task
    plan: Sequence[Split]
    first: Any


class Scheduler(Stepping):
    """Runs `model` on several devices: a step runs split by split, and values are copied from one to the next.

    It owns the cache: a page or state has one number, and each device holds what belongs to its layers. `make` makes the backend of a
    device. A step counts only after its last split: if one fails, or Ctrl-C comes, the bytes that earlier ones have written mean nothing.
    """

    def __init__(self, model: Model, placement: Placement, make: Make) -> None:
        self.model = model
        self.placement = placement
        c = model.config
        self.cache = KVCache(c.delta_nets is not None, self.make_page, self.make_state)
        self._plans: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Split]] = {}
        self.devices: dict[int, Backend] = {}
        """The backends by number of device, of those that have something to run."""
        self._holders: dict[tuple[str, int], Backend] = {}
        self._usual = usual = self.plan(tuple(model.graph.results()), tuple(model.graph.given()))
        for number in sorted({split.device for split in usual}):
            nodes = self._nodes_on(number)
            parts = [
                Part(split.fetch, split.feed, "choose" if LOGITS in split.fetch else None)
                for split in usual
                if split.device == number
            ]
            self.devices[number] = backend = make(number, Share(self.cache, nodes, parts))
            layers = Layers.of(nodes)
            self._holders |= {("page", layer): backend for layer in layers.attention}
            self._holders |= {("state", layer): backend for layer in layers.recurrent}
        backends = list(self.devices.values())
        holders = list(dict.fromkeys(self._holders.values())) or backends
        self.cache_types: CacheTypes = holders[0].cache_types
        self.kv_layout = self._layout_of(holders)

    def _nodes_on(self, number: int) -> list[Tensor]:
        """Return the nodes that run on a device, and their weights."""
        nodes = self.model.graph.nodes.values()
        found = [node for node in nodes if self.placement.of[node.name] == number]
        weights = [source for node in found for source in node.src if isinstance(source.op, Weight)]
        return list(dict.fromkeys([*weights, *found]))

    def _layout_of(self, holders: Sequence[Backend]) -> str:
        """Return the layout of pages: that of all devices, or that of each layer if they differ."""
        layouts = list(dict.fromkeys(backend.kv_layout for backend in holders))
        if len(layouts) == 1:
            return layouts[0]
        which = [
            f"{what} {layer}: {layouts.index(b.kv_layout)}" for (what, layer), b in self._holders.items()
        ]
        return f"{' or '.join(layouts)}; {', '.join(which)}"

    def plan(self, fetch: tuple[str, ...], feed: tuple[str, ...]) -> list[Split]:
        """Return the splits that compute `fetch` from `feed`. Raises ModelError for a name that isn't in the graph."""
        key = fetch, feed
        if key not in self._plans:
            nodes = [node for node in self.model.graph.subgraph(fetch, feed) if node.name not in feed]
            self._plans[key] = cut(nodes, self.placement.of, fetch)
        return self._plans[key]

    def begin(self, task: Task) -> Begun:
        """See Backend.begin. The first split runs; the others do in `finish`."""
        graph = self.model.graph
        check_fetched(graph, task.fetch)
        task = replace(task, feed=checked_feed(graph, task.feed))
        counts_of(graph, task.batch, task.feed)
        plan = self.plan(task.fetch, tuple(task.feed))
        first = self.devices[plan[0].device].begin(self._task(task, plan[0], task.feed)) if plan else None
        return Begun(task, plan, first)

    def finish(self, begun: Begun) -> Results:
        """See Backend.finish."""
        ready = [begun.first]

        def run(device: Backend, task: Task) -> Results:
            return device.finish(ready.pop() if ready else device.begin(task))

        return self._run(begun.task, begun.plan, run)

    def profile(self, fetch: Sequence[str], batch: Batch) -> list[RowTime]:
        """Run a batch, and return the rows of all devices: see CPUBackend.profile. Raises InputError for a device that has no rows."""
        rows: list[RowTime] = []

        def run(device: Backend, task: Task) -> Results:
            if not isinstance(device, Profiled):
                raise InputError("only CPU devices have a profile: leave the others out")
            results, more = device.timed(task)
            rows.extend(more)
            return results

        task = Task(tuple(fetch), batch, wanted=False)
        batch.reserve(self.cache)
        self._run(task, self.plan(task.fetch, ()), run)
        batch.commit(self.cache)
        return rows

    def _run(self, task: Task, plan: Sequence[Split], run: Callable[[Backend, Task], Results]) -> Results:
        """Run the splits of a step, each with `run`, and hand their values on."""
        values = dict(task.feed)
        last = Results()
        for split in plan:
            results = run(self.devices[split.device], self._task(task, split, values))
            values |= results.values
            last = results if LOGITS in split.fetch else last
        return last._replace(values={name: values[name] for name in task.fetch if name in values})

    def _task(self, task: Task, split: Split, values: Mapping[str, Any]) -> Task:
        """Return what a split has to do in a step, with what it needs of `values`. The one with the logits chooses and scores."""
        feed = {name: values[name] for name in split.feed}
        if LOGITS not in split.fetch:
            return Task(split.fetch, task.batch, feed)
        wanted = task.wanted or len(split.fetch) > 1
        return Task(split.fetch, task.batch, feed, task.draws, task.targets, wanted)

    def make_page(self, page: int) -> None:
        """See Backend.make_page."""
        for backend in self.devices.values():
            backend.make_page(page)

    def make_state(self, state: int) -> None:
        """See Backend.make_state."""
        for backend in self.devices.values():
            backend.make_state(state)

    def copy_page(self, source: int, target: int) -> None:
        """See Backend.copy_page."""
        for backend in self.devices.values():
            backend.copy_page(source, target)

    def read_page(self, page: int, layer: int) -> Bytes:
        """See Backend.read_page."""
        return self._holders["page", layer].read_page(page, layer)

    def write_page(self, page: int, layer: int, data: Bytes) -> None:
        """See Backend.write_page."""
        self._holders["page", layer].write_page(page, layer, data)

    def read_state(self, state: int, layer: int) -> Bytes:
        """See Backend.read_state."""
        return self._holders["state", layer].read_state(state, layer)

    def write_state(self, state: int, layer: int, data: Bytes) -> None:
        """See Backend.write_state."""
        self._holders["state", layer].write_state(state, layer, data)

    def buffers(self) -> list[Buffer]:
        """See Backend.buffers. A weight that several devices read belongs to the first of them."""
        found: list[Buffer] = []
        seen: set[int] = set()
        for number, backend in self.devices.items():
            name = self.placement.devices[number].name
            for buffer in backend.buffers():
                new = np.array([address not in seen for address, _ in buffer.places.tolist()], np.bool_)
                places = buffer.places[new]
                seen.update(places[:, 0].tolist())
                found.append(replace(buffer, device=name, places=places))
        return found

    def describe(self, n_tokens: int = 1, n_outputs: int = 1) -> list[str]:
        """Return the splits of a step as lines, in the way of GGML's debugging output."""
        lines = []
        sizes = {N_TOKENS: n_tokens, N_OUTPUTS: n_outputs}
        for number, split in enumerate(self._usual):
            feeds = (self.model.graph.nodes[name] for name in split.feed)
            inputs = " ".join(f"[{node.name} ({size(node.n_bytes(sizes))})]" for node in feeds)
            name = self.placement.devices[split.device].name
            lines.append(
                f"## SPLIT #{number}: {name} # {len(split.feed)} inputs" + (f": {inputs}" if inputs else "")
            )
        return lines
