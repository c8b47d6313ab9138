"""Requests of llama.cpp's API: the fields of their bodies."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, RootModel, WithJsonSchema

from ...sampling import NUMBERS, SamplingParams
from ...sampling.parsing import ALIASES
from ...text.tokenizer import Tokenizer
from ..http.errors import ApiError
from ..shared.fields import (
    COUNT,
    MAX_BIASES,
    WHOLE,
    Bias,
    Biases,
    Fields,
    GenerationFields,
    first_given,
    length_limit,
)

MAX_PROBS = 1000
"""Tokens that are reported with each of the answer's."""
MAX_EXTRA = 1000
"""Files of a repository that a request may have."""
RANDOM = 2**32 - 1
"""What llama.cpp calls a seed that is another one each time. Clients send it back as they got it."""
TEXT, IDS = {"type": "string"}, {"type": "array", "items": {"type": ["integer", "string"]}}
PARTS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": TEXT},
    },
    "minItems": 1,
}
ONE = {
    "anyOf": [
        TEXT,
        IDS,
        {"type": "object", "required": ["prompt_string"], "properties": {"prompt_string": TEXT}},
        {"type": "object", "required": ["content"], "properties": {"content": PARTS}},
    ]
}
Mixed = Annotated[Any, WithJsonSchema({"anyOf": [TEXT, IDS]})]
"""A text, or a list of texts and token ids."""
Prompts = Annotated[
    Any, WithJsonSchema({"anyOf": [*ONE["anyOf"], {"type": "array", "items": ONE, "minItems": 1}]})
]
"""One such, also as an object with a `prompt_string` or with `content`, parts that are texts; or a list of them."""
MORE = {"typical": "typ_p", "typical_p": "typ_p", "typical-p": "typ_p"}
"""Other names that clients have for samplers."""


def clamped(name: str) -> AfterValidator:
    """What llama.cpp takes for the nearest value that makes sense, such as a temperature of -1 for 0."""
    s = NUMBERS[name]
    return AfterValidator(lambda value: None if value is None else min(max(value, s.least), s.most))


def at_least_1(value: float | None) -> float | None:
    """Below 1 it is llama.cpp's default."""
    return value if value is None or value >= 1 else SamplingParams.dry_base


def known_samplers(value: str | list[str] | None) -> str | list[str] | None:
    """llama.cpp leaves out samplers that it does not know."""
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
    mirostat: Annotated[int | None, clamped("mirostat"), WHOLE] = None
    adaptive_target: Annotated[float | None, clamped("adaptive_target")] = None
    adaptive_decay: Annotated[float | None, clamped("adaptive_decay")] = None
    dry_base: Annotated[float | None, Field(le=NUMBERS["dry_base"].most), AfterValidator(at_least_1)] = None
    samplers: Annotated[str | list[str] | None, Field(max_length=64), AfterValidator(known_samplers)] = None
    logit_bias: Annotated[dict[str, Bias | Literal[False]] | Biases, Field(max_length=MAX_BIASES)] | None = (
        None
    )
    seed: Annotated[
        int | None,
        Field(ge=-(2**63), lt=2**64),
        AfterValidator(lambda value: -1 if value == RANDOM else value),
        WHOLE,
    ] = None
    n_probs: Annotated[int, Field(ge=0, le=MAX_PROBS), WHOLE] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_PROBS), WHOLE] | None = None
    """The same, for requests that leave out `n_probs`."""
    n_cmpl: Annotated[int, Field(ge=1, le=COUNT), WHOLE] | None = None
    """Answers to each prompt."""
    n: Annotated[int, Field(ge=1, le=COUNT), WHOLE] | None = None
    n_indent: Annotated[int, Field(ge=0, le=COUNT), WHOLE] | None = None
    t_max_predict_ms: Annotated[int, Field(ge=-1, le=2**63 - 1), WHOLE] | None = None
    """After that time an answer ends with its line."""
    json_schema: Any = None
    response_fields: Annotated[list[str], Field(max_length=1000)] | None = None
    post_sampling_probs: bool | None = None
    """Probabilities as the samplers have left them."""
    lora: Any = None

    def limit(self, default: int | None) -> int | None:
        """See GenerationFields; here the first that counts is llama.cpp's own name."""
        return length_limit(first_given(self.n_predict, self.max_completion_tokens, self.max_tokens), default)

    def sampling(self, base: SamplingParams, tokenizer: Tokenizer, n_probs: int = 0) -> SamplingParams:
        """See SamplingFields."""
        found = super().sampling(base, tokenizer, n_probs)
        return replace(found, post_sampling_probs=bool(self.post_sampling_probs))

    @property
    def n_reported(self) -> int:
        return first_given(self.n_probs, self.logprobs) or 0

    def check(self, n_slots: int) -> None:
        """Raises ApiError for what cannot be done here."""
        for name, asked in (("n_indent", self.n_indent), ("lora", self.lora)):
            if asked:
                raise ApiError(f"{name} is not supported", 501, param=name)
        if (self.n_cmpl or self.n or 1) > n_slots:
            raise ApiError(
                f"n_cmpl is {self.n_cmpl or self.n}, expected at most the number of slots, {n_slots}",
                param="n_cmpl",
            )


class ExtraFile(Fields):
    """A file of the repository in which the gap is."""

    text: str
    filename: str = "tmp"


class InfillFields(CompletionFields):
    """The body of /infill: what precedes the gap, what follows it, and what the answer in it begins with."""

    prompt: str = ""
    input_prefix: Mixed
    input_suffix: Mixed
    input_extra: Annotated[list[ExtraFile], Field(max_length=MAX_EXTRA, fail_fast=True)] | None = None


class Adapter(Fields):
    """A LoRA adapter and how much of it is added."""

    id: int
    scale: float


class Adapters(RootModel[Annotated[list[Adapter], Field(max_length=1000, fail_fast=True)]]):
    """The body of /lora-adapters."""


class SlotFields(Fields):
    """The body of /slots/{id_slot}: the file, in the folder of `--slot-save-path`, to which a slot is saved, or from which it is taken."""

    filename: Annotated[str, Field(max_length=255)] = ""


class TokenizeFields(Fields):
    """The body of /tokenize."""

    content: Mixed = None
    add_special: bool | None = None
    parse_special: bool | None = None
    """Left out, they are recognised."""
    with_pieces: bool | None = None


class DetokenizeFields(Fields):
    """The body of /detokenize."""

    tokens: Annotated[list[int], Field(fail_fast=True)] | None = None


class EmbeddingFields(Fields):
    """The body of /embedding, with the texts in `content` or `input`."""

    content: Prompts = None
    input: Prompts = None
    embd_normalize: Annotated[int, Field(ge=-1, le=COUNT), WHOLE] | None = None
    """-1: as it is, 0: to the range of 16 bits, 1: by the sum, 2: by the length; else by that norm."""
