"""A picture as JSON, for programs."""

from __future__ import annotations

import json
from typing import Any

from .picture import Box, Picture


def write_json(picture: Picture) -> bytes:
    """An object with every node, edge and device. Layers aren't drawn as one: the picture has to be full, or of some layers.

    Shapes are in NumPy's order, sizes in bytes, times in seconds (None without a profile).
    """
    sources: dict[Box, list[str]] = {}
    for edge in picture.edges:
        sources.setdefault(edge.target, []).append(edge.source.name)
    facts: dict[str, Any] = {
        "model": picture.title,
        "n_tokens": picture.n_tokens,
        "nodes": [node(box, sources.get(box, [])) for box in picture.boxes],
        "edges": [
            {"from": e.source.name, "to": e.target.name, "bytes": e.n_bytes, "crosses": e.crosses}
            for e in picture.edges
        ],
        "devices": [
            {"name": d.name, "nodes": d.n_nodes, "weight_bytes": d.weight_bytes} for d in picture.devices
        ],
    }
    return (json.dumps(facts, indent=1) + "\n").encode()


def node(box: Box, sources: list[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": box.name,
        "op": box.op,
        "type": box.types[0],
        "shape": list(box.shape),
        "bytes": box.n_bytes[0],
        "kind": box.kind,
        "device": box.device,
        "layer": box.layer,
        "sources": sources,
    }
    if box.times:
        facts |= {"seconds": box.seconds or None, "share": box.share, "within": box.within or None}
    return facts
