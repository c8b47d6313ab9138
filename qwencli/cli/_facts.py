"""Rows of facts about the machine, as several commands print them."""

from __future__ import annotations

from collections.abc import Mapping

from ._streams import printable


def row(name: str, *values: object) -> str:
    """A name and its values, without those that are None or empty."""
    return f"  {name:<13} {printable(', '.join(str(v) for v in values if v not in (None, '')))}"


def about_limits(limits: Mapping[str, float | None] | None) -> list[str]:
    """What was measured, without what wasn't."""
    scaled = {key: value / 1e9 for key, value in (limits or {}).items() if value is not None}
    figures = {
        "bandwidth": "{:.1f} GB/s from memory",
        "products": "{:.0f} GOP/s int8",
        "flops": "{:.0f} GFLOP/s float32",
    }
    shown = [form.format(scaled[key]) for key, form in figures.items() if key in scaled]
    return [row("measured", *shown)] if shown else []
