"""The memory of this process, as Linux tells it. Other systems don't say; then functions return None."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
Bits = NDArray[np.bool_]
SELF = Path("/proc/self")
PRESENT = np.uint64(1 << 63)
"""The bit of an entry of pagemap for a page that is in memory (Documentation/admin-guide/mm/pagemap.rst)."""
GAP = 64
"""Places that are at most this many pages apart are looked at together."""


class Resident(NamedTuple):
    """Bytes of the process that are in memory: its own, and those of files that it has mapped, such as libraries."""

    own: int
    files: int


def resident(folder: Path = SELF) -> Resident | None:
    """What is in memory now. It takes some microseconds (proc(5), /proc/pid/statm)."""
    try:
        words = (folder / "statm").read_text().split()
        n_all, n_files = int(words[1]), int(words[2])
    except (OSError, ValueError, IndexError):
        return None
    return Resident((n_all - n_files) * mmap.PAGESIZE, n_files * mmap.PAGESIZE)


class Meter:
    """Measures by how many bytes the process's own memory grows while things are made that have no address, such as Python's objects."""

    def __init__(self) -> None:
        self.start = resident()
        self.grown: dict[str, int] = {}

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Count what is allocated meanwhile as `what`."""
        before = resident()
        try:
            yield
        finally:
            after = resident()
            if before and after:
                self.grown[what] = self.grown.get(what, 0) + max(0, after.own - before.own)


class Area(NamedTuple):
    """A range of addresses: bytes of it that are in memory, those of them that are no file's, and those that are in huge pages.

    `name` is the file, if it begins with a slash.
    """

    start: int
    end: int
    name: str
    resident: int
    own: int
    huge: int


def areas(folder: Path = SELF) -> list[Area] | None:
    """All addresses that the process uses, in order."""
    try:
        return parse_smaps((folder / "smaps").read_text("utf-8", "replace")) or None
    except OSError:
        return None


def parse_smaps(text: str) -> list[Area]:
    """The areas of a text like /proc/pid/smaps (proc(5)). Lines that aren't known are skipped."""
    found = []
    header = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,16}) \S{4} \S+ \S+ \S+ *(.*)")
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        if area := header.fullmatch(line):
            sizes = {}
            found.append((int(area[1], 16), int(area[2], 16), area[3], sizes))
        elif size := re.fullmatch(r"(\w+): +([0-9]{1,15}) kB", line):
            sizes[size[1]] = 1024 * int(size[2])
    return [
        Area(start, end, name, *(its.get(key, 0) for key in ("Rss", "Anonymous", "AnonHugePages")))
        for start, end, name, its in found
        if end < 2**63  # not [vsyscall], which is the kernel's
    ]


def in_memory(places: I64, folder: Path = SELF) -> I64 | None:
    """Of each place, an address and a number of bytes, the bytes that this process has in memory: int64 [n]."""
    try:
        with open(folder / "pagemap", "rb", buffering=0) as pagemap:

            def look(first: int, n: int) -> Bits:
                pagemap.seek(8 * first)
                entries = np.frombuffer(pagemap.read(8 * n), np.uint64)
                there: Bits = (entries & PRESENT) != 0
                return there

            return _counted(places, look)
    except (OSError, ValueError, OverflowError):
        return None


def in_page_cache(places: I64, path: Path) -> I64 | None:
    """Of each place in a mapped file the bytes that the system has in memory, for any process: int64 [n].

    Since 5.2 Linux tells this only to those who own the file or may write to it. To others it says that everything is in memory.
    """
    try:
        if os.stat(path).st_uid != os.geteuid() and not os.access(path, os.W_OK):
            return None
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (OSError, AttributeError, TypeError):  # Windows has neither
        return None
    if not SELF.exists():  # other systems' mincore is about something else
        return None

    def look(first: int, n: int) -> Bits:
        found = np.zeros(n, np.uint8)
        address, size = ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t(n * mmap.PAGESIZE)
        if mincore(address, size, found.ctypes.data_as(ctypes.c_void_p)):
            raise OSError(ctypes.get_errno(), "mincore")
        there: Bits = (found & 1) != 0
        return there

    try:
        return _counted(places, look, gap=0)
    except (OSError, ValueError):
        return None


def _counted(places: I64, look: Callable[[int, int], Bits], gap: int = GAP) -> I64:
    """Of each place the bytes on pages of which `look(first page, number of pages)` says that they are there.

    Raises ValueError if it doesn't say so of all.
    """
    found = np.zeros(len(places), np.int64)
    order = np.argsort(places[:, 0], kind="stable")
    starts = places[order, 0]
    ends = starts + places[order, 1]
    first, last = starts // mmap.PAGESIZE, -(-ends // mmap.PAGESIZE)
    reached = np.maximum.accumulate(last) if len(last) else last
    cuts = np.flatnonzero(first[1:] > reached[:-1] + gap) + 1
    for group in np.split(np.arange(len(order)), cuts):
        if not len(group):
            continue
        page, n = int(first[group[0]]), int(reached[group[-1]] - first[group[0]])
        there = look(page, n) if n else np.zeros(0, np.bool_)
        if len(there) != n:
            raise ValueError("not all pages are known")
        start = page * mmap.PAGESIZE
        found[order[group]] = _up_to(ends[group] - start, there) - _up_to(starts[group] - start, there)
    return found


def _up_to(offsets: I64, there: Bits) -> I64:
    """Of the bytes before each offset those on pages that are there: int64 [n]."""
    before = np.concatenate([[0], np.cumsum(there, dtype=np.int64)]) * mmap.PAGESIZE
    number, rest = np.divmod(offsets, mmap.PAGESIZE)
    total: I64 = before[number] + np.append(there, False)[number] * rest
    return total
