"""What stood in a prompt and came back, word for word: llama-server's `__verbose`, for who looks for an error."""

from __future__ import annotations

from typing import Any

from ...request.timings import timings
from ...text.tokenizer import Tokenizer
from ..service.generation import Generation

STOP_TYPES = {"eos": "eos", "stop": "word", "length": "limit", "context": "limit"}


def verbose(generation: Generation, tokenizer: Tokenizer) -> dict[str, Any]:
    """Of an answer that has ended. Control tokens are shown by their names."""
    seq = generation.sequence
    return {
        "prompt": tokenizer.decode(seq.tokens[: seq.n_prompt]),
        "content": tokenizer.decode(seq.generated),
        "tokens": seq.generated,
        "stop": True,
        "tokens_evaluated": seq.n_prompt,
        "tokens_predicted": len(seq.generated),
        "truncated": seq.stop_reason == "context",
        "stop_type": STOP_TYPES.get(seq.stop_reason or "", "none"),
        "stopping_word": generation.answer.stop_word,
        "timings": timings(seq),
    }
