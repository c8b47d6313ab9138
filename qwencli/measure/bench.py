"""How fast a model runs here: llama-bench's tests, each timed several times."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..backends.choose import make_backend, make_devices
from ..backends.cpu.backend import CPUBackend
from ..backends.cpu.team import physical_cores
from ..backends.kv_cache import DEFAULT_TYPES, CacheTypes, KVSequence
from ..backends.protocol import I32, LOGITS, Backend, Batch, Segment
from ..backends.scheduler.placement import place
from ..backends.scheduler.scheduler import Scheduler
from ..backends.scheduler.wishes import Wishes
from ..backends.threads import USUAL, Threads
from ..errors import InputError
from ..machine.peak import measure_peak
from ..network.model import Model
from .costs import Cost, Costs, Extent, kind_of
from .figures import Kind, Result, Test

Step = list[tuple[KVSequence, I32]]
"""For some sequences, the tokens that continue them."""


def run_bench(
    model: Model,
    tests: Sequence[Test],
    n_threads: int | None = None,
    repeat: int = 5,
    n_batch: int = 512,
    profile: bool = False,
    report: Callable[[str], None] | None = None,
    progress: Callable[[Test, int], None] | None = None,
    cache_types: CacheTypes = DEFAULT_TYPES,
    devices: Wishes | None = None,
    threads: Threads = USUAL,
) -> Iterator[Result]:
    """Run each test `repeat` times and yield its result. `n_batch` is the most tokens of a step.

    Each test is preceded by a warm-up, and its depth is filled before it too. With `profile`, a test is run once more, kernel by kernel.
    `progress` is called with a test and how many of its repetitions are done, first with 0. `devices` divides the model, and
    `threads` says how its threads run. Raises InputError, QwenError.
    """
    for test in tests:
        check(model, test)
    n_threads = n_threads or physical_cores()
    if devices:
        placement = place(model, devices)
        backend = make_devices(placement, model, n_threads, report, cache_types=cache_types, threads=threads)
    else:
        backend = make_backend("auto", model, n_threads, report, cache_types=cache_types, threads=threads)
    if profile and not isinstance(backend, (CPUBackend, Scheduler)):
        why = "isn't among the devices" if devices else "can't run this file"
        raise InputError(f"{model.file.path}: only the CPU backend has a profile, but it {why}")
    n_threads = threads_of(backend) or n_threads
    runner = Runner(backend, n_batch)
    costs = Costs(model, backend.cache_types)
    peak = measure_peak(n_threads, report)
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
        kinds: list[Kind] = runner.profile(test, by_kind) if profile else []
        peak = peak.best(measure_peak(n_threads))
        yield Result(
            test,
            model,
            isa_of(backend),
            n_threads,
            n_batch,
            samples,
            cost,
            peak,
            kinds,
            backend.cache_types,
            devices.text if devices else None,
        )


def on_cpu(backend: Backend) -> list[CPUBackend]:
    """The backend itself, or those of its devices, that have compiled kernels."""
    backends = [*backend.devices.values()] if isinstance(backend, Scheduler) else [backend]
    return [each for each in backends if isinstance(each, CPUBackend)]


def isa_of(backend: Backend) -> str | None:
    """What the kernels are compiled for; None if there are none."""
    return next((each.isa for each in on_cpu(backend)), None)


def threads_of(backend: Backend) -> int:
    """The most threads that work at once: devices take turns. 0 without compiled kernels."""
    return max((each.n_threads for each in on_cpu(backend)), default=0)


def check(model: Model, test: Test) -> None:
    """Raises InputError for a test that the model can't run."""
    length = test.n_prompt + test.n_gen + test.n_depth
    n_ctx = model.config.n_ctx
    if not test.n_tokens or min(test) < 0:
        raise InputError(
            f"nothing to measure with {test.n_prompt} prompt tokens, {test.n_gen} to generate, {test.n_seq} sequences"
        )
    if length > n_ctx:
        raise InputError(f"{test.name} needs a context of {length} tokens, more than the model's {n_ctx}")


class Runner:
    """Runs tests on a backend, with random tokens. The tokens that fill the depth are kept from test to test."""

    def __init__(self, backend: Backend, n_batch: int) -> None:
        self._backend, self._n_batch = backend, n_batch
        self._sequences: list[KVSequence] = []
        self._random = np.random.default_rng(0)

    def warm_up(self, test: Test) -> None:
        """The whole prompt, but only one token of the answer."""
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
        lengths = Counter({id(seq): test.n_depth for seq in self._sequences})
        total = dict[str, Cost]()
        for step in self._steps(test.n_prompt, test.n_gen):
            for kind, cost in costs.of_step(
                [Extent(len(tokens), lengths[id(seq)]) for seq, tokens in step], len(step)
            ).items():
                total[kind] = total.get(kind, Cost()).plus(cost)
            lengths.update({id(seq): len(tokens) for seq, tokens in step})
        return total

    def profile(self, test: Test, costs: dict[str, Cost]) -> list[Kind]:
        """The test once more, kernel by kernel; the kinds that take longest come first."""
        assert isinstance(self._backend, (CPUBackend, Scheduler))
        self._rewind(test)
        seconds = defaultdict[str, float](float)
        calls = Counter[str]()
        for step in self._steps(test.n_prompt, test.n_gen):
            for row in self._backend.profile([LOGITS], batch_of(step)):
                seconds[kind_of(row.kernel)] += row.seconds
                calls[kind_of(row.kernel)] += 1
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
        """The prompts of all sequences, one after the other, then one token of each at a time."""
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
