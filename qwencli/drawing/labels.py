"""Texts of boxes, for all formats. Names come from a file: each format escapes them, none may be of any length."""

from __future__ import annotations

from ..units import size
from .picture import OUTSIDE, Box, Edge, Frame, Picture

LONGEST = 48
"""Characters of a name that are shown."""


def plain(text: str, longest: int = LONGEST) -> str:
    """A name without control characters, its middle left out if it is too long."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: 4 * longest])
    if len(text) <= longest:
        return text
    half = (longest - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def bytes_of(box: Box) -> str:
    """The size of a box's value, from the least to the most if layers differ."""
    least, most = box.n_bytes
    return size(least) if least == most else f"{size(least)} - {size(most)}"


def details(box: Box) -> str:
    """Type, shape and size."""
    return f"{' / '.join(box.types)} {list(box.shape)} {bytes_of(box)}"


def timing(box: Box) -> str:
    """Milliseconds and the share of the machine's limit, or together with which node this one is computed; empty if it isn't at all."""
    if box.within:
        return f"in {plain(box.within)}"
    if not box.seconds:
        return ""
    share = "" if box.share is None else f", {box.share:.0%} of the limit"
    return f"{milliseconds(box.seconds)}{share}"


def heading(frame: Frame) -> str:
    """The title of a frame, with the time of all that it stands for if there is a profile."""
    return f"{frame.title}, {milliseconds(frame.seconds)}" if frame.seconds else frame.title


def milliseconds(seconds: float) -> str:
    digits = 4 if seconds < 1e-5 else 3 if seconds < 0.01 else 1
    return f"{1e3 * seconds:.{digits}f} ms"


def crossing(edge: Edge) -> str:
    """What is copied from device to device."""
    return size(edge.n_bytes)


def summary(picture: Picture) -> str:
    """The picture in one line."""
    n_nodes = sum(len(box.nodes) for box in picture.boxes if box.kind != OUTSIDE)
    weights = sum(device.weight_bytes for device in picture.devices)
    tokens = f"{picture.n_tokens} token" + "s" * (picture.n_tokens != 1)
    parts = [f"{n_nodes} nodes", f"{size(weights)} of weights", tokens]
    if picture.is_profiled:
        parts.append(milliseconds(picture.seconds))
    return ", ".join(parts)


def is_heated(box: Box, picture: Picture) -> bool:
    """Whether a box has the colour of its time."""
    return picture.is_profiled and box.kind not in ("weight", "input", OUTSIDE)


def heat(box: Box, picture: Picture) -> int:
    """The colour of a box's time, from 0 to 5: its share of the longest, on a scale on which each colour is twice the one before."""
    longest = max(each.seconds for each in picture.boxes)
    if not box.seconds:
        return 0
    level, limit = 5, longest / 2
    while level and box.seconds < limit:
        level, limit = level - 1, limit / 2
    return level
