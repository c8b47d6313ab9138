"""What an answer has cost by now: tokens and times, counted in one place for all who report them."""

from __future__ import annotations

from ..engine.engine import Sequence


def n_computed(seq: Sequence) -> int:
    """The prompt's tokens that were computed by now: those that the cache had cost nothing."""
    return seq.n_prompt_done - seq.n_cached


def timings(seq: Sequence) -> dict[str, float]:
    """llama-server's names; times in milliseconds. `cache_n` of the prompt's tokens were in the cache, `prompt_n` were computed.

    The first token of the answer is drawn in the prompt's last step, so its time is the prompt's.
    """
    prompt_n = n_computed(seq)
    predicted_n = len(seq.tokens) - seq.n_prompt
    n_timed = max(0, predicted_n - 1)
    prompt_ms = 1e3 * seq.prompt_seconds
    predicted_ms = 1e3 * seq.generation_seconds
    return {
        "cache_n": seq.n_cached,
        "prompt_n": prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": _ratio(prompt_ms, prompt_n),
        "prompt_per_second": _ratio(1e3 * prompt_n, prompt_ms),
        "predicted_n": predicted_n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": _ratio(predicted_ms, n_timed),
        "predicted_per_second": _ratio(1e3 * n_timed, predicted_ms),
    }


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0
