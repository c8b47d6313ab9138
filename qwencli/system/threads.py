"""Where the calling thread runs, and how urgently."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from contextlib import suppress

NORMAL = 0
NICENESS = {-1: 5, 1: -5, 2: -10, 3: -20}
"""What llama.cpp passes to setpriority(2) for each of its priorities."""
FIFO = {1: 40, 2: 80, 3: 90}
"""The real-time priorities that ggml gives its threads under SCHED_FIFO (sched(7))."""


def can_pin() -> bool:
    """Whether this system lets a thread choose its CPUs."""
    return hasattr(os, "sched_setaffinity")


def pin(cpus: Collection[int]) -> None:
    """Keep the calling thread on some CPUs, where the system can do that."""
    if can_pin():
        with suppress(OSError):  # they have been taken away meanwhile: then it runs where it may
            os.sched_setaffinity(0, cpus)


def set_priority(priority: int) -> None:
    """Give the calling thread a priority: low (-1), medium (1), high (2) or real-time (3). Raises OSError where that isn't possible.

    What it starts, threads and processes, has the usual priority again. A thread that is nicer than "low" stays so.
    """
    if not hasattr(os, "sched_setscheduler"):
        raise OSError(None, "this system doesn't let a thread choose its priority")
    thread = threading.get_native_id()
    nice = NICENESS[priority]
    if priority > NORMAL or os.getpriority(os.PRIO_PROCESS, thread) < nice:
        os.setpriority(os.PRIO_PROCESS, thread, nice)
    policy = os.SCHED_FIFO if priority in FIFO else os.SCHED_BATCH
    os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(FIFO.get(priority, 0)))


def why_no_priority(priority: int) -> str | None:
    """Why a thread of this process can't have that priority; None if it can. A thread of its own tries it."""
    failures: list[str] = []

    def attempt() -> None:
        try:
            set_priority(priority)
        except OSError as error:
            failures.append(error.strerror or str(error))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return failures[0] if failures else None
