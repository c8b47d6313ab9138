"""How fast a model runs here, in llama-bench's terms, and how near that is to what the machine can do."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..backends.choose import make_backend
from ..backends.cpu.backend import CPUBackend
from ..backends.kv_cache import DEFAULT_TYPES, HALVES, CacheTypes, KVSequence
from ..backends.protocol import I32, LOGITS, Backend, Batch, Segment
from ..errors import InputError
from ..gguf.types import FILE_TYPES
from ..network.model import Model
from .costs import Cost, Costs, Extent, kind_of
from .machine import Limits, cpu_name, measure_limits, physical_cores

SIZES = {
    (24, 896): "0.5B",
    (28, 1024): "0.6B",
    (28, 1536): "1.5B",
    (24, 2048): "1.8B",
    (28, 2048): "1.7B",
    (36, 2048): "3B",
    (36, 2560): "4B",
    (28, 3584): "7B",
    (32, 4096): "7B",
    (36, 4096): "8B",
    (40, 5120): "14B",
    (48, 5120): "14B",
    (64, 5120): "32B",
    (80, 8192): "72B",
}
"""What models of so many layers and values a token are called: the files' own labels count parameters in one way or another."""
DELTA_SIZES = {(24, 1024): "0.8B", (24, 2048): "2B", (32, 2560): "4B", (32, 4096): "9B", (64, 5120): "27B"}
EXPERTS_SIZES = {
    ("qwen2moe", 24): "A2.7B",
    ("qwen2moe", 28): "57B.A14B",
    ("qwen3moe", 48): "30B.A3B",
    ("qwen3moe", 94): "235B.A22B",
    ("qwen3vlmoe", 48): "30B.A3B",
    ("qwen3vlmoe", 94): "235B.A22B",
    ("qwen3next", 48): "80B.A3B",
    ("qwen35moe", 40): "35B.A3B",
    ("qwen35moe", 48): "122B.A10B",
    ("qwen35moe", 60): "397B.A17B",
}
"""Those with delta nets, and those with experts."""
Progress = Callable[["Test", int], None]
Step = list[tuple[KVSequence, I32]]
"""The tokens that continue some sequences."""


class Test(NamedTuple):
    """What is timed: `n_prompt` tokens of a prompt, then `n_gen` one by one, behind `n_depth` others; of `n_seq` sequences at once."""

    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0
    n_seq: int = 1

    @property
    def name(self) -> str:
        """llama-bench's, with the number of sequences where there are several."""
        parts = [f"pp{self.n_prompt}"] * bool(self.n_prompt) + [f"tg{self.n_gen}"] * bool(self.n_gen)
        return (
            "+".join(parts)
            + f" b{self.n_seq}" * (self.n_seq > 1)
            + f" @ d{self.n_depth}" * bool(self.n_depth)
        )

    @property
    def n_tokens(self) -> int:
        return (self.n_prompt + self.n_gen) * self.n_seq


@dataclass(frozen=True)
class Kind:
    """A line of a profile: what the kernels of one kind cost and took, for the whole test."""

    name: str
    calls: int
    seconds: float
    cost: Cost

    def share(self, limits: Limits) -> float:
        """The least time that the machine needs, for reading or for computing, as a share of the time taken."""
        return max(self.cost.read_seconds(limits), self.cost.compute_seconds(limits)) / self.seconds

    def as_dict(self, limits: Limits) -> dict[str, Any]:
        facts: dict[str, Any] = {"kind": self.name, "calls": self.calls, "ns": round(1e9 * self.seconds)}
        if self.cost.ops and self.seconds:
            rates = {
                "bandwidth": self.cost.n_bytes / self.seconds,
                "ops": self.cost.ops / self.seconds,
                "share": self.share(limits),
            }
            return facts | rates
        return facts


@dataclass(frozen=True)
class Result:
    """A test's times, each of the whole test, what it had to do, and the limits of the machine that were measured around it.

    `isa` is what the kernels are compiled for, None where the NumPy backend ran.
    """

    test: Test
    model: Model
    isa: str | None
    n_threads: int
    n_batch: int
    samples_ns: list[int]
    cost: Cost
    limits: Limits
    profile: list[Kind] = field(default_factory=list)
    cache_types: CacheTypes = HALVES
    test_time: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))

    @property
    def samples_ts(self) -> list[float]:
        """Tokens a second of each repetition, those of all sequences together."""
        return [1e9 * self.test.n_tokens / ns for ns in self.samples_ns]

    @property
    def seconds(self) -> float:
        return fmean(self.samples_ns) / 1e9

    @property
    def model_size(self) -> int:
        """Bytes of all tensors."""
        return sum(info.n_bytes for info in self.model.file.tensors.values())

    def as_dict(self) -> dict[str, Any]:
        """The keys of llama-bench's JSON that mean something here, and ours; times in ns, rates in bytes, operations, tokens a second."""
        test, limits, cost = self.test, self.limits, self.cost
        bandwidth_share, ops_share = (
            cost.read_seconds(limits) / self.seconds,
            cost.compute_seconds(limits) / self.seconds,
        )
        facts: dict[str, Any] = {
            "build_commit": __version__,
            "cpu_info": cpu_name(),
            "backends": "CPU" if self.isa else "NumPy",
            "isa": self.isa,
            "model_filename": str(self.model.file.path),
            "model_type": describe(self.model),
            "model_size": self.model_size,
            "model_n_params": sum(info.n_weights for info in self.model.file.tensors.values()),
            "n_batch": self.n_batch,
            "n_threads": self.n_threads,
            "type_k": self.cache_types.k,
            "type_v": self.cache_types.v,
            "n_prompt": test.n_prompt,
            "n_gen": test.n_gen,
            "n_depth": test.n_depth,
            "n_seq": test.n_seq,
            "test_time": self.test_time,
            "avg_ns": round(fmean(self.samples_ns)),
            "stddev_ns": round(deviation(self.samples_ns)),
            "avg_ts": fmean(self.samples_ts),
            "stddev_ts": deviation(self.samples_ts),
            "samples_ns": self.samples_ns,
            "samples_ts": self.samples_ts,
            "bandwidth": cost.n_bytes / self.seconds,
            "bandwidth_share": bandwidth_share,
            "machine_bandwidth": limits.bandwidth,
            "ops": cost.ops / self.seconds,
            "ops_share": ops_share,
            "machine_ops": cost.ops / self.seconds / ops_share,
            "machine_products": limits.products,
            "machine_flops": limits.flops,
        }
        if self.profile:
            facts["profile"] = [kind.as_dict(limits) for kind in self.profile]
        return facts


def run_bench(
    model: Model,
    tests: Sequence[Test],
    n_threads: int | None = None,
    repeat: int = 5,
    n_batch: int = 512,
    profile: bool = False,
    report: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    cache_types: CacheTypes = DEFAULT_TYPES,
) -> Iterator[Result]:
    """Run each test `repeat` times and yield its result. `n_batch` is the most tokens of a step.

    A warm-up goes before each test; depth is filled before it, too. With `profile` a test is run once more, kernel by kernel.
    `progress` is called with a test and how many of its repetitions are done, first 0. Raises InputError, QwenError.
    """
    for test in tests:
        check(model, test)
    n_threads = n_threads or physical_cores()
    backend = make_backend("auto", model, n_threads, report, cache_types=cache_types)
    if profile and not isinstance(backend, CPUBackend):
        raise InputError(f"{model.file.path}: only the CPU backend has a profile, but it can't run this file")
    runner, costs = Runner(backend, n_batch), Costs(model, backend.cache_types)
    limits = measure_limits(n_threads, report)
    progress = progress or (lambda test, done: None)
    for test in tests:
        progress(test, 0)
        runner.warm_up(test)
        samples = list[int]()
        while len(samples) < repeat:
            samples.append(runner.time(test))
            progress(test, len(samples))
        cost = Cost()
        by_kind = runner.costs(test, costs)
        for part in by_kind.values():
            cost = cost.plus(part)
        kinds = runner.profile(test, by_kind) if profile else []
        limits = limits.best(measure_limits(n_threads))
        isa = backend.isa if isinstance(backend, CPUBackend) else None
        yield Result(test, model, isa, n_threads, n_batch, samples, cost, limits, kinds, backend.cache_types)


def deviation(samples: Sequence[float]) -> float:
    """The standard deviation of a sample, as llama-bench's: 0 for a single one."""
    return stdev(samples) if len(samples) > 1 else 0.0


def check(model: Model, test: Test) -> None:
    """Raises InputError for a test that the model can't run."""
    length, n_ctx = test.n_prompt + test.n_gen + test.n_depth, model.config.n_ctx
    if not test.n_tokens or min(test) < 0:
        raise InputError(
            f"nothing to measure with {test.n_prompt} tokens of a prompt, {test.n_gen} to generate, {test.n_seq} sequences"
        )
    if length > n_ctx:
        raise InputError(f"{test.name} needs a context of {length} tokens, more than the model's {n_ctx}")


class Runner:
    """Runs tests on a backend, with random tokens. What fills the depth is kept from test to test."""

    def __init__(self, backend: Backend, n_batch: int) -> None:
        self._backend, self._n_batch = backend, n_batch
        self._sequences: list[KVSequence] = []
        self._random = np.random.default_rng(0)

    def warm_up(self, test: Test) -> None:
        """The whole prompt, but only one token."""
        self._rewind(test)
        self._run(self._steps(test.n_prompt, min(test.n_gen, 1)))

    def time(self, test: Test) -> int:
        """Nanoseconds that the test takes."""
        self._rewind(test)
        steps = self._steps(test.n_prompt, test.n_gen)
        start = time.perf_counter_ns()
        self._run(steps)
        return time.perf_counter_ns() - start

    def costs(self, test: Test, costs: Costs) -> dict[str, Cost]:
        """What the test has to do, by kind of operation."""
        lengths, total = Counter({id(seq): test.n_depth for seq in self._sequences}), dict[str, Cost]()
        for step in self._steps(test.n_prompt, test.n_gen):
            for kind, cost in costs.of_step(
                [Extent(len(tokens), lengths[id(seq)]) for seq, tokens in step], len(step)
            ).items():
                total[kind] = total.get(kind, Cost()).plus(cost)
            lengths.update({id(seq): len(tokens) for seq, tokens in step})
        return total

    def profile(self, test: Test, costs: dict[str, Cost]) -> list[Kind]:
        """The test once more, kernel by kernel: those that take longest come first."""
        assert isinstance(self._backend, CPUBackend)
        self._rewind(test)
        seconds, calls = defaultdict[str, float](float), Counter[str]()
        for step in self._steps(test.n_prompt, test.n_gen):
            for spec, taken in self._backend.profile([LOGITS], batch_of(step)):
                seconds[kind_of(spec)] += taken
                calls[kind_of(spec)] += 1
        kinds = [Kind(name, calls[name], taken, costs.get(name, Cost())) for name, taken in seconds.items()]
        return sorted(kinds, key=lambda kind: -kind.seconds)

    def _rewind(self, test: Test) -> None:
        """Bring as many sequences as the test has to its depth."""
        while len(self._sequences) > test.n_seq:
            self._backend.cache.release(self._sequences.pop())
        while len(self._sequences) < test.n_seq:
            self._sequences.append(KVSequence())
        for seq in self._sequences:
            self._backend.cache.rewind(seq, test.n_depth)
            while missing := test.n_depth - seq.length:
                self._run([[(seq, self._tokens(min(missing, self._n_batch)))]])

    def _steps(self, n_prompt: int, n_gen: int) -> list[Step]:
        """The prompts of all sequences, one behind the other, then a token of each at a time."""
        steps: list[Step] = []
        room = 0
        for seq in self._sequences:
            todo = n_prompt
            while todo:
                if not room:
                    steps.append([])
                    room = self._n_batch
                n = min(todo, room)
                steps[-1].append((seq, self._tokens(n)))
                todo, room = todo - n, room - n
        return steps + [[(seq, self._tokens(1)) for seq in self._sequences] for _ in range(n_gen)]

    def _tokens(self, n: int) -> I32:
        return self._random.integers(0, self._backend.model.config.n_vocab, n, np.int32)

    def _run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self._backend.step(batch_of(step))


def batch_of(step: Step) -> Batch:
    return Batch([Segment(seq, tokens, 1) for seq, tokens in step])


def describe(model: Model) -> str:
    """What llama.cpp calls a model: architecture, size, mix of types."""
    c, get = model.config, model.file.metadata
    sizes = DELTA_SIZES if c.delta_nets else SIZES
    known = EXPERTS_SIZES.get((c.architecture, c.n_layer)) if c.experts else sizes.get((c.n_layer, c.n_embd))
    size = known or get.string("general.size_label", None) or "?B"
    mix = FILE_TYPES.get(get.integer("general.file_type", -1, -(2**31)), "unknown mix")
    if mix == "Q2_K":
        mix = "Q2_K_M"
    elif mix == "F32":
        mix = "all F32"
    for letter, word in ("_S", " - Small"), ("_M", " - Medium"), ("_L", " - Large"):
        if "_K" in mix:
            mix = mix.removesuffix(letter) + word if mix.endswith(letter) else mix
    return f"{c.architecture} {size} {mix}"
