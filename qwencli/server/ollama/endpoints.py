"""Ollama's API: /api/chat, /api/generate, /api/embed, and what it tells of its models."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...llm import LLM
from ...request.prompt import check_length, check_room
from ...text.fim import fim_prompt
from ..http.app import API
from ..http.errors import ApiError
from ..http.ndjson import line_stream
from ..http.openapi import describe
from ..http.requests import json_body, track
from ..http.sse import encoded
from ..options import ServerOptions
from ..service.service import Service
from ..shared.chat import Asked, ChatAnswer, asked_of
from ..shared.forms import grammar_of
from ..shared.json_text import all_encoded, json_array, json_object, json_response
from ..shared.vectors import check_embeds, unit
from .answer import Answer, PlainAnswer, message_of, nanoseconds, now, response_of
from .fields import AnswerFields, ChatRequest, EmbeddingsRequest, EmbedRequest, GenerateRequest, ShowRequest
from .models import about, running, shown

VERSION = "0.12.6"
"""The version of Ollama whose API this is. Clients look whether it is new enough for them."""
ELSEWHERE = (
    "models are fetched, removed and changed on the server's machine, by `qwencli pull` and `qwencli rm`"
)


def routes(service: Service, options: ServerOptions) -> list[Route]:
    api = Ollama(service, options)
    get = {"/api/tags": api.tags, "/api/ps": api.running, "/api/version": api.version}
    post = {
        "/api/chat": api.chat,
        "/api/generate": api.generate,
        "/api/embed": api.embed,
        "/api/embeddings": api.embeddings,
        "/api/show": api.show,
        "/api/pull": api.refused,
        "/api/push": api.refused,
        "/api/create": api.refused,
        "/api/copy": api.refused,
        "/api/blobs/{digest}": api.refused,
    }
    return [
        *(Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()),
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in post.items()),
        Route("/api/delete", api.refused, methods=["DELETE"]),
    ]


class Ollama:
    """Each method answers an endpoint, unless its name starts with an underscore."""

    def __init__(self, service: Service, options: ServerOptions) -> None:
        self._service, self._options = service, options

    @describe("The server's models: one")
    async def tags(self, request: HTTPRequest) -> Response:
        return JSONResponse({"models": [about(self._service.llm, self._options)]})

    @describe("The models that are loaded")
    async def running(self, request: HTTPRequest) -> Response:
        if self._service.presence.asleep:
            return JSONResponse({"models": []})
        return JSONResponse({"models": [running(self._service.llm, self._options)]})

    @describe("The version of Ollama whose API this is")
    async def version(self, request: HTTPRequest) -> Response:
        return JSONResponse({"version": VERSION})

    @describe("All that is known of the model", ShowRequest)
    async def show(self, request: HTTPRequest) -> Response:
        body = await json_body(request, ShowRequest)
        llm, options = self._service.llm, self._options
        known = await asyncio.to_thread(shown, llm, options, bool(body.verbose))
        return json_response(await asyncio.to_thread(encoded, known))

    @describe("Refused: a client can't change which models there are")
    async def refused(self, request: HTTPRequest) -> Response:
        raise ApiError(ELSEWHERE, 403)

    @describe("The next message of a conversation", ChatRequest)
    async def chat(self, request: HTTPRequest) -> Response:
        body = await json_body(request, ChatRequest)
        if body.unloads:
            self._service.presence.unload_soon()
        if not body.messages:
            return self._loaded(body, message_of("", "", []))
        self._check(body)
        llm = self._service.llm
        asked = await asyncio.to_thread(self._asked, body)
        answer = ChatAnswer(asked, track(request, self._service.generate(asked.request)))
        return await self._answer(
            request, body, Answer(self._options.name, llm.tokenizer, answer, message_of, body.n_top)
        )

    def _asked(self, body: ChatRequest) -> Asked:
        """Slow. Raises ApiError, QwenError."""
        return asked_of(body.of_chat(), self._service.llm, self._options, n_probs(body))

    @describe("The answer to a prompt, or how a text goes on", GenerateRequest)
    async def generate(self, request: HTTPRequest) -> Response:
        body = await json_body(request, GenerateRequest)
        body.check()
        if body.unloads:
            self._service.presence.unload_soon()
        if not body.prompt and not body.suffix:
            return self._loaded(body, response_of("", "", []))
        self._check(body)
        llm = self._service.llm
        asked, plain = await asyncio.to_thread(self._prompted, body)
        generation = track(request, self._service.generate(asked.request))
        answer = PlainAnswer(generation) if plain else ChatAnswer(asked, generation)
        return await self._answer(
            request,
            body,
            Answer(self._options.name, llm.tokenizer, answer, response_of, body.n_top, not body.raw),
        )

    def _prompted(self, body: GenerateRequest) -> tuple[Asked, bool]:
        """What is asked, and whether the answer is text as it comes. Slow. Raises ApiError, QwenError."""
        llm, options = self._service.llm, self._options
        chat = body.of_prompt()
        if body.raw or body.suffix or options.template is None:
            tokens = self._text_tokens(body)
            grammar = grammar_of(llm, chat.answer_forms())
            return Asked(chat, chat.request(llm, options, tokens, n_probs(body), grammar)), True
        asked = asked_of(chat, llm, options, n_probs(body))
        if body.context:
            known = checked_ids(body.context, llm)
            check_room(len(known) + len(asked.request.tokens), llm.engine.n_ctx)
            asked = replace(asked, request=replace(asked.request, tokens=[*known, *asked.request.tokens]))
        return asked, False

    def _text_tokens(self, body: GenerateRequest) -> list[int]:
        """The tokens of a prompt that is taken as it is, or of the gap between it and a suffix. Slow. Raises ApiError, ContextFull."""
        llm = self._service.llm
        prompt, suffix = body.prompt or "", body.suffix or ""
        check_length([prompt, suffix], llm.tokenizer, llm.engine.n_ctx)
        if suffix and llm.tokenizer.fim.missing:
            raise ApiError(f'"{self._options.name}" does not support insert', param="suffix")
        tokens = llm.tokenizer.encode(prompt, True, True)
        if suffix:
            after = llm.tokenizer.encode(suffix)
            tokens = fim_prompt(llm.tokenizer.fim, tokens, after, self._options.suffix_first)
        check_room(len(tokens), llm.engine.n_ctx)
        return tokens

    def _check(self, body: AnswerFields) -> None:
        """Raises ApiError where the model is to think and cannot."""
        template = self._options.template
        if body.think and not (template and template.knows_thinking):
            raise ApiError(f'"{self._options.name}" does not support thinking', param="think")

    def _loaded(self, body: AnswerFields, nothing: dict[str, Any]) -> Response:
        """The answer to a request without a prompt, by which clients load a model, or unload it."""
        ended = {"done": True, "done_reason": "unload" if body.unloads else "load"}
        return JSONResponse({"model": self._options.name, "created_at": now(), **nothing, **ended})

    async def _answer(self, request: HTTPRequest, body: AnswerFields, answer: Answer) -> Response:
        if body.streams:
            return line_stream(request, answer.pieces())
        return json_response(encoded(await answer.whole()))

    @describe("Texts as vectors of length 1", EmbedRequest)
    async def embed(self, request: HTTPRequest) -> Response:
        check_embeds(self._service, pooled=True)
        body = await json_body(request, EmbedRequest)
        begun = time.monotonic()
        texts = [body.input] if isinstance(body.input, str) else body.input or []
        prompts = await asyncio.to_thread(self._tokens, texts, body.truncate is not False)
        n_embd = self._service.llm.model.config.n_embd
        vectors = []
        for tokens in prompts:
            [states] = await self._service.embed(tokens)
            vector = unit(states[: body.dimensions or n_embd])
            vectors.append(encoded(vector.tolist()))
        about = {
            "model": self._options.name,
            "total_duration": nanoseconds(time.monotonic() - begun),
            "load_duration": 0,
            "prompt_eval_count": sum(map(len, prompts)),
        }
        return json_response(json_object({**all_encoded(about), "embeddings": json_array(vectors)}))

    @describe("A text as a vector, of whatever length", EmbeddingsRequest)
    async def embeddings(self, request: HTTPRequest) -> Response:
        check_embeds(self._service, pooled=True)
        body = await json_body(request, EmbeddingsRequest)
        prompts = await asyncio.to_thread(self._tokens, [body.prompt] if body.prompt else [], True)
        vectors = [(await self._service.embed(tokens))[0].tolist() for tokens in prompts]
        return JSONResponse({"embedding": vectors[0] if vectors else []})

    def _tokens(self, texts: list[str], cut: bool) -> list[list[int]]:
        """The tokens of each text, cut to the context where that is wanted. Slow. Raises ApiError, ContextFull."""
        llm = self._service.llm
        n_ctx = llm.engine.n_ctx
        found = []
        for text in texts:
            if cut:
                text = llm.tokenizer.at_most(text, n_ctx)
            else:
                check_length([text], llm.tokenizer, n_ctx)
            tokens = llm.tokenizer.encode(text, True, False)
            if not tokens:
                raise ApiError("input: expected at least one token", param="input")
            if not cut:
                check_room(len(tokens), n_ctx, 0)
            found.append(tokens[:n_ctx])
        return found


def n_probs(body: AnswerFields) -> int:
    """As many as the sampler has to report for the answer's."""
    return 0 if body.n_top is None else max(1, body.n_top)


def checked_ids(ids: list[int], llm: LLM) -> list[int]:
    """Raises ApiError for what is no token."""
    n_vocab = llm.tokenizer.n_vocab
    if not all(0 <= token < n_vocab for token in ids):
        raise ApiError(f"context: expected token ids from 0 to {n_vocab - 1}", param="context")
    return ids


def error_form(error: ApiError) -> dict[str, Any]:
    """Ollama's JSON for an error."""
    return {"error": str(error)}


OLLAMA = API(routes, error_form, prefix="/api/", idle_paths=("/api/tags", "/api/ps", "/api/version"))
