"""How far the reading of a prompt is, as llama-server tells it."""

from __future__ import annotations

from ...engine.engine import Sequence
from ..service.generation import TextPart


def prompt_progress(seq: Sequence, part: TextPart) -> dict[str, int] | None:
    """Of a part that tells how much was read when it came, tokens in the cache included; None for others."""
    if part.n_read is None or part.timings is None:
        return None
    return {
        "total": seq.n_prompt,
        "cache": seq.n_cached,
        "processed": part.n_read,
        "time_ms": round(part.timings["prompt_ms"]),
    }
