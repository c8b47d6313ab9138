"""How a CPU device's threads run: how many read prompts, on which CPUs, how urgently, and how long they stay awake without work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from ..errors import InputError
from ..system.host import Host
from ..system.threads import NORMAL, can_pin, why_no_priority
from ..units import ranges
from .devices import numa_nodes

DISTRIBUTE, ISOLATE, NUMACTL = "distribute", "isolate", "numactl"
NUMA = (DISTRIBUTE, ISOLATE, NUMACTL)
LOWEST_PRIORITY, HIGHEST_PRIORITY = -1, 3
MOST_POLL, USUAL_POLL = 100, 50


@dataclass(frozen=True)
class Threads:
    """What llama.cpp's options of the same names say about threads. The defaults change nothing.

    - `batch`: how many threads run steps of more than one token; by default as many as run the others.
    - `cpus`: the CPUs on which all threads stay (system/cpu_masks.py reads them). Those that the process may not use don't count.
    - `strict`: each thread has a CPU of its own among `cpus`, in the order of their numbers, and from the start again if they are too few.
      Without `cpus` it means nothing.
    - `priority`: -1 for low, 0 for the process's own, 1 to 3 for medium, high and real-time, for which a process needs permission.
    - `poll`: how long threads stay awake after a step, from 0, not at all, to 100. None is as long as 50.
    - `numa`: "distribute" puts threads on the NUMA nodes in turn, "isolate" puts all on the node that this process runs on, and "numactl"
      leaves them on the CPUs that the process may use. With a single node it means nothing.

    Raises InputError for values other than these.
    """

    batch: int | None = None
    cpus: frozenset[int] | None = None
    strict: bool = False
    priority: int = NORMAL
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

    @property
    def changed(self) -> list[str]:
        """The names of what isn't as by default."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]

    def chosen_cpus(self, host: Host | None = None) -> frozenset[int] | None:
        """The CPUs on which all threads stay; None if they run wherever the process may. Raises InputError if none is left."""
        host = host or Host()
        if self.cpus is None:
            return node_of_process(host) if self.numa == ISOLATE else None
        chosen = self.cpus & host.allowed()
        if not chosen:
            raise InputError(
                f"this process may not use CPU {ranges(self.cpus)[:40]}, but {ranges(host.allowed())[:40]}"
            )
        if self.numa == ISOLATE and (own := node_of_process(host)):
            chosen &= own
            if not chosen:
                raise InputError(
                    f"no CPU of {ranges(self.cpus)[:40]} is on the NUMA node that this process runs on,"
                    f" which has {ranges(own)[:40]}"
                )
        return chosen

    def places(
        self, n_threads: int, cpus: frozenset[int] | None, host: Host | None = None
    ) -> list[frozenset[int]] | None:
        """For each thread of a device the CPUs on which it stays; None if they run wherever the process may. `cpus` are the device's."""
        host = host or Host()
        nodes = [frozenset(host.allowed() if cpus is None else cpus)]
        if self.numa == DISTRIBUTE:
            nodes = [own for node in numa_nodes(host).values() if (own := node & nodes[0])]
        if cpus is None and len(nodes) == 1:
            return None
        places = [nodes[i % len(nodes)] for i in range(n_threads)]
        if not self.strict or (cpus is None and self.cpus is None):
            return places
        turns = [i // len(nodes) for i in range(n_threads)]
        return [frozenset({sorted(place)[turn % len(place)]}) for place, turn in zip(places, turns)]

    def warnings(self, n_threads: int | None, host: Host | None = None) -> Iterator[str]:
        """What cannot be had on this system, and what makes it slow, a line each. `n_threads` is how many run, None for as many as fit."""
        host = host or Host()
        if not can_pin() and (self.cpus is not None or self.numa):
            yield "threads run on any CPU: this system doesn't let a program choose"
        cpus = self.chosen_cpus(host)
        most = max(n_threads or 1, self.batch or 1)
        if cpus is not None and len(cpus) < most:
            yield f"{most} threads share CPU {ranges(cpus)[:40]}, which is slow: give fewer threads or more CPUs"
        if self.priority != NORMAL and (why := why_no_priority(self.priority)):
            need = ", it takes root or CAP_SYS_NICE" if self.priority > NORMAL else ""
            yield f"threads don't get the priority {self.priority}: {why}{need}"
        if self.numa and len(numa_nodes(host)) > 1 and host.moves_memory():
            yield "/proc/sys/kernel/numa_balancing is on, which makes models slower: `sysctl kernel.numa_balancing=0`"


USUAL = Threads()
"""As without any of llama.cpp's options."""


def node_of_process(host: Host) -> frozenset[int] | None:
    """The usable CPUs of the NUMA node that the calling thread runs on; None if there is only one node, or it isn't known."""
    nodes = [cpus for cpus in numa_nodes(host).values() if cpus]
    cpu = host.current_cpu()
    return next((cpus for cpus in nodes if cpu in cpus), None) if len(nodes) > 1 else None
