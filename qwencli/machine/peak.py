"""The most that this machine can do, measured by a team of threads in half a second: reading memory, and multiplying."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.cpu.backend import kernels_of
from ..backends.cpu.memory import address_of, aligned_zeros
from ..backends.cpu.team import RUNTIME, Team, physical_cores
from ..errors import InputError, QwenError
from ..kernels import layout
from ..kernels.arguments import FILL, MULTIPLY, READ, ROW, Arguments
from ..kernels.isa import ISAError, choose
from ..kernels.jit import KernelError, Report
from ..system.host import Host
from ..units import ranges

READS = [(1, 0, 2**17), (1, 0, 2**21), (4, 0, 2**21), (4, 2048, 2**21), (4, 0, 2**24)]
"""Streams in which a chunk is read, bytes prefetched ahead, bytes per chunk: which is fastest differs from CPU to CPU."""
STEPS: dict[str, int] = {"dot4": 2 * 4 * layout.LANES, "fma": 2 * layout.LANES}
"""Operations that it takes to multiply two registers and add the products."""
TILES = [(4, 4), (2, 2)]
"""Rows and columns of registers that are multiplied with each other: the more the better, if the CPU has that many."""
SPECS = (
    "peak:fill",
    *(f"peak:read:{n}" for n in sorted({n for n, *_ in READS})),
    *(f"peak:multiply:{step}:{rows}:{columns}" for step in STEPS for rows, columns in TILES),
)
"""The kernels that measure_peak needs besides the team's own."""
LEAST_BUFFER, SHARE_OF_MEMORY = 2**28, 8
FACTOR_BYTES, TURNS = 4096, 4096
REPEATS = 6
SECONDS = 0.005
"""The shortest run of arithmetic that is timed."""
UNINTERRUPTED = 2**20  # chunks: a run takes milliseconds


@dataclass(frozen=True)
class Peak:
    """Bytes per second read from memory; operations per second on int8 factors with int32 sums, and on float32.

    A product and its addition are two operations.
    """

    bandwidth: float
    products: float
    flops: float

    def best(self, other: Peak) -> Peak:
        """The best of both: others on the same machine make a measurement smaller, nothing makes it larger."""
        return Peak(
            max(self.bandwidth, other.bandwidth),
            max(self.products, other.products),
            max(self.flops, other.flops),
        )


def measure_peak(
    n_threads: int | None = None, report: Report | None = None, cpus: Set[int] | None = None
) -> Peak:
    """The best of several loops on `n_threads`, by default one per physical core: of all that the process may use, or of `cpus`.

    On Linux the threads stay on `cpus`, and the memory that they read is that of their NUMA node. `report` is told what is compiled. Raises
    QwenError.
    """
    try:
        kernels = kernels_of(choose().name)
        kernels.report = report
        addresses = kernels.load([*RUNTIME, *SPECS])
    except ISAError as error:
        raise InputError(str(error)) from None
    except KernelError as error:
        raise QwenError(f"{error} (please report this)") from error

    def measure() -> Peak:
        loops = Loops(Team(kernels, n_threads or physical_cores(cpus=cpus), 64), addresses)
        try:
            return Peak(loops.bandwidth(), loops.arithmetic("dot4"), loops.arithmetic("fma"))
        finally:
            loops.team.close()

    return measure() if cpus is None else on_cpus(cpus, measure)


def on_cpus(cpus: Set[int], measure: Callable[[], Peak]) -> Peak:
    """What `measure` returns on a thread that stays on `cpus`, with those that it starts. Only Linux lets a thread stay somewhere.

    Raises QwenError if the process may not use these CPUs.
    """

    def run() -> Peak:
        try:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, cpus)  # of this thread alone
        except OSError as error:
            raise QwenError(f"no thread may stay on the CPUs {ranges(cpus)}: {error.strerror}") from None
        return measure()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def measure_numpy() -> Peak:
    """What NumPy reaches with float32, which is all that it multiplies: a matrix times a vector and a matrix, as a backend uses it."""
    random = np.random.default_rng(0)
    big = np.ones((LEAST_BUFFER // 4096, 1024), np.float32)
    vector = random.random(1024, np.float32)
    square = random.random((1024, 1024), np.float32)

    def fastest(product: Callable[[], object]) -> float:
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            product()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    flops = 2 * 1024**3 / fastest(lambda: square @ square)
    return Peak(big.nbytes / fastest(lambda: big @ vector), 0.0, flops)


class Loops:
    """The loops of kernels/peak.py."""

    def __init__(self, team: Team, addresses: dict[str, int]) -> None:
        self.team = team
        self._addresses = addresses
        self._keep: list[NDArray[Any]] = []  # a team may still look at rows after their step
        self._factors = aligned_zeros(FACTOR_BYTES)
        # As float32 from 0.5 to 1, as bytes of any value.
        self._factors.view(np.float32)[:] = np.random.default_rng(0).uniform(0.5, 1, FACTOR_BYTES // 4)

    def seconds(self, kernel: Arguments, *variant: object, amount: int, unit: int, **args: int) -> float:
        """How long `amount` takes in chunks of `unit`."""
        arguments = kernel.pack(amount=amount, unit=unit, **args)
        row = ROW.pack(
            kernel=self._addresses[kernel.spec(*variant)],
            args=address_of(arguments),
            count=address_of(arguments) + kernel.offset("amount"),
            divisor=unit,
            first=0,
            last=1,
            data=0,
            chunk_bytes=0,
            following=0,
        )
        self._keep += [arguments, row]
        start = time.perf_counter()
        self.team.run(row, UNINTERRUPTED)
        return time.perf_counter() - start

    def bandwidth(self) -> float:
        """Bytes per second, all threads together, from a buffer that is too large for the caches."""
        n_bytes = buffer_bytes()
        memory = np.empty(n_bytes, np.uint8)
        address = address_of(memory)
        self.seconds(FILL, amount=n_bytes, unit=READS[0][2], address=address)
        fastest = min(
            self.seconds(READ, n_streams, amount=n_bytes, unit=chunk, address=address, ahead=ahead)
            for _ in range(REPEATS)
            for n_streams, ahead, chunk in READS
        )
        return n_bytes / fastest

    def arithmetic(self, step: str) -> float:
        """Operations per second, all threads together."""
        return max(self._rate(step, *tile) * tile[0] * tile[1] * STEPS[step] for tile in TILES)

    def _rate(self, *variant: object) -> float:
        """Turns per second, timed over enough of them."""

        def seconds() -> float:
            address = address_of(self._factors)
            return self.seconds(MULTIPLY, *variant, amount=turns, unit=TURNS, address=address)

        turns = TURNS * self.team.n_threads
        while (taken := seconds()) < SECONDS:
            turns *= 2 if taken > SECONDS / 4 else 4
        return turns / min(seconds() for _ in range(REPEATS))


def buffer_bytes() -> int:
    """Bytes to read: twice what all caches hold, a power of two, but not more than a part of the memory."""
    host = Host()
    caches = sum(cache.n_bytes for cache in host.caches(host.allowed()) if not cache.name.endswith("i"))
    wanted = max(LEAST_BUFFER, 1 << (2 * caches - 1).bit_length() if caches else 0)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return LEAST_BUFFER
    while wanted > LEAST_BUFFER and wanted > memory // SHARE_OF_MEMORY:
        wanted //= 2
    return wanted
