"""Endpoints of llama-server's that don't exist here, and why: some on purpose, some not yet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..http.errors import ApiError
from ..http.openapi import describe
from ..http.requests import json_body
from .fields import Adapters

ACTS = "this server does nothing on its machine but answer with its model: {} would let a web page act on it"
TOOLS, MCP, PROXY = ACTS.format("a tool"), ACTS.format("an MCP client"), ACTS.format("a proxy")
ONE_MODEL = "this server has one model: start one server for each"
AUDIO = "models with sound come later"
ABSENT = [
    ("/tools", "GET", 403, TOOLS),
    ("/tools", "POST", 403, TOOLS),
    ("/mcp", "GET", 403, MCP),
    ("/mcp", "POST", 403, MCP),
    ("/cors-proxy", "GET", 403, PROXY),
    ("/cors-proxy", "POST", 403, PROXY),
    ("/models", "POST", 501, ONE_MODEL),
    ("/models", "DELETE", 501, ONE_MODEL),
    ("/models/load", "POST", 501, ONE_MODEL),
    ("/models/unload", "POST", 501, ONE_MODEL),
    ("/models/sse", "GET", 501, ONE_MODEL),
    ("/audio/transcriptions", "POST", 501, AUDIO),
    ("/v1/audio/transcriptions", "POST", 501, AUDIO),
    ("/v1/audio/speech", "POST", 501, AUDIO),
]
"""Path, method, the status of the answer, and the reason in it."""


def routes() -> list[Route]:
    """Those endpoints, and the two about adapters, of which there are none."""
    return [
        *(Route(path, refusal(status, reason), methods=[method]) for path, method, status, reason in ABSENT),
        Route("/lora-adapters", adapters, methods=["GET"]),
        Route("/lora-adapters", change_adapters, methods=["POST"]),
    ]


def refusal(status: int, reason: str) -> Callable[[Request], Awaitable[Response]]:
    @describe(f"Refused: {reason}")
    async def refuse(request: Request) -> Response:
        raise ApiError(reason, status)

    return refuse


@describe("The LoRA adapters: none")
async def adapters(request: Request) -> Response:
    return JSONResponse([])


@describe("The scales of LoRA adapters, of which there are none", Adapters)
async def change_adapters(request: Request) -> Response:
    if (await json_body(request, Adapters)).root:
        raise ApiError("there are no LoRA adapters here, expected an empty list")
    return JSONResponse({"success": True})
