"""Buffers as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..units import size


def table(report: dict[str, Any]) -> list[str]:
    """Each buffer with its layers as a line, then the sum and the process. `report` is what `memory_report` returns."""
    from ..machine.buffers import folded

    rows = [["buffer", "device", "layers", "type", "size", "in memory"]]
    rows += [
        [row["buffer"], row["device"] or "", row["layers"] or "", row["type"] or "", *sizes(row)]
        for row in folded(report["buffers"])
    ]
    rows.append(["sum", "", "", "", "", known(report["sum"])])
    rows.append(["process", "", "", "", "", known(report["process"])])
    return [*aligned(rows, n_right=2), *about_page_cache(report["buffers"])]


def layer_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Each layer as a line, with what it has in memory of each buffer."""
    names = list(dict.fromkeys(row["buffer"] for row in rows if row["layer"] is not None))
    lines = [["layer", "device", *names]]
    layers = {(row["layer"], row["device"]) for row in rows if row["layer"] is not None}
    for layer, device in sorted(layers):
        own = {row["buffer"]: row for row in rows if (row["layer"], row["device"]) == (layer, device)}
        lines.append([str(layer), device, *(part(own[name]) if name in own else "" for name in names)])
    return aligned(lines, n_right=len(names)) if layers else []


def part(row: dict[str, Any]) -> str:
    """What of a buffer is in memory, and its size where that is not the same."""
    whole, there = sizes(row)
    return whole if whole == there else f"{there} of {whole}"


def sizes(row: dict[str, Any]) -> tuple[str, str]:
    return known(row["bytes"]), known(row["resident"])


def known(n_bytes: int | None) -> str:
    return "unknown" if n_bytes is None else size(n_bytes)


def about_page_cache(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What of the mapped file the system has in memory, whichever process has read it."""
    mapped = [row for row in rows if row["type"] == "mapped file"]
    if not mapped:
        return []
    whole = size(sum(row["bytes"] for row in mapped))
    cached = [row["cached"] for row in mapped]
    return [f"page cache: {'unknown' if None in cached else size(sum(cached))} of the mapped file's {whole}"]


def aligned(rows: Sequence[Sequence[str]], n_right: int) -> list[str]:
    """Rows of cells in columns, the last `n_right` of them to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    n_left = len(widths) - n_right
    return [
        "  ".join(
            cell.ljust(width) if i < n_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
