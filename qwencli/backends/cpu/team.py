"""The thread team that runs programs. Its threads live as long as the backend and synchronise through the words in kernels/runtime.py."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...kernels.arguments import CLAIM, LINE, STATUS, TEAM
from ...kernels.jit import Kernels
from ...system.host import Host
from ...system.threads import NORMAL, pin, set_priority
from .memory import Bytes, address_of, aligned_zeros

SPINS, PATIENCE = 200, 20_000
"""A waiting thread spins for SPINS turns before it yields the CPU. After PATIENCE turns without work it is parked."""
BUDGET, BUDGET_OF_MANY = 64, 8
"""The number of chunks after which the driving thread returns to Python, where signals are handled. A chunk takes microseconds with few
tokens, and up to some milliseconds with many."""
LAST_EPOCH = 2**31 - 2
"""The largest number of a step: the words in which chunks are counted have 32 bits for it, one of them the sign."""
RUNTIME = ("runtime:step", "runtime:worker", "runtime:publish")
Kernel = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
Call = Callable[[int, int, int], None]


def physical_cores(host: Host | None = None, cpus: Collection[int] | None = None) -> int:
    """Return the number of cores that this process may use, by its affinity and the quota of its cgroups, or of those that `cpus` are on.
    Hardware threads of a core count once."""
    host = host or Host()
    cores, quota = host.cores(host.allowed() if cpus is None else cpus), host.quota()
    return max(1, min(cores, int(quota[0]))) if quota else max(1, cores)


def _yield_address() -> int:
    if sys.platform == "win32":
        function = ctypes.WinDLL("kernel32").SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address
    return address


class Cancelled(Exception):
    """A step was ended by another thread."""


class Team:
    """`n_threads` threads with `scratch_bytes` of memory each; the caller's thread is one of them.

    The others have `priority`, and spin for `patience` turns after a step before they are parked. `places`, if given, has for each thread
    the CPUs on which it stays; whoever calls `run` sees to thread 0.
    """

    def __init__(
        self,
        kernels: Kernels,
        n_threads: int,
        scratch_bytes: int,
        places: Sequence[Collection[int]] | None = None,
        patience: int = PATIENCE,
        priority: int = NORMAL,
    ) -> None:
        self.n_threads = n_threads
        self._places = places
        self._priority = priority
        self._is_cancelled = False
        self._memory = aligned_zeros(TEAM.n_bytes + STATUS.n_bytes * n_threads)
        self._state = state_in(self._memory)
        self._statuses = self._memory[TEAM.n_bytes :].view(STATUS.dtype)
        self._scratch = [aligned_zeros(scratch_bytes) for _ in range(n_threads)]
        self._claims = CLAIM.zeros(0)
        self._shares = aligned_zeros(0)
        self._kernels = kernels
        self._statuses["thread"] = range(n_threads)
        self._state["yield_"] = _yield_address()
        self._state["spins"] = SPINS
        self._state["patience"] = patience
        self._beds = [threading.Lock() for _ in range(n_threads)]
        for bed in self._beds:
            bed.acquire()
        self._threads: list[threading.Thread] = []
        self._step: Call | None = None
        self.close: Callable[[], object] = lambda: None

    @property
    def arrays(self) -> list[Bytes]:
        """All memory of the team: its threads' own, and that through which they synchronise."""
        return [*self._scratch, self._memory, self._shares, self._claims.view(np.uint8)]

    def _address(self, field: str) -> int:
        return address_of(self._memory) + int(TEAM.offset(field))

    def run(self, rows: NDArray[Any], budget: int = BUDGET, n_threads: int | None = None) -> None:
        """Run a program's rows, an array of ROW, to the end. If it is interrupted (Ctrl-C), the team is ready for the next program.

        The first `n_threads` threads take part, by default all. Signals are handled every `budget` chunks. Only one thread at a time may
        call it. The rows have to live as long as the team: a thread that is late may look at them after their step.
        """
        step, state = self._step or self._start(), self._state
        if state["abort"]:  # an abort was interrupted
            self._abort()
        epoch = int(state["epoch"]) // 2 * 2 + 2
        if len(rows) > len(self._claims) or epoch > LAST_EPOCH:
            self._make_claims(max(len(rows), len(self._claims)))
            epoch = epoch if epoch <= LAST_EPOCH else 2
        self._publish(self._address("epoch"), epoch - 1, 0)  # odd: being prepared
        state["rows"] = address_of(rows)
        state["n_rows"] = len(rows)
        state["n_threads"] = n_threads = n_threads or self.n_threads
        state["resume"] = 0
        state["finished"] = 0
        try:
            self._publish(self._address("epoch"), epoch, 0)
            self._wake(n_threads)
            while not state["finished"]:
                if self._is_cancelled:
                    raise Cancelled
                step(address_of(self._memory), budget, address_of(self._scratch[0]))
        except BaseException:
            self._abort()
            raise

    @contextmanager
    def cancelled(self) -> Iterator[None]:
        """End the step that another thread runs, and any that it begins before this context is left: `run` raises Cancelled."""
        try:
            self._is_cancelled = True
            yield
        finally:
            self._is_cancelled = False

    def _make_claims(self, n_rows: int) -> None:
        """Make the words in which chunks are claimed and counted, for programs of up to `n_rows` rows."""
        self._quiesce()
        self._claims = CLAIM.zeros(0)  # if this is interrupted, they are made again
        share_bytes = -(-8 * n_rows // LINE) * LINE
        claims = aligned_zeros(CLAIM.n_bytes * n_rows).view(CLAIM.dtype)
        self._shares = aligned_zeros(share_bytes * self.n_threads)
        self._state["claims"] = address_of(claims)
        self._state["shares"] = address_of(self._shares)
        self._state["share_bytes"] = share_bytes
        self._claims = claims

    def _abort(self) -> None:
        """End the step. When this returns, no thread is in it any more, even if Ctrl-C is pressed again."""
        while True:
            try:
                self._publish(self._address("abort"), 1, 0)
                self._quiesce()
                # _wake may have been interrupted; a thread that isn't in its bed just passes it once
                for bed in self._beds[1:]:
                    if bed.locked():
                        bed.release()
                self._publish(self._address("abort"), 0, 0)
                return
            except KeyboardInterrupt:
                continue

    def _start(self) -> Callable[[int, int, int], None]:
        """Load the executor and start the threads. Returns what the driving thread calls. If interrupted, it can be called again."""
        step, self._worker, self._publish = (
            Kernel(address) for address in self._kernels.load(RUNTIME).values()
        )
        self.close = weakref.finalize(self, _end, self._memory, self._publish, self._beds, self._threads)
        for i in range(len(self._threads) + 1, self.n_threads):
            arguments = (
                self._worker,
                self._memory,
                address_of(self._statuses[i:]),
                self._scratch[i],
                self._beds[i],
                self._places[i] if self._places else None,
                self._priority,
            )
            thread = threading.Thread(target=_live, args=arguments, name=f"qwencli-{i}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._step = step
        return step

    def _wake(self, n_threads: int) -> None:
        parked = self._statuses["parked"]
        for i in range(1, n_threads):
            if parked[i]:
                parked[i] = 0
                if self._beds[i].locked():
                    self._beds[i].release()

    def _quiesce(self) -> None:
        """Wait until no thread is in a step, so that what threads read may be changed."""
        self._publish(self._address("epoch"), int(self._state["epoch"]) | 1, 0)
        steps = self._statuses["step"]
        while any(steps[i] for i in range(1, self.n_threads)):
            time.sleep(0)


def state_in(memory: Bytes) -> Any:
    """The TEAM at the start of a team's memory, whose fields can be read and set by name."""
    return memory[: TEAM.n_bytes].view(TEAM.dtype)[0]


def settle(cpus: Collection[int] | None, priority: int) -> None:
    """Put the calling thread where it belongs. What the system doesn't allow is left as it is: the user was told before."""
    if cpus:
        pin(cpus)
    if priority != NORMAL:
        with suppress(OSError):
            set_priority(priority)


def _live(
    worker: Call,
    memory: Bytes,
    status: int,
    scratch: Bytes,
    bed: threading.Lock,
    cpus: Collection[int] | None,
    priority: int,
) -> None:
    """The main function of a thread: it is in machine code while there are steps, and parked in its bed after a while without any."""
    settle(cpus, priority)
    state = state_in(memory)
    while not state["stop"]:
        worker(address_of(memory), status, address_of(scratch))
        if not state["stop"]:
            bed.acquire()


def _end(
    memory: Bytes, publish: Call, beds: Sequence[threading.Lock], threads: Sequence[threading.Thread]
) -> None:
    """End the threads, when the team is no longer used or at exit."""
    publish(address_of(memory) + int(TEAM.offset("stop")), 1, 0)
    for bed in beds:
        if bed.locked():
            bed.release()
    for thread in threads:
        if thread.is_alive() and thread is not threading.current_thread():
            thread.join(1.0)
