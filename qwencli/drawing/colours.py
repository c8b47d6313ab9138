"""Colours that all formats share: fill, line and text of each kind of node, each device, and each step of heat. Light, then dark."""

from __future__ import annotations

from typing import NamedTuple

from .labels import heat, is_heated
from .picture import OUTSIDE, Box, Picture


class Colours(NamedTuple):
    """Of a box, as #rrggbb."""

    fill: str
    line: str
    text: str


PAPER = Colours("#ffffff", "#d5dae1", "#1d2128"), Colours("#14171c", "#3a414c", "#e6e9ee")
"""The background, lines of frames, and texts on it."""
FRAME = "#f6f8fa", "#1b1f26"
DIM = "#636b78", "#98a1b0"
"""Texts and edges that matter less."""
BOLD = "#c2261c", "#ff7b6b"
"""Edges that cross devices."""

KINDS = {
    "input": (Colours("#e0f3e4", "#3d9150", "#143d1f"), Colours("#16301d", "#55b06a", "#d3f0da")),
    "weight": (Colours("#fff4d2", "#c3a040", "#4a3b0b"), Colours("#352c12", "#a88b3c", "#f3e3b1")),
    "result": (Colours("#ecdff7", "#8350b4", "#341a4e"), Colours("#322042", "#ab7cd8", "#eadbf8")),
}
"""Boxes of other kinds have the colours of their device."""

DEVICES = [
    (Colours("#e3edfb", "#3f78c9", "#122b50"), Colours("#17283f", "#5e97e6", "#d6e5fb")),
    (Colours("#fde6d8", "#d0662a", "#552408"), Colours("#3f2415", "#e58a55", "#fbe0d1")),
    (Colours("#d8f1ee", "#168a80", "#06403b"), Colours("#0f3330", "#3fb5aa", "#cdf0ec")),
    (Colours("#fae0ef", "#b8478f", "#511a3d"), Colours("#3d1a30", "#d874b3", "#f8d9eb")),
    (Colours("#e9e4dd", "#80694c", "#3a2d1d"), Colours("#302820", "#ab9474", "#ece3d7")),
    (Colours("#e2e6ea", "#566577", "#222b35"), Colours("#252c35", "#8796a8", "#dde4eb")),
]
"""Used in turn, if there are more devices."""

HEAT = [
    (("#fff8f0", "#1d2128"), ("#221c1a", "#e6e9ee")),
    (("#ffe5c8", "#1d2128"), ("#3a2418", "#e6e9ee")),
    (("#ffcb94", "#1d2128"), ("#5b3016", "#f3ebe4")),
    (("#ffa95c", "#1d2128"), ("#874012", "#fff5ee")),
    (("#f97c2e", "#1d2128"), ("#bb520f", "#ffffff")),
    (("#d94a0d", "#ffffff"), ("#f0701d", "#1d1208")),
]
"""Fill and text, from the coolest to the hottest."""


def of_box(box: Box, picture: Picture) -> Colours:
    """The colours of a box in light, where the format has no others: of its kind or device, with the outline of its device if there are
    several, and with the fill of its time if there is a profile."""
    names = [device.name for device in picture.devices]
    device = DEVICES[names.index(box.device) % len(DEVICES) if box.device in names else 0][0]
    own = KINDS[box.kind][0] if box.kind in KINDS else device
    line = own.line if len(names) < 2 else device.line
    if box.kind == OUTSIDE:
        return device._replace(fill=PAPER[0].fill)
    if is_heated(box, picture):
        fill, text = HEAT[heat(box, picture)][0]
        return Colours(fill, line, text)
    return own._replace(line=line)
