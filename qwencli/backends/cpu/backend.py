"""The CPU backend: programs of compiled kernels on the mapped file, run by a team of threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from ...errors import InputError, QwenError
from ...kernels import layout
from ...kernels.arguments import PRODUCT_BYTES
from ...kernels.isa import ISAError, choose
from ...kernels.jit import KernelError, Kernels, Progress, Report
from ...kernels.tiles import Tiles
from ...network.graph import N_OUTPUTS, N_TOKENS, ExpertLinear, Linear
from ...network.model import Model
from ...sampling.sampler import NOT_FINITE, Draw
from ...system.memory import Meter
from ..buffers import Buffer, buffer_of, grown, in_layers, weights
from ..kv_cache import DEFAULT_TYPES, PAGE, CacheTypes, KVCache
from ..protocol import F32, F64, HIDDEN, LOGITS, Batch
from .inputs import BatchWriter, Inputs, queries_at_once
from .lower import lower
from .memory import Bytes, PageMemory
from .program import SOME_TOKENS, Program, activation_kind, layer_bytes, weight_info
from .stopwatch import SPECS as CLOCK
from .stopwatch import Stopwatch
from .team import BUDGET, BUDGET_OF_MANY, RUNTIME, Team, physical_cores
from .tuning import chosen

PAGE_UNIT = 512
"""The memory of a page is a multiple of this many bytes: the checksums of sessions need it."""

PROGRAMS = "programs and kernels"
"""What has no address that is known: the objects of programs, and machine code."""

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


class CPUBackend:
    """Runs `model` with compiled kernels on `n_threads` threads, by default one per physical core.

    `report` is called when kernels are compiled, and `progress` with the number of kernels done and of all. The default of `isa` is the
    best one of this CPU, that of `cache_types` is f16. Raises InputError for an ISA or a cache type that can't be used.
    """

    def __init__(
        self,
        model: Model,
        n_threads: int | None = None,
        report: Report | None = None,
        progress: Progress | None = None,
        isa: str | None = None,
        cache_types: CacheTypes = DEFAULT_TYPES,
    ) -> None:
        self.model = model
        self.cache_types = cache_types.chosen("f16", model.config.head_dim)
        try:
            self._kernels = kernels_of(choose(isa).name)
        except ISAError as error:
            raise InputError(str(error)) from None
        self._kernels.report, self._kernels.progress = report, progress
        self.isa = self._kernels.isa.name
        self._tiles = Tiles(self.isa, chosen(self._kernels))
        c = model.config
        self._team = Team(self._kernels, n_threads or physical_cores(), self._scratch_bytes())
        self._programs: dict[tuple[object, ...], Program] = {}
        self._watches: dict[Program, Stopwatch] = {}
        page_bytes = layer_bytes(model, self.cache_types) * len(c.attention_layers)
        self._pages = PageMemory(round_up(page_bytes, PAGE_UNIT), PAGE, "positions of the KV cache")
        self._states = PageMemory(round_up(4 * c.n_state_values, PAGE_UNIT), 1, "states of recurrent layers")
        self.cache = KVCache(c.delta_nets is not None, self._pages.address, self._states.address)
        self.kv_layout = kv_layout(model, self.cache_types)
        self._writer = BatchWriter(c, self._pages, self._states)
        self._meter = Meter()
        self._lock = threading.Lock()  # one step at a time: steps share programs and threads

    def _scratch_bytes(self) -> int:
        c = self.model.config
        weights = [
            weight_info(node)
            for node in self.model.graph.nodes.values()
            if isinstance(node.op, (Linear, ExpertLinear))
        ]
        panels: list[int] = [
            PRODUCT_BYTES + layout.panel_bytes(activation_kind(info), info.shape[-1]) for info in weights
        ]
        rows = (4 * info.shape[-1] for info in weights)
        attention: int = layout.attention_scratch(queries_at_once(c), c.head_dim, *self.cache_types)
        return max(
            attention, int(layout.store_scratch(c.head_dim)), int(layout.SAMPLING_SCRATCH), *rows, *panels
        )

    def run(
        self, fetch: Sequence[str], batch: Batch | None = None, feed: Mapping[str, F32] | None = None
    ) -> dict[str, F32]:
        """See Backend.run. Ctrl-C and errors leave the cache unchanged."""
        with self._lock:
            program, counts = self._run(tuple(fetch), batch, feed or {})
            values = {name: program.value(name) for name in fetch}
            copies = {name: value.floats(counts[value.dim]).copy() for name, value in values.items()}
        shapes = {
            name: [d for d in self.model.graph.nodes[name].shape if isinstance(d, int)] for name in fetch
        }
        return {name: rows.reshape(len(rows), *shapes[name]) for name, rows in copies.items()}

    def step(self, batch: Batch) -> None:
        """See Backend.step."""
        with self._lock:
            self._run((LOGITS,), batch, {})

    def hidden(self, batch: Batch) -> F32:
        """See Backend.hidden."""
        return self.run([HIDDEN], batch)[HIDDEN]

    def sample(self, batch: Batch, draws: Sequence[Draw | None]) -> list[int | F32]:
        """See Backend.sample. The last row of the program draws for all sequences; for None it only checks that the logits are finite."""
        with self._lock:
            program, _ = self._run((LOGITS,), batch, {}, draws=[draw or GREEDY for draw in draws])
            chosen: list[int] = program.inputs.chosen[: len(draws)].tolist()
            logits = program.value(LOGITS).floats(len(draws))
            return [
                token if draw or token == NOT_FINITE else row.copy()
                for token, draw, row in zip(chosen, draws, logits)
            ]

    def score(self, hidden: F32, targets: Sequence[int]) -> F64:
        """See Backend.score. Raises InputError for targets outside the vocabulary, or if there isn't one for each row."""
        n_vocab = self.model.config.n_vocab
        if len(targets) != len(hidden) or not all(0 <= target < n_vocab for target in targets):
            raise InputError(
                f"there are {len(targets)} tokens to score, expected one below {n_vocab} for each of {len(hidden)} rows"
            )
        with self._lock:
            program, _ = self._run((LOGITS,), None, {HIDDEN: hidden}, targets=targets)
            found = program.inputs.scores[: len(targets)].copy()
        with np.errstate(invalid="ignore", divide="ignore"):  # the caller reports what isn't finite
            scores: F64 = np.log(found["sum"]) - found["difference"]
        return scores

    def profile(self, fetch: Sequence[str], batch: Batch) -> list[tuple[str, float]]:
        """Run a batch, and return each row's kernel and the seconds it took. Rows that could run side by side run one after the other."""
        with self._lock:
            self._load([*CLOCK])
            program, _ = self._run(tuple(fetch), batch, {}, profiled=True)
            return list(zip(program.names, self._watches[program].seconds().tolist()))

    def kernels_for(
        self, fetch: Sequence[str], feed: Sequence[str], n_tokens: int, n_outputs: int, ending: str | None
    ) -> list[str]:
        """Return the names of the kernels that a step with these results, inputs, tokens and outputs runs."""
        program = self._lower(
            tuple(fetch), tuple(feed), {N_TOKENS: room_for(n_tokens), N_OUTPUTS: room_for(n_outputs)}, ending
        )
        return [*RUNTIME, *program.specs]

    def copy_page(self, source: int, target: int) -> None:
        """See Backend.copy_page."""
        with self._lock:
            self._pages.memory(target)[:] = self._pages.memory(source)

    def page_bytes(self, page: int) -> Bytes:
        """See Backend.page_bytes."""
        return self._pages.memory(page)

    def state_bytes(self, state: int) -> Bytes:
        """See Backend.state_bytes."""
        return self._states.memory(state)

    def _run(
        self,
        fetch: tuple[str, ...],
        batch: Batch | None,
        feed: Mapping[str, F32],
        draws: Sequence[Draw] | None = None,
        targets: Sequence[int] | None = None,
        profiled: bool = False,
    ) -> tuple[Program, dict[str, int]]:
        counts = self._counts(batch, feed)
        ending = "choose" if draws is not None else "score" if targets is not None else None
        program = self._program(fetch, tuple(feed), counts, ending)
        program.inputs.targets[: len(targets or [])] = targets or []
        program.inputs.set_counts(counts[N_TOKENS], counts[N_OUTPUTS], len(batch.segments) if batch else 0)
        for name, rows in feed.items():
            program.value(name).floats(len(rows))[:] = rows
        keep = program.inputs.set_draws(draws or [])
        if batch is not None:
            self._check_tokens(batch)
            batch.reserve(self.cache)
            keep += self._writer.write(batch, program.inputs)
        to_run = program.rows
        if profiled:
            if program not in self._watches:
                self._watches[program] = Stopwatch(self._kernels, program.rows)
            to_run = self._watches[program].rows
        self._team.run(to_run, BUDGET if max(counts.values()) <= SOME_TOKENS else BUDGET_OF_MANY)
        del keep  # the program had only the addresses of these arrays
        if batch is not None:
            batch.commit(self.cache)
        return program, counts

    def _counts(self, batch: Batch | None, feed: Mapping[str, F32]) -> dict[str, int]:
        """Return the number of tokens and of outputs of a step. Raises InputError if fed tensors contradict the batch or each other."""
        counts = {N_TOKENS: len(batch.tokens), N_OUTPUTS: len(batch.outputs)} if batch else {}
        for name, rows in feed.items():
            node = self.model.graph.nodes.get(name)
            dim = str(node.shape[0]) if node else name
            if counts.setdefault(dim, len(rows)) != len(rows):
                raise InputError(f"'{name}' is fed with {len(rows)} rows, expected {counts[dim]}")
        return {N_TOKENS: 0, N_OUTPUTS: 0} | counts

    def _check_tokens(self, batch: Batch) -> None:
        """Raise InputError for a token outside the vocabulary: kernels use tokens as row numbers."""
        n_vocab = self.model.config.n_vocab
        if len(batch.tokens) and not 0 <= batch.tokens.min() <= batch.tokens.max() < n_vocab:
            raise InputError(f"the batch has a token outside the vocabulary of {n_vocab}")

    def _program(
        self, fetch: tuple[str, ...], feed: tuple[str, ...], counts: Mapping[str, int], ending: str | None
    ) -> Program:
        """Return the program for these results and this many tokens, with or without sampling. It is lowered when it is first needed."""
        rooms = {dim: room_for(n) for dim, n in counts.items()}
        key = (fetch, feed, *sorted(rooms.items()), ending)
        if key not in self._programs:
            with self._meter.during(PROGRAMS):
                program = self._lower(fetch, feed, rooms, ending)
                for name in fetch:
                    program.value(name)  # raise now, not when the step is done
                self._load([*RUNTIME, *program.specs])
                program.link(self._kernels)
            self._programs[key] = program
        return self._programs[key]

    def _load(self, specs: list[str]) -> None:
        """Load kernels. If some have to be compiled, compile all that the model will need in one go. Raises QwenError."""
        if self._kernels.missing(specs):
            usual = [
                self._lower((LOGITS,), (), {N_TOKENS: room_for(n), N_OUTPUTS: room_for(1)}, "choose")
                for n in (1, 2)
            ]
            specs = [*specs, *(spec for program in usual for spec in program.specs)]
        try:
            self._kernels.load(specs)
        except KernelError as error:
            raise QwenError(f"{error} (please report this; --backend numpy runs without kernels)") from error

    def _lower(
        self, fetch: tuple[str, ...], feed: tuple[str, ...], rooms: dict[str, int], ending: str | None
    ) -> Program:
        nodes = self.model.graph.subgraph(fetch, feed)
        inputs = Inputs(max(rooms.values()), self.model.config.rope.n_rot)
        return lower(
            self.model,
            nodes,
            fetch,
            feed,
            inputs,
            rooms,
            self._team.n_threads,
            ending,
            self._tiles,
            self.cache_types,
        )

    def buffers(self) -> list[Buffer]:
        """See Backend.buffers. It may be called during a step."""
        c, nets = self.model.config, self.model.config.delta_nets
        states = nets.layers if nets else ()
        values = [array for program in list(self._programs.values()) for array in program.arrays]
        return [
            *weights(self.model, "cpu"),
            *in_layers("KV cache", "cpu", c.attention_layers, self._pages.arenas, self._pages.page_bytes),
            *in_layers("states", "cpu", states, self._states.arenas, self._states.page_bytes),
            buffer_of("activations", "cpu", [*values, self._writer.partials]),
            buffer_of("panels and scratch", "cpu", self._team.arrays),
            *grown(PROGRAMS, "cpu", self._meter.grown),
        ]


def kv_layout(model: Model, types: CacheTypes) -> str:
    """See Backend.kv_layout. The details are in kernels/kv/ and kernels/delta.py."""
    c, nets = model.config, model.config.delta_nets
    n_layer = len(c.attention_layers)
    states = f"; states [{len(nets.layers)}] of {nets.n_state}" if nets else ""
    pages = f"[{n_layer}][{c.n_head_kv}] of keys"
    if types == ("f16", "f16"):
        return f"{np.dtype(np.float16).str} {pages} [{c.head_dim}][{PAGE}], values [{PAGE}][{c.head_dim}]{states}"
    return (
        f"{sys.byteorder}-endian {pages} {types.k}, values {types.v} [{c.head_dim}], pages of {PAGE}{states}"
    )


def round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def room_for(n: int) -> int:
    """Return the room of a program for n rows: one, or a power of two, so that a handful of programs serves all steps."""
    return 1 if n <= 1 else max(8, 1 << (n - 1).bit_length())


@cache
def kernels_of(isa_name: str) -> Kernels:
    """Return the process's kernels for an ISA: machine code that is never unloaded."""
    return Kernels(choose(isa_name))
