"""A picture for graphviz, as text and as the PNG that its program `dot` makes of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator

from ..errors import QwenError
from ..units import size
from . import colours
from .labels import crossing, details, heading, plain, summary, timing
from .picture import OUTSIDE, Box, Frame, Picture

FORMS = {
    "input": "shape=parallelogram margin=0.02",
    "weight": "shape=cylinder",
    "result": "shape=box peripheries=2",
    "view": 'shape=box style="filled,dashed"',
    OUTSIDE: 'shape=box style="filled,dashed"',
    "op": 'shape=box style="filled,rounded"',
}


def write_dot(picture: Picture) -> bytes:
    """The picture in graphviz's language, UTF-8: weights are boxes of their own, frames are clusters."""
    return ("\n".join(lines(picture)) + "\n").encode("utf-8", "replace")


def find_program() -> str:
    """Graphviz's program. Raises QwenError if it isn't installed."""
    if program := shutil.which("dot"):
        return program
    raise QwenError(
        "a .png needs graphviz's program `dot`, which is not installed: install graphviz, or write a .svg"
    )


def write_png(picture: Picture) -> bytes:
    """The picture as graphviz draws it. Raises QwenError if its program isn't installed, or fails."""
    program = find_program()
    done = subprocess.run([program, "-Tpng"], input=write_dot(picture), capture_output=True, check=False)
    if done.returncode or not done.stdout:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines() or [
            f"exit code {done.returncode}"
        ]
        raise QwenError(f"{program} can't draw the graph: {plain(reason[0], 200)}")
    return done.stdout


def lines(picture: Picture) -> Iterator[str]:
    ids = {box: f"n{i}" for i, box in enumerate(picture.boxes)}
    text, rest = colours.PAPER[0].text, colours.DIM[0]
    yield "digraph qwencli {"
    yield f"  label={quoted(plain(picture.title, 80), summary(picture))}"
    yield f'  labelloc=t labeljust=l fontname="Helvetica" fontcolor="{text}" bgcolor="{colours.PAPER[0].fill}" ranksep=0.25 nodesep=0.2'
    yield '  node [fontname="Helvetica" fontsize=10 style=filled height=0.3 margin="0.1,0.05"]'
    yield f'  edge [color="{rest}" arrowsize=0.6 fontname="Helvetica" fontsize=10 fontcolor="{colours.BOLD[0]}"]'
    yield from legend(picture)
    yield from frame_lines(picture, picture.parts, ids, "  ", "c")
    for edge in picture.edges:
        bold = (
            f' [penwidth=3 color="{colours.BOLD[0]}" label={quoted(crossing(edge))}]' if edge.crosses else ""
        )
        yield f"  {ids[edge.source]} -> {ids[edge.target]}{bold}"
    yield "}"


def legend(picture: Picture) -> Iterator[str]:
    """A cluster with a box for each device."""
    yield f'  subgraph cluster_devices {{ label=devices style=rounded color="{colours.PAPER[0].line}"'
    for i, device in enumerate(picture.devices):
        c = colours.DEVICES[i % len(colours.DEVICES)][0]
        label = quoted(plain(device.name), f"{size(device.weight_bytes)} of weights")
        yield f'    d{i} [shape=box style="filled,rounded" label={label} fillcolor="{c.fill}" color="{c.line}" fontcolor="{c.text}"]'
    yield "  }"


def frame_lines(
    picture: Picture, parts: Iterable[Box | Frame], ids: dict[Box, str], indent: str, name: str
) -> Iterator[str]:
    for i, part in enumerate(parts):
        if isinstance(part, Box):
            yield f"{indent}{ids[part]} [{attributes(part, picture)}]"
        else:
            inner = f"{name}_{i}"
            yield f"{indent}subgraph cluster_{inner} {{"
            fill, line = colours.FRAME[0], colours.PAPER[0].line
            yield f'{indent}  label={quoted(heading(part))} style="filled,rounded" fillcolor="{fill}" color="{line}" labeljust=l'
            yield from frame_lines(picture, part.parts, ids, indent + "  ", inner)
            yield f"{indent}}}"


def attributes(box: Box, picture: Picture) -> str:
    c = colours.of_box(box, picture)
    time = timing(box)
    label = quoted(plain(box.name), f"{box.op} {details(box)}", *([time] if time else []))
    return f'{FORMS[box.kind]} label={label} fillcolor="{c.fill}" color="{c.line}" fontcolor="{c.text}"'


def quoted(*texts: str) -> str:
    """Lines as a string of graphviz's language: it knows backslashes as the beginning of an escape, and quotes as the end."""
    return '"' + r"\n".join(text.replace("\\", r"\\").replace('"', r"\"") for text in texts) + '"'
