"""The CPU backend: programs of compiled kernels on the mapped file, run by a team of threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...kernels import layout
from ...kernels.arguments import PRODUCT_BYTES
from ...kernels.isa import ISAError, choose
from ...kernels.jit import Kernels, Progress, Report
from ...kernels.tiles import Tiles
from ...network.graph import N_OUTPUTS, N_TOKENS, ExpertLinear, Linear, Tensor
from ...network.model import Model
from ...sampling.sampler import NOT_FINITE, Draw
from ...system.threads import NORMAL
from ..buffers import Buffer, buffer_of, grown, in_layers, weights
from ..kv_cache import DEFAULT_TYPES, PAGE, CacheTypes, KVCache, Layers
from ..protocol import F32, F64, LOGITS, Batch, Bytes, Part, Results, Share, Stepping, Task
from ..threads import USUAL, USUAL_POLL, Threads
from ..values import check_batch, check_fetched, checked_feed, counts_of, inputs_of
from .cache import CacheLayout, PageMemory, kv_layout
from .inputs import BatchWriter, queries_at_once
from .program import SOME_TOKENS, Program, RowTime, activation_kind, weight_info
from .programs import PROGRAMS, Programs
from .stopwatch import SPECS as CLOCK
from .stopwatch import Stopwatch
from .team import BUDGET, BUDGET_OF_MANY, PATIENCE, Team, physical_cores
from .tuning import chosen

if TYPE_CHECKING:
    from .driver import Driver
    from .driver import Step as Driven

COPIES = "device:copies"
"""What copying values into a program's memory, and out of it, is called among its rows."""
AT_ONCE = 0
"""The patience of a team that other devices take turns with."""
GREEDY = Draw(
    temp=0.0,
    top_k=1,
    top_p=1.0,
    min_p=0.0,
    repeat_penalty=1.0,
    frequency_penalty=0.0,
    presence_penalty=0.0,
    recent={},
    chance=0.0,
)


class Begun(NamedTuple):
    """A step that was begun: its program, and what the driver runs if the device has one."""

    task: Task
    program: Program
    driven: Driven[Results] | None = None


class CPUBackend(Stepping):
    """Runs `model`, or a part of it, with compiled kernels on `n_threads` threads, by default one per physical core.

    `report` is called when kernels are compiled, and `progress` with the number of kernels done and of all. The default of `isa` is the
    best one of this CPU, that of `cache_types` is f16. With `cpus` the threads stay on these, and `threads` says more about them. `share`
    is what a device of a scheduler is given. Raises InputError for an ISA or a cache type that can't be used.
    """

    def __init__(
        self,
        model: Model,
        n_threads: int | None = None,
        report: Report | None = None,
        progress: Progress | None = None,
        isa: str | None = None,
        cache_types: CacheTypes = DEFAULT_TYPES,
        cpus: frozenset[int] | None = None,
        share: Share | None = None,
        threads: Threads = USUAL,
    ) -> None:
        self.model = model
        self.cache_types = cache_types.chosen("f16", model.config.head_dim)
        try:
            self._kernels = kernels_of(choose(isa).name)
        except ISAError as error:
            raise InputError(str(error)) from None
        self._kernels.report, self._kernels.progress = report, progress
        self.isa = self._kernels.isa.name
        nodes = share.nodes if share else [*model.graph.nodes.values()]
        self.n_threads = n_threads or physical_cores(cpus=cpus)
        n_threads_batch = threads.batch or self.n_threads
        most = max(self.n_threads, n_threads_batch)
        places = threads.places(most, cpus)
        scratch, patience = self._scratch_bytes(nodes), patience_of(threads.poll, share is not None)
        self._team = Team(self._kernels, most, scratch, places, patience, threads.priority)
        # the thread that calls the backend is not ours to put elsewhere
        self._driver = (
            self._make_driver(places[0] if places else None, threads.priority)
            if places or threads.priority != NORMAL
            else None
        )
        self._watches: dict[Program, Stopwatch] = {}
        self._layout = CacheLayout(model, self.cache_types, Layers.of(nodes))
        self._pages = PageMemory(self._layout.page_bytes, PAGE, "positions of the KV cache")
        self._states = PageMemory(self._layout.state_bytes, 1, "states of recurrent layers")
        self.cache = (
            share.cache
            if share
            else KVCache(model.config.delta_nets is not None, self.make_page, self.make_state)
        )
        self.kv_layout = kv_layout(model, self.cache_types)
        usual = [Part((LOGITS,), (), "choose")] if LOGITS in model.graph.nodes else []
        tiles = Tiles(self.isa, chosen(self._kernels))
        self._programs = Programs(
            model,
            self._kernels,
            self.n_threads,
            n_threads_batch,
            tiles,
            self._layout,
            share.parts if share else usual,
        )
        self._writer = BatchWriter(model.config, self._pages, self._states)
        self._nodes = nodes
        self._lock = threading.Lock()  # one step at a time: steps share programs and threads

    def _make_driver(self, cpus: frozenset[int] | None, priority: int) -> Driver:
        from .driver import Driver  # most runs need none

        return Driver(self._team, cpus, priority)

    def _end_lost(self) -> None:
        """End a step that was begun and not finished, before memory is used that it writes to."""
        if self._driver:
            self._driver.end_lost()

    def _scratch_bytes(self, nodes: Sequence[Tensor]) -> int:
        c = self.model.config
        weights = [weight_info(node) for node in nodes if isinstance(node.op, (Linear, ExpertLinear))]
        panels: list[int] = [
            PRODUCT_BYTES + layout.panel_bytes(activation_kind(info), info.shape[-1]) for info in weights
        ]
        rows = (4 * info.shape[-1] for info in weights)
        attention: int = layout.attention_scratch(queries_at_once(c), c.head_dim, *self.cache_types)
        return max(
            attention, int(layout.store_scratch(c.head_dim)), int(layout.SAMPLING_SCRATCH), *rows, *panels
        )

    @property
    def buffer_bytes(self) -> int:
        """The bytes of the buffers that hold values between the rows of programs."""
        return sum(program.buffer_bytes for program in self._programs.made)

    def begin(self, task: Task) -> Begun:
        """See Backend.begin. Without a driver the step runs in `finish`, on the thread that calls it."""
        task, program = self._prepare(task)
        driven = self._driver.begin(lambda: self._execute(task, program)) if self._driver else None
        return Begun(task, program, driven)

    def _prepare(self, task: Task) -> tuple[Task, Program]:
        """Return a task with its values checked, and its program."""
        self._end_lost()
        graph = self.model.graph
        check_fetched(graph, task.fetch)
        task = replace(task, feed=checked_feed(graph, task.feed))
        counts = counts_of(graph, task.batch, task.feed)
        ending = "choose" if task.draws is not None else "score" if task.targets is not None else None
        with self._lock:
            program = self._programs.get(Part(task.fetch, tuple(task.feed), ending), counts)
        check_batch(program.reader_of_batch, task.batch)
        return task, program

    def finish(self, begun: Begun) -> Results:
        """See Backend.finish."""
        if begun.driven is None or self._driver is None:
            return self._execute(begun.task, begun.program)
        return self._driver.finish(begun.driven)

    def _execute(self, task: Task, program: Program) -> Results:
        """Run a step's program, and copy what it has computed out of its memory."""
        with self._lock:
            self._feed(task, program)
            self._run(task, program, program.rows)
            return self._results(task, program)

    def _results(self, task: Task, program: Program) -> Results:
        return Results(self._values(task, program), self._chosen(task, program), self._scores(task, program))

    def _values(self, task: Task, program: Program) -> dict[str, Any]:
        """Return copies of the tensors that are fetched."""
        if not task.wanted:
            return {}
        graph = self.model.graph
        counts, found = counts_of(graph, task.batch, task.feed), inputs_of(graph, task.batch)
        return {name: found[name] if name in found else program.result(name, counts) for name in task.fetch}

    def _chosen(self, task: Task, program: Program) -> list[int | F32]:
        """Return what the program's last row chose. For a draw that is None it has only checked that the logits are finite."""
        draws = task.draws or ()
        chosen: list[int] = program.inputs.chosen[: len(draws)].tolist()
        logits = program.value(LOGITS).floats(len(draws)) if draws else ()
        return [
            token if draw or token == NOT_FINITE else row.copy()
            for token, draw, row in zip(chosen, draws, logits)
        ]

    def _scores(self, task: Task, program: Program) -> F64 | None:
        if task.targets is None:
            return None
        found = program.inputs.scores[: len(task.targets)]
        with np.errstate(invalid="ignore", divide="ignore"):  # the caller reports what isn't finite
            scores: F64 = np.log(found["sum"]) - found["difference"]
        return scores

    def profile(self, fetch: Sequence[str], batch: Batch) -> list[RowTime]:
        """Run a batch, and return how long each row took. Rows that could run side by side run one after the other."""
        batch.reserve(self.cache)
        _, rows = self.timed(Task(tuple(fetch), batch, wanted=False))
        batch.commit(self.cache)
        return rows

    def timed(self, task: Task) -> tuple[Results, list[RowTime]]:
        """Run a step as `begin` and `finish` do, and return its rows too, as `profile` does. The last one, COPIES, is for the values that
        go in and out."""
        task, program = self._prepare(task)
        if self._driver is None:
            return self._execute_timed(task, program)
        return self._driver.finish(self._driver.begin(lambda: self._execute_timed(task, program)))

    def _execute_timed(self, task: Task, program: Program) -> tuple[Results, list[RowTime]]:
        with self._lock:
            self._programs.load(CLOCK)
            if program not in self._watches:
                self._watches[program] = Stopwatch(self._kernels, program.rows)
            watch = self._watches[program]
            start = time.perf_counter()
            self._feed(task, program)
            fed = time.perf_counter()
            self._run(task, program, watch.rows)
            ended = time.perf_counter()
            results = self._results(task, program)
            copies = fed - start + time.perf_counter() - ended
            rows = program.times(watch.seconds().tolist())
            return results, [*rows, RowTime(COPIES, "", copies)] if task.feed or task.wanted else rows

    def kernels_for(
        self, fetch: Sequence[str], feed: Sequence[str], n_tokens: int, n_outputs: int, ending: str | None
    ) -> list[str]:
        """Return the names of the kernels that a step with these results, inputs, tokens and outputs runs."""
        return self._programs.kernels_for(Part(tuple(fetch), tuple(feed), ending), n_tokens, n_outputs)

    def make_page(self, page: int) -> None:
        """See Backend.make_page."""
        self._pages.address(page)

    def make_state(self, state: int) -> None:
        """See Backend.make_state."""
        self._states.address(state)

    def copy_page(self, source: int, target: int) -> None:
        """See Backend.copy_page."""
        self._end_lost()
        with self._lock:
            self._pages.memory(target)[:] = self._pages.memory(source)

    def read_page(self, page: int, layer: int) -> Bytes:
        """See Backend.read_page. It is a view."""
        self._end_lost()
        start = self._layout.in_page(layer)
        return self._pages.memory(page)[start : start + self._layout.page_layer_bytes]

    def write_page(self, page: int, layer: int, data: Bytes) -> None:
        """See Backend.write_page."""
        self.read_page(page, layer)[:] = data

    def read_state(self, state: int, layer: int) -> Bytes:
        """See Backend.read_state. It is a view."""
        self._end_lost()
        start = self._layout.in_state(layer)
        return self._states.memory(state)[start : start + self._layout.state_layer_bytes]

    def write_state(self, state: int, layer: int, data: Bytes) -> None:
        """See Backend.write_state."""
        self.read_state(state, layer)[:] = data

    def _feed(self, task: Task, program: Program) -> None:
        """Copy the tensors that are given into a program's memory."""
        for name, values in task.feed.items():
            program.value(name).write(values)

    def _run(self, task: Task, program: Program, rows: NDArray[Any]) -> None:
        """Run a program's rows, as they are or with a stopwatch between them."""
        batch, counts = task.batch, counts_of(self.model.graph, task.batch, task.feed)
        inputs = program.inputs
        inputs.targets[: len(task.targets or ())] = task.targets or ()
        inputs.set_counts(counts[N_TOKENS], counts[N_OUTPUTS], len(batch.segments) if batch else 0)
        keep = inputs.set_draws([draw or GREEDY for draw in task.draws or ()])
        if batch is not None:
            keep += self._writer.write(batch, inputs)
        budget = BUDGET if max(counts.values()) <= SOME_TOKENS else BUDGET_OF_MANY
        self._team.run(rows, budget, program.n_threads)
        del keep  # the program had only the addresses of these arrays

    def buffers(self) -> list[Buffer]:
        """See Backend.buffers. It may be called during a step."""
        pages, states, at = self._pages, self._states, self._layout
        layers = at.layers.of_model(self.model.config)
        values = [array for program in self._programs.made for array in program.arrays]
        return [
            *weights(self.model.file, self._nodes, "cpu"),
            *in_layers("KV cache", "cpu", layers.attention, pages.arenas, at.page_bytes, at.page_layer_bytes),
            *in_layers(
                "states", "cpu", layers.recurrent, states.arenas, at.state_bytes, at.state_layer_bytes
            ),
            buffer_of("activations", "cpu", [*values, self._writer.partials]),
            buffer_of("panels and scratch", "cpu", self._team.arrays),
            *grown(PROGRAMS, "cpu", self._programs.grown),
        ]


def patience_of(poll: int | None, takes_turns: bool) -> int:
    """Return the turns without work after which a thread is parked. By default the threads of devices that take turns wait for none:
    meanwhile the others need the CPUs."""
    if poll is None:
        return AT_ONCE if takes_turns else PATIENCE
    return PATIENCE * poll // USUAL_POLL


@cache
def kernels_of(isa_name: str) -> Kernels:
    """Return the process's kernels for an ISA: machine code that is never unloaded."""
    return Kernels(choose(isa_name))
