"""Which buffer holds what in this process, and how much of it is in memory now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..backends.buffers import HUGE, I64, MAPPED, MEMORY, Buffer, buffer_of, grown
from ..gguf.file import GGUFFile
from ..llm import BACKEND, GRAPH, LLM, TOKENIZER
from ..system import memory
from ..system.memory import Area, Bits, Meter
from ..units import ranges

LIBRARIES = "Python and libraries"
FILE = "rest of the file"


def memory_report(llm: LLM) -> dict[str, Any]:
    """All buffers and their sum, as `qwencli info --buffers --json` prints them; what the system doesn't say is None.

    "buffers" has for each its size, `bytes`; what of it this process has in memory, `resident`; and, for the mapped file, what of it the
    system has in memory, `cached`. "sum" adds up what is resident, and "process" is what the system says of the process as a whole.
    """
    file, areas, now = llm.file, memory.areas(), memory.resident()
    rows = [
        row for row in rows_of([*llm.engine.backend.buffers(), rest_of(file)], file, areas) if row["bytes"]
    ]
    for what in GRAPH, TOKENIZER, BACKEND:
        rows += rows_of(grown(what, None, llm.meter.grown), file, areas)
    its = libraries(llm.meter, areas, file)
    rows.append(_row(LIBRARIES, None, None, None, its, its))
    sizes = [row["resident"] for row in rows]
    return {
        "buffers": rows,
        "sum": sum(sizes) if None not in sizes else None,
        "process": sum(area.resident for area in areas) if areas else now and now.own + now.files,
    }


def rows_of(buffers: Sequence[Buffer], file: GGUFFile, areas: list[Area] | None) -> list[dict[str, Any]]:
    """A row for each buffer."""
    if not buffers:
        return []
    bounds = np.cumsum([0, *(len(buffer.places) for buffer in buffers)])
    places = np.concatenate([buffer.places for buffer in buffers])
    resident = memory.in_memory(places)
    mapped = in_files(places, file)
    cached = cached_bytes(places, mapped, file)
    rows = []
    for buffer, start, end in zip(buffers, bounds, bounds[1:]):
        kind = MAPPED if mapped[start:end].any() else kind_of(places[start:end], areas)
        there = buffer.measured
        if there is None and resident is not None:
            there = int(resident[start:end].sum())
        known = int(cached[start:end].sum()) if cached is not None and kind == MAPPED else None
        rows.append(_row(buffer.what, buffer.device, buffer.layer, kind, buffer.n_bytes, there, known))
    return rows


def rest_of(file: GGUFFile) -> Buffer:
    """What the file has besides its tensors: metadata, the vocabulary, and gaps. (Its parts are mapped or read as a whole.)"""
    places = []
    for number, buffer in enumerate(file.buffers):
        data = np.frombuffer(buffer, np.uint8)
        end = 0
        tensors = sorted((t for t in file.tensors.values() if t.part == number), key=lambda t: t.offset)
        for start, next_end in [*((t.offset, t.offset + t.n_bytes) for t in tensors), (len(data), 0)]:
            places.append(data[end:start])
            end = next_end
    return buffer_of(FILE, None, [data for data in places if len(data)])


def in_files(places: I64, file: GGUFFile) -> Bits:
    """Which places are in the mapped file: none if it was read instead."""
    found = np.zeros(len(places), np.bool_)
    if file.mapped:
        for buffer in file.buffers:
            start = int(np.frombuffer(buffer, np.uint8).ctypes.data)
            found |= (places[:, 0] >= start) & (places[:, 0] < start + len(buffer))
    return found


def cached_bytes(places: I64, mapped: Bits, file: GGUFFile) -> I64 | None:
    """Of each place the bytes that the page cache has; None if the system doesn't say, or nothing is mapped."""
    found = np.zeros(len(places), np.int64)
    counts = memory.in_page_cache(places[mapped], Path(file.path)) if mapped.any() else None
    if counts is None:
        return None
    found[mapped] = counts
    return found


def kind_of(places: I64, areas: list[Area] | None) -> str:
    """The type of the process's own memory: HUGE if there are huge pages in one of the areas where it is."""
    starts = np.array([area.start for area in areas or []], np.int64)
    huge = np.array([area.huge > 0 for area in areas or []], np.bool_)
    if not len(starts):
        return MEMORY
    return HUGE if huge[np.maximum(np.searchsorted(starts, places[:, 0], "right") - 1, 0)].any() else MEMORY


def libraries(meter: Meter, areas: list[Area] | None, file: GGUFFile) -> int | None:
    """What was in memory before the file was opened, and what has been loaded of libraries since."""
    if meter.start is None or areas is None:
        return None
    places = np.array([[area.start, 0] for area in areas], np.int64)
    others = [area for area, of_file in zip(areas, in_files(places, file)) if not of_file]
    return meter.start.own + sum(area.resident - area.own for area in others)


def folded(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the same buffer, device and type as one; `layers` are their layers, such as "0-27", or None."""
    groups: dict[tuple[object, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["buffer"], row["device"], row["type"], row["layer"] is None), []).append(row)
    result = []
    for group in groups.values():
        layers = {row["layer"] for row in group if row["layer"] is not None}
        sums = {key: _sum(row[key] for row in group) for key in ("bytes", "resident", "cached")}
        first = {key: group[0][key] for key in ("buffer", "device", "type")}
        result.append(first | {"layers": ranges(layers) or None} | sums)
    return result


def _sum(values: Any) -> int | None:
    known = list(values)
    return None if None in known else sum(known)


def _row(
    what: str,
    device: str | None,
    layer: int | None,
    kind: str | None,
    n_bytes: int | None,
    resident: int | None,
    cached: int | None = None,
) -> dict[str, Any]:
    return {
        "buffer": what,
        "device": device,
        "layer": layer,
        "type": kind,
        "bytes": n_bytes,
        "resident": resident,
        "cached": cached,
    }
