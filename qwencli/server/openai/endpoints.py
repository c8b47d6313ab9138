"""OpenAI's API: /v1/models, /v1/chat/completions, /v1/completions, /v1/embeddings. Its responses are an API of their own."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...engine.embedding import check_reading
from ...llm import LLM
from ...request.prompt import check_length, check_room
from ...request.request import Request
from ...text.fim import fim_prompt
from ..http.app import API
from ..http.errors import ApiError
from ..http.openapi import describe
from ..http.requests import json_body, track
from ..http.sse import encoded, event_stream
from ..options import ServerOptions
from ..service.service import Service
from ..shared.chat import asked_of
from ..shared.counting import n_prompt
from ..shared.errors import error_type
from ..shared.fields import COUNT, nth_seed
from ..shared.forms import grammar_of
from ..shared.json_text import all_encoded, json_array, json_object, json_response
from ..shared.logprobs import MAX_REPORTED
from ..shared.models import figures, listed
from ..shared.prompts import prompts_of
from ..shared.vectors import check_embeds, unit
from .answer import Choices
from .choices import ChatChoice, Choice, TextChoice
from .echo import Echo, echo_of
from .fields import AnswerFields, ChatRequest, CompletionRequest, EmbeddingRequest

MAX_PROMPTS, MAX_TEXTS = 128, 2048
DONE = b"data: [DONE]\n\n"
"""The end of a stream."""


def routes(service: Service, options: ServerOptions) -> list[Route]:
    api = OpenAI(service, options)
    return [
        Route(prefix + path, endpoint, methods=[method])
        for prefix, path, method, endpoint in (
            ("/v1", "/models", "GET", api.models),
            ("", "/models", "GET", api.models),
            ("/v1", "/models/{id:path}", "GET", api.model),
            ("/v1", "/chat/completions", "POST", api.chat),
            ("", "/chat/completions", "POST", api.chat),
            ("/v1", "/chat/completions/input_tokens", "POST", api.count),
            ("", "/chat/completions/input_tokens", "POST", api.count),
            ("/v1", "/completions", "POST", api.completions),
            ("/v1", "/embeddings", "POST", api.embeddings),
        )
    ]


class OpenAI:
    """Each method answers an endpoint, unless its name starts with an underscore."""

    def __init__(self, service: Service, options: ServerOptions) -> None:
        self._service, self._options = service, options
        self._created = int(time.time())

    @property
    def _llm(self) -> LLM:
        return self._service.llm

    @describe("The server's models: one")
    async def models(self, request: HTTPRequest) -> Response:
        found = {"models": [listed(self._options)], "object": "list", "data": [self._model()]}
        return JSONResponse(found)

    @describe("One model")
    async def model(self, request: HTTPRequest) -> Response:
        if request.path_params["id"] not in (self._options.name, *self._options.aliases):
            raise ApiError("there is no such model here", 404, "model", "model_not_found")
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._options.name,
            "aliases": self._options.aliases,
            "tags": self._options.tags,
            "object": "model",
            "created": self._created,
            "owned_by": "qwencli",
            "meta": figures(self._llm),
        }

    @describe("The next message of a conversation", ChatRequest, stream=True)
    async def chat(self, request: HTTPRequest) -> Response:
        body = await json_body(request, ChatRequest)
        n_top = body.n_top
        asked = await asyncio.to_thread(asked_of, body, self._llm, self._options, body.n_probs)

        def choice(i: int) -> Choice:
            one = replace(asked.request, sampling=nth_seed(asked.request.sampling, i))
            generation = track(request, self._service.generate(one, body.tells_progress))
            return ChatChoice(asked, generation, self._llm.tokenizer, n_top, bool(body.stream))

        self._check_amount(body, [asked.request], n_top)
        choices = [partial(choice, i) for i in range(body.n or 1)]
        return await self._answer(request, "chat.completion", body, choices)

    @describe("How many tokens the prompt of a conversation has", ChatRequest)
    async def count(self, request: HTTPRequest) -> Response:
        body = await json_body(request, ChatRequest)
        n = await asyncio.to_thread(n_prompt, body, self._llm, self._options)
        return JSONResponse({"object": "response.input_tokens", "input_tokens": n})

    @describe("How a text goes on", CompletionRequest, stream=True)
    async def completions(self, request: HTTPRequest) -> Response:
        body = await json_body(request, CompletionRequest)
        body.check()
        asked = await asyncio.to_thread(self._text_requests, body)

        def choice(one: Request, echo: Echo | None, i: int) -> Choice:
            one = replace(one, sampling=nth_seed(one.sampling, i))
            generation = self._service.generate(one, body.tells_progress)
            tokenizer = self._llm.tokenizer
            return TextChoice(track(request, generation), tokenizer, body.logprobs, bool(body.stream), echo)

        self._check_amount(body, asked, body.logprobs, bool(body.echo))
        echoes = [
            await echo_of(one.tokens, body.logprobs, self._service) if body.echo else None for one in asked
        ]
        choices = [
            partial(choice, one, echo, i) for one, echo in zip(asked, echoes) for i in range(body.n or 1)
        ]
        return await self._answer(request, "text_completion", body, choices)

    def _text_requests(self, body: CompletionRequest) -> list[Request]:
        """What is asked, prompt by prompt. Slow. Raises ApiError, QwenError."""
        prompts = self._prompts("prompt", body.prompt, MAX_PROMPTS)
        if body.suffix:
            prompts = self._gaps(prompts, body.suffix)
        grammar = grammar_of(self._llm, body.answer_forms())
        n_probs = 0 if body.logprobs is None else max(1, body.logprobs)
        return [body.request(self._llm, self._options, tokens, n_probs, grammar) for tokens in prompts]

    def _gaps(self, prompts: list[list[int]], suffix: str) -> list[list[int]]:
        """Prompts to fill the gap between each and a suffix. Slow. Raises ApiError where the model has no tokens for it, ContextFull."""
        tokenizer, n_ctx = self._llm.tokenizer, self._llm.engine.n_ctx
        if missing := tokenizer.fim.missing:
            raise ApiError(
                f"suffix: the model has no tokens for gaps: it lacks {', '.join(missing)}", param="suffix"
            )
        check_length([suffix], tokenizer, n_ctx)
        after, gaps = tokenizer.encode(suffix), []
        for tokens in prompts:
            bos = tokens[:1] if tokenizer.add_bos and tokens[0] == tokenizer.bos_id else []
            gap = fim_prompt(tokenizer.fim, tokens[len(bos) :], after, self._options.suffix_first)
            gaps.append([*bos, *gap])
            check_room(len(gaps[-1]), n_ctx)
        return gaps

    def _prompts(self, field: str, value: Any, most: int, n_answer: int = 1) -> list[list[int]]:
        """The tokens of each, with room for `n_answer` more. Slow. Raises ApiError, InputError, ContextFull."""
        n_vocab = self._llm.tokenizer.n_vocab
        prompts = prompts_of(self._llm, value, most, field)
        for tokens in prompts:
            if not tokens:
                raise ApiError(f"{field}: expected at least one token", param=field)
            if not 0 <= min(tokens) <= max(tokens) < n_vocab:
                raise ApiError(f"{field}: expected token ids from 0 to {n_vocab - 1}", param=field)
            check_room(len(tokens), self._llm.engine.n_ctx, n_answer)
        return prompts

    def _check_amount(
        self, body: AnswerFields, asked: Sequence[Request], n_top: int | None, echo: bool = False
    ) -> None:
        """Raises ApiError for more answers than the service ever takes, and more reports than an answer in one piece can hold."""
        n, most = len(asked) * (body.n or 1), self._service.n_slots + self._service.n_queue
        if n > most:
            raise ApiError(f"n: {n} answers, expected at most {most} at once", param="n")
        room = max(COUNT if one.shift else self._llm.engine.n_ctx - len(one.tokens) for one in asked)
        limit = asked[0].max_tokens
        n_tokens = n * (room if limit is None else min(limit, room))
        if echo:
            n_tokens += (body.n or 1) * sum(len(one.tokens) for one in asked)
        if n_top is not None and (echo or not body.stream) and n_tokens * (1 + n_top) > MAX_REPORTED:
            raise ApiError(
                f"logprobs: too many for an answer of up to {n_tokens} tokens; lower max_tokens{'' if echo else ', or stream'}",
                param="logprobs",
            )

    async def _answer(
        self, request: HTTPRequest, kind: str, body: AnswerFields, starts: Sequence[Callable[[], Choice]]
    ) -> Response:
        choices = []
        for start in starts:
            choices.append(start())
            await asyncio.sleep(0)  # a long prompt takes milliseconds for each
        is_verbose = self._options.verbose if body.verbose is None else body.verbose
        answer = Choices(kind, self._options.name, body, choices, self._llm.tokenizer, is_verbose)
        if body.stream:
            return event_stream(request, answer.chunks(), end=DONE)
        return json_response(await answer.whole())

    @describe("Texts as vectors of length 1", EmbeddingRequest)
    async def embeddings(self, request: HTTPRequest) -> Response:
        check_embeds(self._service, pooled=True)
        body = await json_body(request, EmbeddingRequest)
        n_embd = self._llm.model.config.n_embd
        if body.dimensions and body.dimensions > n_embd:
            raise ApiError(f"dimensions: expected at most the model's {n_embd}", param="dimensions")
        prompts = await asyncio.to_thread(self._prompts, "input", body.input, MAX_TEXTS, 0)
        for tokens in prompts:
            check_reading(self._llm.engine, tokens)
        data = []
        for i, tokens in enumerate(prompts):
            [states] = await self._service.embed(tokens)
            vector = unit(states[: body.dimensions])
            shown = (
                base64.b64encode(vector.tobytes()).decode()
                if body.encoding_format == "base64"
                else vector.tolist()
            )
            data.append(encoded({"object": "embedding", "index": i, "embedding": shown}))
        n = sum(map(len, prompts))
        about = all_encoded({"model": self._options.name, "usage": {"prompt_tokens": n, "total_tokens": n}})
        return json_response(json_object({"object": '"list"', "data": json_array(data), **about}))


def error_form(error: ApiError) -> dict[str, Any]:
    """OpenAI's JSON for an error."""
    about = {"message": str(error), "type": error_type(error), "param": error.param, "code": error.code}
    return {"error": {**about, **error.details}}


OPENAI = API(routes, error_form, prefix="/v1/", idle_paths=("/models", "/v1/models", "/v1/models/{id:path}"))
