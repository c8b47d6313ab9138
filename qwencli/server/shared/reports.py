"""What answers of both APIs tell of their tokens: how many, how likely, how fast."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from ...engine.engine import Sequence as EngineSequence
from ...text.tokenizer import Tokenizer


def timings(seq: EngineSequence) -> dict[str, float]:
    """llama-server's names; times in milliseconds. The first token's belongs to the prompt."""
    prompt_n, predicted_n = seq.n_prompt_done - seq.n_cached, len(seq.generated)
    prompt_ms, predicted_ms = 1e3 * seq.prompt_seconds, 1e3 * seq.generation_seconds
    n_timed = max(0, predicted_n - 1)
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


def usage(sequences: Sequence[EngineSequence], n: int = 1) -> dict[str, Any]:
    """Of the answers to some prompts, of which each has `n` in a row: a prompt counts once."""
    prompts = sequences[::n]
    n_prompt, n_generated = sum(s.n_prompt for s in prompts), sum(len(s.generated) for s in sequences)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": sum(s.n_cached for s in prompts)},
    }


def token_reports(
    tokenizer: Tokenizer, seq: EngineSequence, places: Iterable[int], n_top: int
) -> list[dict[str, Any]]:
    """The answer's tokens at some places: each with its logprob and those of the `n_top` likeliest, natural logarithms.

    A token that nobody drew, such as those that end thinking at its budget, was certain.
    """
    found = []
    for place in places:
        report = seq.reports.get(place)
        top = report.top[:n_top] if report else []
        found.append(
            _named(tokenizer, seq.tokens[seq.n_prompt + place], report.logprob if report else 0.0)
            | {"top_logprobs": [_named(tokenizer, token, logprob) for token, logprob in top]}
        )
    return found


def _named(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    return {"id": token, "token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": logprob}


class TextLogprobs:
    """Reports in the form of /v1/completions, in pieces: four lists, whose offsets count characters of the whole text."""

    NAMES = "tokens", "token_logprobs", "top_logprobs", "text_offset"

    def __init__(self) -> None:
        self._utf8, self._n_characters = codecs.getincrementaldecoder("utf-8")("replace"), 0

    def add(self, reports: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
        """The next tokens' part."""
        found: dict[str, list[Any]] = {name: [] for name in self.NAMES}
        for report in reports:
            found["tokens"].append(text_form(report))
            found["token_logprobs"].append(report["logprob"])
            found["top_logprobs"].append({text_form(top): top["logprob"] for top in report["top_logprobs"]})
            found["text_offset"].append(self._n_characters)
            self._n_characters += len(self._utf8.decode(bytes(report["bytes"])))
        return found


def text_form(report: dict[str, Any]) -> str:
    """A token's text; for bytes that are no UTF-8 as OpenAI writes them, so that two of them differ."""
    raw = bytes(report["bytes"])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
