"""How far the reading of a prompt is, as llama-server tells it."""

from __future__ import annotations

from ...engine.engine import Sequence


def prompt_progress(seq: Sequence, n_read: int) -> dict[str, int]:
    """When `n_read` of the prompt's tokens are read, those in the cache included."""
    return {
        "total": seq.n_prompt,
        "cache": seq.n_cached,
        "processed": n_read,
        "time_ms": round(1e3 * seq.prompt_seconds),
    }
