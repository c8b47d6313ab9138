"""OpenAI's API: /v1/models, /v1/chat/completions, /v1/completions, /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...errors import InputError
from ...llm import LLM
from ...sampling import Constraint, SamplingParams
from ...text.chat.after_thinking import AfterThinking, masks
from ..http.errors import ApiError, context_full
from ..http.openapi import describe
from ..http.requests import json_body, track
from ..http.sse import encoded, event_stream
from ..llamacpp.request import prompts_of
from ..service.config import Config
from ..service.generation import Request as ServiceRequest
from ..service.service import Service
from ..shared.conversations import ConversationFields, Prompt, budget_of, prompt_of
from ..shared.schemas import Fields, GenerationFields, nth_seed
from .choices import Answer, ChatChoice, Choice, TextChoice, all_encoded, json_object

MAX_N, MAX_PROMPTS, MAX_TEXTS, MAX_TOP = 128, 128, 2048, 20
MAX_REPORTED = 1_000_000
"""Tokens whose logprobs an answer in one piece may hold; each takes a hundred bytes."""
N = Annotated[int, Field(ge=1, le=MAX_N)]
Top = Annotated[int, Field(ge=0, le=MAX_TOP)]
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
Start = Callable[[], Constraint]


class StreamOptions(Fields):
    include_usage: bool | None = None


class Common(GenerationFields):
    model: str | None = None
    """Whatever it is, the server's only model answers."""
    n: N | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Common, ConversationFields):
    """The body of /v1/chat/completions."""

    logprobs: bool | None = None
    top_logprobs: Top | None = None

    @property
    def n_top(self) -> int | None:
        """How many tokens to report with each of the answer's; None: no report at all."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError("top_logprobs: it needs logprobs to be true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Common):
    """The body of /v1/completions."""

    prompt: Texts
    logprobs: Top | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: N | None = None


class EmbeddingRequest(Fields):
    """The body of /v1/embeddings."""

    input: Texts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


def routes(service: Service, config: Config) -> list[Route]:
    api = OpenAI(service, config)
    return [
        Route(prefix + path, endpoint, methods=[method])
        for prefix, path, method, endpoint in (
            ("/v1", "/models", "GET", api.models),
            ("", "/models", "GET", api.models),
            ("/v1", "/models/{id:path}", "GET", api.model),
            ("/v1", "/chat/completions", "POST", api.chat),
            ("", "/chat/completions", "POST", api.chat),
            ("/v1", "/completions", "POST", api.completions),
            ("/v1", "/embeddings", "POST", api.embeddings),
        )
    ]


class OpenAI:
    """The endpoints."""

    def __init__(self, service: Service, config: Config) -> None:
        self._service, self._config, self._llm = service, config, service.llm
        self._created = int(time.time())

    @describe("The models that there are: one")
    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    @describe("One model")
    async def model(self, request: Request) -> Response:
        if request.path_params["id"] != self._config.name:
            raise ApiError("there is no such model here", 404, "model", "model_not_found")
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        c, tensors = self._llm.model.config, self._llm.file.tensors.values()
        meta = {
            "vocab_type": 2,
            "n_vocab": c.n_vocab,
            "n_ctx_train": c.n_ctx,
            "n_ctx": self._llm.engine.n_ctx,
            "n_embd": c.n_embd,
            "n_params": sum(t.n_weights for t in tensors),
            "size": sum(t.n_bytes for t in tensors),
        }
        return {
            "id": self._config.name,
            "object": "model",
            "created": self._created,
            "owned_by": "qwencli",
            "meta": meta,
        }

    @describe("The next message of a conversation", ChatRequest, stream=True)
    async def chat(self, request: Request) -> Response:
        body = await json_body(request, ChatRequest)
        n_top = body.n_top
        think, budget = body.thinking(self._config)
        prompt, sampling, start = await asyncio.to_thread(self._prepare_chat, body, think, n_top)

        def choice(i: int) -> Choice:
            generation = self._service.generate(
                ServiceRequest(
                    prompt.tokens,
                    nth_seed(sampling, i),
                    body.limit(self._config.max_tokens),
                    body.stops,
                    bool(body.ignore_eos),
                    budget_of(prompt, think, budget),
                    start() if start else None,
                )
            )
            return ChatChoice(track(request, generation), self._llm.tokenizer, body, prompt, n_top)

        self._check_amount(body, [prompt.tokens], n_top)
        return await self._answer(
            request, "chat.completion", body, [partial(choice, i) for i in range(body.n or 1)]
        )

    def _prepare_chat(
        self, body: ChatRequest, think: bool, n_top: int | None
    ) -> tuple[Prompt, SamplingParams, Start | None]:
        """All that takes time."""
        llm, forms = self._llm, body.answer_forms()
        prompt = prompt_of(body, llm, self._config, think)
        start = constraint(llm, forms)
        if start and think:
            start = self._after_thinking(start, prompt.inside)
        if functions := body.forced_tools():
            start = constraint(llm, {"tools": call_schema(functions)})
        return prompt, self._sampling(body, n_top), start

    def _after_thinking(self, start: Start, inside: bool) -> Start:
        masks(self._llm.tokenizer)  # half a second, once; not where everybody waits
        return lambda: AfterThinking(start(), self._llm.tokenizer, inside)

    def _sampling(self, body: Common, n_top: int | None) -> SamplingParams:
        sampling = body.sampling(
            self._config.sampling, self._llm.tokenizer, 0 if n_top is None else max(1, n_top)
        )
        self._llm.breakers(sampling)  # looked up here, not where everybody waits
        return sampling

    @describe("How a text goes on", CompletionRequest, stream=True)
    async def completions(self, request: Request) -> Response:
        body = await json_body(request, CompletionRequest)
        prompts, sampling, start = await asyncio.to_thread(self._prepare_text, body)

        def choice(tokens: list[int], i: int) -> Choice:
            generation = self._service.generate(
                ServiceRequest(
                    tokens,
                    nth_seed(sampling, i),
                    body.limit(self._config.max_tokens),
                    body.stops,
                    bool(body.ignore_eos),
                    constraint=start() if start else None,
                )
            )
            return TextChoice(
                track(request, generation), self._llm.tokenizer, body.logprobs, bool(body.stream)
            )

        self._check_amount(body, prompts, body.logprobs)
        choices = [partial(choice, tokens, i) for tokens in prompts for i in range(body.n or 1)]
        return await self._answer(request, "text_completion", body, choices)

    def _prepare_text(self, body: CompletionRequest) -> tuple[list[list[int]], SamplingParams, Start | None]:
        """All that takes time."""
        if body.best_of not in (None, body.n or 1):
            raise ApiError("best_of: only the value of n is supported", param="best_of")
        prompts = self._prompts("prompt", body.prompt, MAX_PROMPTS, self._llm.engine.n_ctx - 1)
        return prompts, self._sampling(body, body.logprobs), constraint(self._llm, body.answer_forms())

    def _prompts(self, field: str, value: Any, most: int, longest: int) -> list[list[int]]:
        """Each one's tokens. Slow. Raises ApiError, InputError."""
        n_vocab = self._llm.tokenizer.n_vocab
        prompts = prompts_of(self._llm, value, most, field)
        for tokens in prompts:
            if not tokens:
                raise ApiError(f"{field}: expected at least one token", param=field)
            if not 0 <= min(tokens) <= max(tokens) < n_vocab:
                raise ApiError(f"{field}: expected token ids from 0 to {n_vocab - 1}", param=field)
            if len(tokens) > longest:
                raise context_full(len(tokens), self._llm.engine.n_ctx)
        return prompts

    def _check_amount(self, body: Common, prompts: list[list[int]], n_top: int | None) -> None:
        """Raises ApiError for more answers than the service ever takes, and more reports than an answer in one piece can hold."""
        n, most = len(prompts) * (body.n or 1), self._service.n_slots + self._service.n_queue
        if n > most:
            raise ApiError(f"n: {n} answers, expected at most {most} at once", param="n")
        room = max(self._llm.engine.n_ctx - len(tokens) for tokens in prompts)
        limit = body.limit(self._config.max_tokens)
        n_tokens = n * (room if limit is None else min(limit, room))
        if n_top is not None and not body.stream and n_tokens * (1 + n_top) > MAX_REPORTED:
            raise ApiError(
                f"logprobs: too many for an answer of up to {n_tokens} tokens; lower max_tokens, or stream",
                param="logprobs",
            )

    async def _answer(
        self, request: Request, kind: str, body: Common, starts: Sequence[Callable[[], Choice]]
    ) -> Response:
        choices = []
        for start in starts:
            choices.append(start())
            await asyncio.sleep(0)  # a long prompt takes milliseconds for each
        answer = Answer(kind, self._config.name, body, choices, body.n or 1, body.with_usage)
        if body.stream:
            return event_stream(request.url.path, answer.chunks(), done=True)
        return json_response(await answer.whole())

    @describe("Texts as vectors of length 1", EmbeddingRequest)
    async def embeddings(self, request: Request) -> Response:
        body = await json_body(request, EmbeddingRequest)
        n_embd = self._llm.model.config.n_embd
        if body.dimensions and body.dimensions > n_embd:
            raise ApiError(f"dimensions: expected at most the model's {n_embd}", param="dimensions")
        prompts = await asyncio.to_thread(
            self._prompts, "input", body.input, MAX_TEXTS, self._llm.engine.n_ctx
        )
        data = []
        for i, tokens in enumerate(prompts):
            vector = unit((await self._service.embed(tokens))[: body.dimensions])
            shown = (
                base64.b64encode(vector.tobytes()).decode()
                if body.encoding_format == "base64"
                else vector.tolist()
            )
            data.append(encoded({"object": "embedding", "index": i, "embedding": shown}))
        n = sum(map(len, prompts))
        about = all_encoded({"model": self._config.name, "usage": {"prompt_tokens": n, "total_tokens": n}})
        return json_response(json_object({"object": '"list"', "data": f"[{','.join(data)}]", **about}))


def json_response(text: str) -> Response:
    return Response(text, media_type="application/json")


def unit(vector: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Brought to length 1, float32 in little-endian order; zeros stay zeros."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector / length if length else vector).astype("<f4")


def constraint(llm: LLM, forms: dict[str, dict[str, Any] | str]) -> Start | None:
    """What an answer is held to, by the field that asks for it; None for nothing. Slow. Raises ApiError."""
    from ...text.grammar import constraints as grammar

    if len(forms) > 1:
        raise ApiError(f"{' and '.join(forms)} cannot be used together", param=next(iter(forms)))
    for field, form in forms.items():
        try:
            return grammar.gbnf(llm, form) if isinstance(form, str) else grammar.json_schema(llm, form)
        except InputError as error:
            raise ApiError(f"{field}: {error}", param=field) from None
    return None


def call_schema(functions: list[dict[str, Any]]) -> dict[str, Any]:
    """A call of one of some functions, as Qwen writes it."""
    calls = [
        {
            "type": "object",
            "required": ["name", "arguments"],
            "additionalProperties": False,
            "properties": {
                "name": {"const": f["name"]},
                "arguments": moved(
                    f.get("parameters") or {"type": "object"}, f"/anyOf/{i}/properties/arguments"
                ),
            },
        }
        for i, f in enumerate(functions)
    ]
    return {"anyOf": calls}


def moved(schema: Any, to: str) -> Any:
    """A schema as a part of another: its references to parts of itself lead there still."""
    if isinstance(schema, list):
        return [moved(item, to) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: f"#{to}{value[1:]}"
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else moved(value, to)
        for key, value in schema.items()
    }
