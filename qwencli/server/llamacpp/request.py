"""Requests of llama.cpp's API: the fields of /completion with its names, and the forms that a prompt may have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from ...llm import LLM
from ...sampling import NUMBERS, SamplingParams
from ...sampling.parsing import ALIASES
from ...text.tokenizer import Tokenizer
from ..http.errors import ApiError, context_full
from ..shared.schemas import COUNT, MAX_BIASES, Bias, Biases, Fields, GenerationFields

MAX_PROBS = 1000
"""Tokens that are reported with each of the answer's."""
MAX_REPORTED = 1_000_000
"""The same for all of an answer, which has to be held until its client has taken it."""
RANDOM = 2**32 - 1
"""llama.cpp's seed for another one each time, which clients send back as they got it."""
TEXT, IDS = {"type": "string"}, {"type": "array", "items": {"type": ["integer", "string"]}}
ONE = {
    "anyOf": [
        TEXT,
        IDS,
        {"type": "object", "required": ["prompt_string"], "properties": {"prompt_string": TEXT}},
    ]
}
Mixed = Annotated[Any, WithJsonSchema({"anyOf": [TEXT, IDS]})]
"""A text, or texts and token ids in a list."""
Prompts = Annotated[
    Any, WithJsonSchema({"anyOf": [*ONE["anyOf"], {"type": "array", "items": ONE, "minItems": 1}]})
]
"""One such, also as an object with a `prompt_string`, or a list of them."""
MORE = {"typical": "typ_p", "typical_p": "typ_p", "typical-p": "typ_p"}
"""Names of samplers that clients use, too."""


def clamped(name: str) -> AfterValidator:
    """What llama.cpp takes for the nearest value that makes sense, such as a temperature of -1 for 0."""
    s = NUMBERS[name]
    return AfterValidator(lambda value: None if value is None else min(max(value, s.least), s.most))


def at_least_1(value: float | None) -> float | None:
    """Below 1 it is llama.cpp's default."""
    return value if value is None or value >= 1 else SamplingParams.dry_base


def known_samplers(value: str | list[str] | None) -> str | list[str] | None:
    """llama.cpp passes over samplers that it does not know."""
    if not isinstance(value, list):
        return value
    names = [name.strip().lower() for name in value]
    return [name for name in (MORE.get(name, name) for name in names) if name in ALIASES]


class CompletionFields(GenerationFields):
    """The body of /completion."""

    prompt: Prompts
    temp: Annotated[float | None, clamped("temp")] = Field(None, alias="temperature")
    top_p: Annotated[float | None, clamped("top_p")] = None
    min_p: Annotated[float | None, clamped("min_p")] = None
    xtc_probability: Annotated[float | None, clamped("xtc_probability")] = None
    xtc_threshold: Annotated[float | None, clamped("xtc_threshold")] = None
    mirostat: Annotated[int | None, clamped("mirostat")] = None
    dry_base: Annotated[float | None, Field(le=NUMBERS["dry_base"].most), AfterValidator(at_least_1)] = None
    samplers: Annotated[str | list[str] | None, Field(max_length=64), AfterValidator(known_samplers)] = None
    logit_bias: Annotated[dict[str, Bias | Literal[False]] | Biases, Field(max_length=MAX_BIASES)] | None = (
        None
    )
    seed: Annotated[
        int | None,
        Field(ge=-(2**63), lt=2**64),
        AfterValidator(lambda value: -1 if value == RANDOM else value),
    ] = None
    n_probs: Annotated[int, Field(ge=0, le=MAX_PROBS)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_PROBS)] | None = None
    """The same, where `n_probs` is left out."""
    n_cmpl: Annotated[int, Field(ge=1, le=COUNT)] | None = None
    """Answers to each prompt."""
    n: Annotated[int, Field(ge=1, le=COUNT)] | None = None
    n_keep: Annotated[int, Field(ge=-1, le=COUNT)] | None = None
    n_discard: Annotated[int, Field(ge=0, le=COUNT)] | None = None
    """Both without effect, since an answer ends where the context is full."""
    n_indent: Annotated[int, Field(ge=0, le=COUNT)] | None = None
    t_max_predict_ms: Annotated[int, Field(ge=-1, le=2**63 - 1)] | None = None
    """After so long an answer ends at its next line."""
    json_schema: Any = None
    response_fields: Annotated[list[str], Field(max_length=1000)] | None = None
    return_progress: bool | None = None
    post_sampling_probs: bool | None = None
    lora: Any = None

    def limit(self, default: int | None) -> int | None:
        given = next(
            (n for n in (self.n_predict, self.max_completion_tokens, self.max_tokens) if n is not None), -1
        )
        return default if given < 0 else given

    @property
    def n_reported(self) -> int:
        return next((n for n in (self.n_probs, self.logprobs) if n is not None), 0)

    def check(self, n_slots: int) -> None:
        """Raises ApiError for what cannot be done here."""
        for name, asked in (
            ("n_indent", self.n_indent),
            ("post_sampling_probs", self.post_sampling_probs),
            ("lora", self.lora),
        ):
            if asked:
                raise ApiError(f"{name} is not supported", 501, param=name)
        if (self.n_cmpl or self.n or 1) > n_slots:
            raise ApiError(
                f"n_cmpl is {self.n_cmpl or self.n}, expected at most the number of slots, {n_slots}",
                param="n_cmpl",
            )


class TokenizeFields(Fields):
    """The body of /tokenize."""

    content: Mixed = None
    add_special: bool | None = None
    parse_special: bool | None = None
    """Where it is left out, they are."""
    with_pieces: bool | None = None


class DetokenizeFields(Fields):
    """The body of /detokenize."""

    tokens: Annotated[list[int], Field(fail_fast=True)] | None = None


class EmbeddingFields(Fields):
    """The body of /embedding, with the texts in `content` or `input`."""

    content: Prompts = None
    input: Prompts = None
    embd_normalize: Annotated[int, Field(ge=-1, le=COUNT)] | None = None
    """-1: as it is, 0: to the range of 16 bits, 1: by the sum, 2: by the length; else by that norm."""


def is_id(value: object) -> bool:
    return type(value) is int


def mixed(
    tokenizer: Tokenizer, prompt: Any, add_special: bool = True, parse_special: bool = True
) -> list[int]:
    """Token ids of a text, or of texts and ids in a list; only where that begins with a text it may get a BOS token."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, add_special, parse_special)
    if not isinstance(prompt, list) or not all(is_id(part) or isinstance(part, str) for part in prompt):
        raise ApiError("expected a text, or a list of texts and token ids")
    ids: list[int] = []
    for i, part in enumerate(prompt):
        ids += [part] if is_id(part) else tokenizer.encode(part, add_special and i == 0, parse_special)
    return ids


def prompts_of(llm: LLM, value: Any, most: int, name: str = "prompt") -> list[list[int]]:
    """The token ids of each prompt. A list is one prompt if an id is in it, else a list of prompts. Raises ApiError, InputError."""
    prompts = value if isinstance(value, list) and not any(map(is_id, value)) else [value]
    if not 1 <= len(prompts) <= most:
        raise ApiError(f"{name} has {len(prompts)} prompts, expected 1 to {most}", param=name)
    found = []
    for prompt in prompts:
        if isinstance(prompt, dict):
            if prompt.get("multimodal_data"):
                raise ApiError("multimodal_data: this model reads text alone", 501, param=name)
            prompt = prompt.get("prompt_string")
        whole = isinstance(prompt, str) or (
            isinstance(prompt, list) and (not prompt or any(map(is_id, prompt)))
        )
        if not whole:
            raise ApiError(
                f"{name} has to be a text, a list of token ids, an object with a prompt_string, or a list of such",
                param=name,
            )
        texts = [prompt] if isinstance(prompt, str) else [part for part in prompt if isinstance(part, str)]
        if (fewest := sum(map(llm.tokenizer.fewest, texts))) > llm.engine.n_ctx:
            raise context_full(fewest, llm.engine.n_ctx, or_more=True)
        found.append(mixed(llm.tokenizer, prompt))
    return found


def check_context(llm: LLM, tokens: list[int], answer: int = 1) -> None:
    """Raises ApiError where there is no room for so many tokens of an answer."""
    if len(tokens) + answer > llm.engine.n_ctx:
        raise context_full(len(tokens), llm.engine.n_ctx)


def check_amount(body: CompletionFields, room: int, max_tokens: int | None) -> None:
    """Raises ApiError for more probabilities than one answer may hold. `room` is what the context leaves for it."""
    n = room if max_tokens is None else min(room, max_tokens)
    if body.n_reported * n > MAX_REPORTED:
        raise ApiError(
            f"n_probs is {body.n_reported} for an answer of up to {n} tokens: lower it or n_predict",
            param="n_probs",
        )


def constraint_of(llm: LLM, body: CompletionFields) -> Callable[[], Any] | None:
    """What the answer is held to, anew with each call. As in llama.cpp `grammar` comes before `json_schema`."""
    if body.grammar:
        from ...text.grammar.constraints import gbnf

        return gbnf(llm, body.grammar)
    if body.json_schema is None:
        return None
    from ...text.grammar.constraints import json_schema

    return json_schema(llm, body.json_schema)
