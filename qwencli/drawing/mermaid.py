"""A picture as a Mermaid flowchart, which GitHub and others draw in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from . import colours
from .labels import crossing, details, heading, plain, summary, timing
from .picture import OUTSIDE, Box, Frame, Picture

FORMS = {"input": ("[/", "/]"), "weight": ("[(", ")]"), "result": ("[[", "]]"), "op": ("(", ")")}
"""What surrounds the text of a node; others are boxes with corners."""


def write_mermaid(picture: Picture) -> bytes:
    """The picture as a flowchart, UTF-8: weights are boxes of their own, frames are subgraphs."""
    return ("\n".join(lines(picture)) + "\n").encode("utf-8", "replace")


def lines(picture: Picture) -> Iterator[str]:
    ids = {box: f"n{i}" for i, box in enumerate(picture.boxes)}
    yield f"%% {plain(picture.title, 80)}: {summary(picture)}"
    yield "flowchart TD"
    yield from frame_lines(picture.parts, ids, "  ", "f")
    crossings = []
    for i, edge in enumerate(picture.edges):
        arrow = f"==>|{text(crossing(edge))}|" if edge.crosses else "-->"
        crossings += [str(i)] if edge.crosses else []
        yield f"  {ids[edge.source]} {arrow} {ids[edge.target]}"
    if crossings:
        yield f"  linkStyle {','.join(crossings)} stroke:{colours.BOLD[0]}"
    yield from style_lines(picture, ids)


def frame_lines(parts: Iterable[Box | Frame], ids: dict[Box, str], indent: str, name: str) -> Iterator[str]:
    for i, part in enumerate(parts):
        if isinstance(part, Box):
            before, after = FORMS.get(part.kind, ("[", "]"))
            time = timing(part)
            label = text(plain(part.name), f"{part.op} {details(part)}", *([time] if time else []))
            yield f"{indent}{ids[part]}{before}{label}{after}"
        else:
            yield f"{indent}subgraph {name}_{i}[{text(heading(part))}]"
            yield from frame_lines(part.parts, ids, indent + "  ", f"{name}_{i}")
            yield f"{indent}end"


def style_lines(picture: Picture, ids: dict[Box, str]) -> Iterator[str]:
    """A class for each pair of fill and outline that is used, and the boxes that have it."""
    used: dict[str, list[str]] = {}
    for box, name in ids.items():
        used.setdefault(style(box, picture), []).append(name)
    for i, (rule, names) in enumerate(used.items()):
        yield f"  classDef s{i} {rule}"
        yield f"  class {','.join(names)} s{i}"


def style(box: Box, picture: Picture) -> str:
    c = colours.of_box(box, picture)
    dashes = ",stroke-dasharray:4 3" if box.kind in ("view", OUTSIDE) else ""
    return f"fill:{c.fill},stroke:{c.line},color:{c.text}{dashes}"


def text(*parts: str) -> str:
    """Lines in quotes, with an entity for whatever Mermaid or HTML would take for a part of itself."""
    return (
        '"'
        + "<br/>".join(
            "".join(c if c.isalnum() or c in " .,_-/[]%" else f"#{ord(c)};" for c in part) for part in parts
        )
        + '"'
    )
