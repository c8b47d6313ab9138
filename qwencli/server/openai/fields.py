"""Requests of OpenAI's API: the fields of their bodies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from ..http.errors import ApiError
from ..shared.conversations import ConversationFields
from ..shared.fields import WHOLE, Fields, GenerationFields

MAX_N, MAX_TOP = 128, 20
N = Annotated[int, Field(ge=1, le=MAX_N), WHOLE]
Top = Annotated[int, Field(ge=0, le=MAX_TOP), WHOLE]
TEXT = {"type": "string", "minLength": 1}
IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
Texts = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                TEXT,
                {"type": "array", "minItems": 1, "items": TEXT},
                IDS,
                {"type": "array", "minItems": 1, "items": IDS},
            ]
        }
    ),
]
"""One or several, each as text or as token ids."""


class StreamOptions(Fields):
    include_usage: bool | None = None


class AnswerFields(GenerationFields):
    """What both kinds of requests for text have."""

    model: str | None = None
    """Without effect: the server has one model."""
    n: N | None = None
    stream_options: StreamOptions | None = None
    verbose: bool | None = None
    """Whether the answer comes with `__verbose`: its prompt and its own text word for word."""
    user: str | None = None

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(AnswerFields, ConversationFields):
    """The body of /v1/chat/completions."""

    logprobs: bool | None = None
    top_logprobs: Top | None = None

    @property
    def n_top(self) -> int | None:
        """How many likely tokens to report with each of the answer's; None for no report at all. Raises ApiError."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError("top_logprobs: it needs logprobs to be true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def n_probs(self) -> int:
        """As many as the sampler has to report for that."""
        return 0 if self.n_top is None else max(1, self.n_top)


class CompletionRequest(AnswerFields):
    """The body of /v1/completions."""

    prompt: Texts
    logprobs: Top | None = None
    echo: bool | None = None
    """Whether the answer starts with the prompt."""
    suffix: str | None = None
    """What follows the gap that the answer is to fill."""
    best_of: N | None = None

    def check(self) -> None:
        """Raises ApiError for what cannot be done together."""
        if self.best_of not in (None, self.n or 1):
            raise ApiError("best_of: only the value of n is supported", param="best_of")
        if self.echo and self.suffix:
            raise ApiError("echo and suffix cannot be used together", param="echo")


class EmbeddingRequest(Fields):
    """The body of /v1/embeddings."""

    input: Texts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1), WHOLE] | None = None
    user: str | None = None
