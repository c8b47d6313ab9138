"""What the system says about CPUs, memory and their limits. What it doesn't say, or says in an unknown way, is None or left out."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Collection, Iterator, Set
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

NO_LIMIT = 2**60
"""cgroup v1 writes "no limit" as the largest multiple of a page; no machine has that much memory."""
MOST_CPUS = 2**16
"""Linux can be built for up to 8192."""

LETTERS = {"Data": "d", "Instruction": "i"}
"""What the system calls the halves of a first-level cache, and their letters."""


class MemoryFiles(NamedTuple):
    """The names of a cgroup's files, and the prefix of those lines in its memory.stat that include the groups below it."""

    limit: str
    usage: str
    prefix: str


MEMORY_FILES = (
    MemoryFiles("memory.max", "memory.current", ""),
    MemoryFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
"""For cgroups v2 and v1."""


class NumaNode(NamedTuple):
    """A NUMA node: its number, its CPUs as the system writes them ("0-7,16-23"), and its memory in bytes, if known."""

    number: int
    cpus: str
    n_bytes: int | None


class Cache(NamedTuple):
    """A cache: "L1d", "L1i", "L2" or "L3", its size, and the CPUs that share it."""

    name: str
    n_bytes: int
    cpus: frozenset[int]


def read_cpus(text: str) -> frozenset[int]:
    """The CPUs of a list as Linux writes it, such as "0-3,8". Raises ValueError for other text, and for an empty range such as "3-0"."""
    found: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", part, re.ASCII)
        if not ends:
            raise ValueError(f"{part[:40]!r} is not a CPU or a range of CPUs")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if not first <= last < MOST_CPUS:
            raise ValueError(f"{part[:40]!r} is not a range of CPUs")
        found.update(range(first, last + 1))
    return frozenset(found)


class Host:
    """Reads the files that Linux has under `root`."""

    def __init__(self, root: str | Path = "/") -> None:
        self._root = Path(root)

    def _read(self, *parts: str) -> str | None:
        try:
            return self._root.joinpath(*parts).read_text("utf-8", "replace").strip()
        except (OSError, ValueError):
            return None

    def _number(self, *parts: str) -> int | None:
        text = self._read(*parts) or ""
        return int(text) if re.fullmatch(r"-?[0-9]{1,20}", text) else None

    def cpu_name(self) -> str:
        """What the CPU calls itself, or its architecture."""
        name = re.search(r"^model name\s*:\s*(\S.*)", self._read("proc/cpuinfo") or "", re.M)
        return name[1] if name else platform.processor() or platform.machine() or "unknown CPU"

    def virtual(self) -> bool | None:
        """Whether this is a virtual machine; None if unknown."""
        flags = re.search(r"^(?:flags|Features)\s*:(.*)", self._read("proc/cpuinfo") or "", re.M)
        return (
            ("hypervisor" in flags[1].split() or self._read("sys/hypervisor/type") is not None)
            if flags
            else None
        )

    def steal(self) -> float | None:
        """The share of CPU time that other virtual machines have taken since the system was started (proc(5), /proc/stat)."""
        times = re.match(r"cpu +([0-9 ]+)", self._read("proc/stat") or "")
        values = [int(v) for v in times[1].split()[:8]] if times else []
        return values[7] / sum(values) if len(values) == 8 and any(values) else None

    def allowed(self) -> frozenset[int]:
        """The CPUs (hardware threads) that the calling thread may use by its affinity; those that are offline are not among them."""
        if hasattr(os, "sched_getaffinity"):
            return frozenset(os.sched_getaffinity(0))
        return frozenset(range(os.cpu_count() or 1))  # macOS and Windows

    def current_cpu(self) -> int | None:
        """The CPU on which the calling thread was last; None if unknown (proc(5), /proc/pid/stat: `processor` is its field 39)."""
        text = self._read("proc/thread-self/stat") or ""
        fields = text.rpartition(")")[2].split()  # after the name, field 2, which may have spaces
        return int(fields[36]) if len(fields) > 36 and fields[36].isdecimal() else None

    def moves_memory(self) -> bool:
        """Whether the system moves memory between NUMA nodes by itself (Documentation/admin-guide/sysctl/kernel.rst, numa_balancing)."""
        return bool(self._number("proc/sys/kernel/numa_balancing"))

    def cores(self, cpus: Collection[int]) -> int:
        """The number of physical cores of these CPUs; the hardware threads of one core count once."""

        def core(cpu: int) -> str:
            return self._read("sys/devices/system/cpu", f"cpu{cpu}", "topology/thread_siblings_list") or str(
                cpu
            )

        return len({core(cpu) for cpu in cpus})

    def quota(self) -> tuple[float, str] | None:
        """How many CPUs' worth of time a cgroup allows this process, and which file says so; None if there is no limit."""
        found = []
        for folder in self._cgroups("cpu"):
            name = "cpu.max"
            limits = (self._read(folder, "cpu.max") or "").split()  # v2: "max 100000" or "150000 100000"
            if len(limits) != 2:
                name = "cpu.cfs_quota_us"
                files = (f"cpu.cfs_{which}_us" for which in ("quota", "period"))  # v1
                limits = [self._read(folder, file) or "" for file in files]
            if all(re.fullmatch("[0-9]{1,15}", limit) for limit in limits) and int(limits[1]):
                found.append((int(limits[0]) / int(limits[1]), f"/{folder}/{name}"))
        return min(found, default=None)

    def memory_limit(self) -> tuple[int, str] | None:
        """How many bytes a cgroup allows this process, and which file says so; None if there is no limit."""
        return min(
            ((limit, f"/{folder}/{files.limit}") for limit, folder, files in self._memory_limits()),
            default=None,
        )

    def free(self) -> int | None:
        """The bytes that this process can still allocate: the least of what the system and each of its cgroups have left; None if unknown.

        This includes pages of files that are cached in memory, also those of a mapped model: the system drops them when it needs memory.
        """
        available = self.memory()[1]
        left = [] if available is None else [available]
        for limit, folder, files in self._memory_limits():
            cached = re.findall(
                rf"^{files.prefix}(?:in)?active_file ([0-9]{{1,18}})$",
                self._read(folder, "memory.stat") or "",
                re.M,
            )
            left.append(limit - max(0, (self._number(folder, files.usage) or 0) - sum(map(int, cached))))
        return max(0, min(left)) if left else None

    def _memory_limits(self) -> Iterator[tuple[int, str, MemoryFiles]]:
        for folder in self._cgroups("memory"):
            for files in MEMORY_FILES:
                limit = self._number(folder, files.limit)
                if limit is not None and 0 <= limit < NO_LIMIT:
                    yield limit, folder, files

    def _cgroups(self, controller: str) -> list[str]:
        """Folders of the process's groups and of those above, whose limits apply as well (cgroups(7), /proc/self/cgroup)."""
        folders = []
        for line in (self._read("proc/self/cgroup") or "0::/").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0" or controller in controllers.split(","):
                parts = [part for part in path.split("/") if part not in ("", "..")]
                # The folder is "cpu,cpuacct", usually with a link to it from "cpu".
                for name in {controllers, controller} if controllers else {""}:
                    base = ["sys/fs/cgroup", *([name] if name else [])]
                    folders += ["/".join([*base, *parts[:n]]) for n in range(len(parts), -1, -1)]
        return folders

    def memory(self) -> tuple[int | None, int | None]:
        """Bytes of memory in all, and of memory that is free or can be freed at once; None for what is unknown."""
        values = dict(re.findall(r"^(\w+):\s*([0-9]{1,18}) kB$", self._read("proc/meminfo") or "", re.M))
        total, available = (
            int(values[name]) * 1024 if name in values else None for name in ("MemTotal", "MemAvailable")
        )
        if total is None:
            with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
                total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, available

    def huge_pages(self) -> str | None:
        """When the system uses huge pages by itself: "always", "madvise" or "never"; None if unknown."""
        chosen = re.search(r"\[(\w+)\]", self._read("sys/kernel/mm/transparent_hugepage/enabled") or "")
        return chosen[1] if chosen else None

    def nodes(self) -> list[NumaNode]:
        """The NUMA nodes that have CPUs."""
        found = []
        for folder in self._root.joinpath("sys/devices/system/node").glob("node[0-9]*"):
            number = folder.name.removeprefix("node")
            cpus = self._read("sys/devices/system/node", folder.name, "cpulist")
            if cpus and number.isdecimal():
                memory = re.search(
                    r"MemTotal:\s*([0-9]+) kB",
                    self._read("sys/devices/system/node", folder.name, "meminfo") or "",
                )
                found.append(NumaNode(int(number), cpus, int(memory[1]) * 1024 if memory else None))
        return sorted(found)

    def node_free(self, number: int) -> int | None:
        """The bytes of a NUMA node that are free, or can be freed at once since they are a file's; None if unknown."""
        text = self._read("sys/devices/system/node", f"node{number}", "meminfo") or ""
        values = re.findall(r"\b(MemFree|Active\(file\)|Inactive\(file\)):\s*([0-9]{1,18}) kB$", text, re.M)
        return sum(int(n) * 1024 for _, n in values) if "MemFree" in dict(values) else None

    def caches(self, cpus: Set[int]) -> list[Cache]:
        """The caches of these CPUs, each once, by name; those that are shared with other CPUs are among them."""
        found = set()
        seen = set()
        for cpu in sorted(cpus):
            for folder in sorted(
                self._root.joinpath(f"sys/devices/system/cpu/cpu{cpu}/cache").glob("index[0-9]*")
            ):
                shared = self._read(str(folder), "shared_cpu_list") or ""
                if (folder.name, shared) in seen:
                    continue
                seen.add((folder.name, shared))
                level, kind = self._number(str(folder), "level"), self._read(str(folder), "type") or ""
                n_bytes = re.fullmatch("([0-9]{1,12})K", self._read(str(folder), "size") or "")
                with suppress(ValueError):
                    if level is not None and n_bytes:
                        name = f"L{level}{LETTERS.get(kind, '')}"
                        found.add(Cache(name, int(n_bytes[1]) * 1024, read_cpus(shared)))
        return sorted(found, key=lambda cache: (cache.name, min(cache.cpus), cache.n_bytes))
