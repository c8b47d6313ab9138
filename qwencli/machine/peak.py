"""The most that this machine can do, measured by a team of threads in half a second: reading memory, and multiplying."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
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


def measure_peak(n_threads: int | None = None, report: Report | None = None) -> Peak:
    """The best of several loops on `n_threads`, by default one per physical core. `report` is told what is compiled. Raises QwenError."""
    try:
        kernels = kernels_of(choose().name)
        kernels.report = report
        addresses = kernels.load([*RUNTIME, *SPECS])
    except ISAError as error:
        raise InputError(str(error)) from None
    except KernelError as error:
        raise QwenError(f"{error} (please report this)") from error
    loops = Loops(Team(kernels, n_threads or physical_cores(), 64), addresses)
    try:
        return Peak(loops.bandwidth(), loops.arithmetic("dot4"), loops.arithmetic("fma"))
    finally:
        loops.team.close()


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
    caches = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        with suppress(OSError, ValueError):
            level, shared = ((index / name).read_text().strip() for name in ("level", "shared_cpu_list"))
            caches[level, shared] = int((index / "size").read_text().strip().removesuffix("K")) * 1024
    wanted = max(LEAST_BUFFER, 1 << (2 * sum(caches.values()) - 1).bit_length() if caches else 0)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return LEAST_BUFFER
    while wanted > LEAST_BUFFER and wanted > memory // SHARE_OF_MEMORY:
        wanted //= 2
    return wanted
