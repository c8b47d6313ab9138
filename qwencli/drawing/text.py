"""A picture as indented text, one line per node, for the terminal."""

from __future__ import annotations

from ..units import size
from .labels import bytes_of, heading, plain, summary, timing
from .picture import Box, Frame, Picture

MARKS = {"input": ">", "result": "<", "weight": "-", "outside": "^", "view": " ", "op": " "}
"""What kind of node a line is about."""


def as_text(picture: Picture) -> str:
    """Lines of a mark for the kind, name, op, type, shape, size, then device (if there are several), time (if measured), and what is read.

    Weights come before the node that reads them.
    """
    rows: list[tuple[int, Box | str]] = []
    collect(rows, 0, picture.parts)
    attached = picture.attached()
    sources: dict[Box, list[str]] = {}
    for edge in picture.edges:
        if edge.source not in attached:
            name = edge.source.name if edge.source.layer == edge.target.layer else edge.node.name
            sources.setdefault(edge.target, []).append(plain(name))
    cells = [
        (
            "  " * depth + f"{MARKS[row.kind]} {plain(row.name)}",
            row.op,
            " / ".join(row.types),
            str(list(row.shape)),
            bytes_of(row),
            *([plain(row.device, 20)] if len(picture.devices) > 1 else []),
            *([timing(row)] if picture.is_profiled else []),
            " ".join(sources.get(row, [])),
        )
        for depth, row in rows
        if isinstance(row, Box)
    ]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [f"{plain(picture.title)}: {summary(picture)}"]
    if len(picture.devices) > 1:
        lines += [
            f"{plain(d.name)}: {d.n_nodes} nodes, {size(d.weight_bytes)} of weights" for d in picture.devices
        ]
    following = iter(cells)
    for depth, row in rows:
        if isinstance(row, str):
            lines.append("  " * depth + row)
        else:
            lines.append(
                "  ".join(f"{cell:<{width}}" for cell, width in zip(next(following), widths)).rstrip()
            )
    return "\n".join(lines) + "\n"


def collect(rows: list[tuple[int, Box | str]], depth: int, parts: tuple[Box | Frame, ...]) -> None:
    """Add the boxes and the titles of frames, each with its depth."""
    for part in parts:
        if isinstance(part, Box):
            rows.append((depth, part))
        else:
            rows.append((depth, heading(part)))
            collect(rows, depth + 1, part.parts)
