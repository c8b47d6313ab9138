"""How a CPU device's threads run: how many read prompts, on which CPUs, how urgently, and how long they stay awake without work."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError

DISTRIBUTE, ISOLATE, NUMACTL = "distribute", "isolate", "numactl"
NUMA = (DISTRIBUTE, ISOLATE, NUMACTL)
LOWEST_PRIORITY, HIGHEST_PRIORITY = -1, 3
MOST_POLL = 100


@dataclass(frozen=True)
class Threads:
    """What llama.cpp's options of the same names say about threads. The defaults change nothing.

    - `batch`: how many threads run steps of more than one token; by default as many as run the others.
    - `cpus`: the CPUs on which all threads stay, as a list such as "0-3,8".
    - `strict`: each thread has a CPU of its own among `cpus`, in the order of their numbers, and from the start again if they are too few.
      Without `cpus` it means nothing.
    - `priority`: -1 for low, 0 for the process's own, 1 to 3 for medium, high and real-time, for which a process needs permission.
    - `poll`: how long threads stay awake after a step, from 0, not at all, to 100. None is as long as 50.
    - `numa`: "distribute" puts threads on the NUMA nodes in turn, "isolate" puts all on the node that this process runs on, and "numactl"
      leaves them on the CPUs that the process may use. With a single node it means nothing.

    Raises InputError for values other than these.
    """

    batch: int | None = None
    cpus: str | None = None
    strict: bool = False
    priority: int = 0
    poll: int | None = None
    numa: str | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise InputError(f"{self.batch} threads for prompts, expected at least 1")
        if not LOWEST_PRIORITY <= self.priority <= HIGHEST_PRIORITY:
            raise InputError(
                f"the priority is {self.priority}, expected one from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}"
            )
        if self.poll is not None and not 0 <= self.poll <= MOST_POLL:
            raise InputError(f"poll is {self.poll}, expected a value from 0 to {MOST_POLL}")
        if self.numa not in (None, *NUMA):
            raise InputError(f"unknown NUMA strategy {self.numa[:40]!r}, expected {', '.join(NUMA)}")
