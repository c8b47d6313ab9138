"""The formats of pictures, by the suffix of their files."""

from __future__ import annotations

from .picture import Picture


def write(picture: Picture, suffix: str) -> bytes:
    """The contents of a file with one of SUFFIXES. Raises QwenError if a .png can't be made."""
    if suffix == ".svg":
        from .svg import write_svg

        return write_svg(picture)
    if suffix == ".json":
        from .json_text import write_json

        return write_json(picture)
    if suffix == ".mmd":
        from .mermaid import write_mermaid

        return write_mermaid(picture)
    from .dot import write_dot, write_png

    return write_dot(picture) if suffix == ".dot" else write_png(picture)
