"""What requests of both APIs have in common: how tokens are chosen and where an answer ends, by OpenAI's and llama.cpp's names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model

from ...engine.shift import Shift
from ...errors import InputError
from ...llm import LLM
from ...request.request import Request, Thinking
from ...sampling import NUMBERS, SETTINGS, SamplingParams, parse_sampler_letters, parse_samplers
from ...sampling.params import N_SEEDS
from ...sampling.parsing import MAX_BIAS, checked_breakers
from ...sampling.setting import NumberSetting
from ...text.tokenizer import Tokenizer
from ..http.errors import ApiError
from ..options import ServerOptions

if TYPE_CHECKING:
    from ...text.grammar.constraints import Start

COUNT = 2**31 - 1
MAX_STOPS, MAX_STOP = 32, 256
"""Stop strings, and characters of each: after each token the text is searched for every start of each."""
MAX_BIASES, MAX_BIASED, MAX_BREAKERS = 1024, 256, 64
"""Biases, and characters of a text that one stands for."""


class Fields(BaseModel):
    """A JSON object. Unknown fields are ignored, null means left out, and no value is converted to another type."""

    # deferred: see build_models in http/openapi.py
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, defer_build=True)


def checked(check: Callable[[Any], object]) -> AfterValidator:
    """What raises InputError, as pydantic asks for it."""

    def validate(value: Any) -> Any:
        try:
            check(value)
        except InputError as error:
            raise ValueError(str(error)) from None
        return value

    return AfterValidator(validate)


def samplers_of(value: str | list[str]) -> tuple[str, ...]:
    """llama.cpp's names, or its letters in a string."""
    return parse_sampler_letters(value) if isinstance(value, str) else parse_samplers(value)


def whole(value: Any) -> Any:
    """A whole number that is written as 12.0, as JSON knows one kind of numbers only, and llama.cpp takes it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(whole)
Stop = Annotated[str, Field(max_length=MAX_STOP)]
Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
Biases = Annotated[list[tuple[int | str, Bias | Literal[False]]], Field(fail_fast=True)]
Number = Annotated[int, Field(ge=-1, le=COUNT), WHOLE]
"""Of tokens; -1 stands for no limit."""


def field_of(s: NumberSetting) -> tuple[Any, Any]:
    """The field of a request for a sampler's setting, as create_model takes it."""
    field = Field(None, alias=s.request, ge=s.least, le=s.most, description=s.help)
    return (Annotated[int | None, WHOLE] if s.is_whole else float | None, field)


NUMBER_FIELDS: dict[str, Any] = {s.name: field_of(s) for s in NUMBERS.values() if not s.of_report}
NumberFields = create_model("NumberFields", __base__=Fields, **NUMBER_FIELDS)
"""The samplers' settings that are numbers, with the names and ranges that they have everywhere."""


class SamplingFields(NumberFields):  # type: ignore[valid-type, misc]
    """How tokens are chosen. The server's options apply to what is left out."""

    top_k: Annotated[int, Field(ge=-COUNT, le=COUNT), WHOLE] | None = Field(
        None, description=NUMBERS["top_k"].help
    )
    """Less than 0: all, too."""
    dry_sequence_breakers: (
        Annotated[list[str], Field(max_length=MAX_BREAKERS, fail_fast=True), checked(checked_breakers)] | None
    ) = None
    samplers: (
        Annotated[
            str | Annotated[list[str], Field(fail_fast=True)], Field(max_length=64), checked(samplers_of)
        ]
        | None
    ) = None
    """Names, or llama.cpp's letters in a string."""
    logit_bias: Annotated[dict[str, Bias] | Biases, Field(max_length=MAX_BIASES)] | None = None
    """By token ids, or by texts, whose tokens all get the bias; false forbids them."""
    seed: Annotated[int, Field(ge=-(2**63), lt=N_SEEDS), WHOLE] | None = None
    """-1: another one each time."""

    def sampling(self, base: SamplingParams, tokenizer: Tokenizer, n_probs: int = 0) -> SamplingParams:
        """These settings over those of `base`. Raises ApiError, InputError."""
        names = SETTINGS.keys() & SamplingFields.model_fields.keys()
        chosen = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.top_k is not None:
            chosen["top_k"] = max(self.top_k, 0)
        if self.samplers is not None:
            chosen["samplers"] = samplers_of(self.samplers)
        if self.seed is not None:
            chosen["seed"] = None if self.seed == -1 else self.seed % N_SEEDS
        if self.logit_bias is not None:
            pairs = self.logit_bias.items() if isinstance(self.logit_bias, dict) else self.logit_bias
            chosen["logit_bias"] = [
                (token, -math.inf if bias is False else bias)
                for what, bias in pairs
                for token in _tokens(what, tokenizer)
            ]
            if len(chosen["logit_bias"]) > MAX_BIASES:
                raise ApiError(
                    f"logit_bias stands for {len(chosen['logit_bias'])} tokens, expected at most {MAX_BIASES}",
                    param="logit_bias",
                )
            if unknown := [token for token, _ in chosen["logit_bias"] if not 0 <= token < tokenizer.n_vocab]:
                raise ApiError(
                    f"logit_bias names the token {unknown[0]}, expected one below {tokenizer.n_vocab}",
                    param="logit_bias",
                )
        return replace(base, **chosen, n_probs=n_probs)


def _tokens(what: int | str, tokenizer: Tokenizer) -> list[int]:
    """A token id, also as a text, or the tokens of any other text. Raises ApiError."""
    if isinstance(what, int):
        return [what]
    if len(what) > MAX_BIASED:
        raise ApiError(
            f"logit_bias has a text of {len(what)} characters, expected at most {MAX_BIASED}",
            param="logit_bias",
        )
    return [int(what)] if what.isascii() and what.isdigit() and len(what) <= 10 else tokenizer.encode(what)


def first_given(*values: int | None) -> int | None:
    """The first of several fields that mean the same, None where all are left out."""
    return next((value for value in values if value is not None), None)


def length_limit(given: int | None, default: int | None) -> int | None:
    """How many tokens an answer may have, None for as many as the context holds: as given, where that is not a negative number."""
    return default if given is None or given < 0 else given


def nth_seed(sampling: SamplingParams, i: int) -> SamplingParams:
    """For the i-th answer to one prompt: the seed plus i, so that each answer can be repeated alone."""
    return sampling if sampling.seed is None else replace(sampling, seed=(sampling.seed + i) % N_SEEDS)


class GenerationFields(SamplingFields):
    """A request for text."""

    stream: bool | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    max_completion_tokens: Number | None = None
    max_tokens: Number | None = None
    n_predict: Number | None = None
    """The same; the first of the three that is given counts."""
    ignore_eos: bool | None = None
    grammar: str | None = None
    """GBNF."""
    json_schema: dict[str, Any] | None = None
    return_tokens: bool | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    """Whether a stream tells how the prompt is read."""
    sse_ping_interval: Annotated[int, Field(ge=-1, le=COUNT), WHOLE] | None = None
    """After how many silent seconds a stream carries a comment; -1 and 0: never."""
    cache_prompt: bool | None = None
    """If false, nothing is taken from prompts that began alike, and nothing is kept for them."""
    id_slot: Annotated[int, Field(ge=-1, le=COUNT), WHOLE] | None = None
    """The slot to run in, as soon as it is free, counted on from 0 again where there are fewer; -1: any."""
    n_keep: Annotated[int, Field(ge=-1, le=COUNT), WHOLE] | None = None
    """How many of the first tokens stay where the context is shifted; -1: the prompt."""
    n_discard: Annotated[int, Field(ge=0, le=COUNT), WHOLE] | None = None
    """How many of the others are dropped then, at least an eighth of them; 0: half of them."""

    @property
    def tells_progress(self) -> bool:
        return bool(self.stream and self.return_progress)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def ends(self, options: ServerOptions) -> tuple[tuple[str, ...], bool]:
        """The strings that end the answer, and whether it goes on where the model would end it."""
        stops = tuple(filter(None, self.stops)) or options.stop
        return stops, options.ignore_eos if self.ignore_eos is None else self.ignore_eos

    def limit(self, default: int | None) -> int | None:
        """How many tokens the answer may have, None for as many as the context holds."""
        return length_limit(first_given(self.max_completion_tokens, self.max_tokens, self.n_predict), default)

    def request(
        self,
        llm: LLM,
        options: ServerOptions,
        tokens: list[int],
        n_probs: int = 0,
        grammar: Start | None = None,
        thinking: Thinking | None = None,
    ) -> Request:
        """What is asked with a prompt's tokens. Slow. Raises ApiError, InputError."""
        sampling = self.sampling(options.sampling, llm.tokenizer, n_probs)
        llm.breakers(sampling)  # looked up here, not where everybody waits
        limit = self.limit(options.max_tokens)
        ends = self.ends(options)
        asked = Request(tokens, sampling, limit, *ends, thinking or Thinking(), grammar)
        return self.placed(asked, llm, options)

    def placed(self, request: Request, llm: LLM, options: ServerOptions) -> Request:
        """A request with what these fields say of where it runs: whether it uses the cache, its slot, and what a full context drops.

        As in llama-server, an answer that the model mustn't end can't have the tokens that would end it. With a grammar it may end.
        """
        use_cache = options.cache_prompt if self.cache_prompt is None else self.cache_prompt
        slot = None if self.id_slot is None or self.id_slot < 0 else self.id_slot
        shift = None
        if options.context_shift:
            n_keep = options.n_keep if self.n_keep is None else self.n_keep
            n_keep = len(request.tokens) if n_keep < 0 else n_keep
            # as in llama.cpp the token that begins every text isn't counted
            shift = Shift(n_keep + llm.tokenizer.add_bos, self.n_discard or 0)
        sampling = request.sampling
        if request.ignore_eos and request.grammar is None:
            forbidden = [(token, -math.inf) for token in sorted(llm.tokenizer.eog_ids)]
            sampling = replace(sampling, logit_bias=(*sampling.logit_bias, *forbidden))
        return replace(request, sampling=sampling, use_cache=use_cache, slot=slot, shift=shift)

    def answer_forms(self) -> dict[str, dict[str, Any] | str]:
        """What the answer has to follow, a JSON schema or a grammar, by the field that asks for it."""
        return {
            name: form
            for name, form in (("json_schema", self.json_schema), ("grammar", self.grammar or None))
            if form is not None
        }
