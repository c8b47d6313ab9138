"""The path that Vertex AI posts its predictions to: each instance is a request to another endpoint, without streaming."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, cast

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Message, Scope

from ..http.app import API
from ..http.errors import ApiError, error_response
from ..http.logs import record_of
from ..http.openapi import describe
from ..http.requests import json_body
from ..options import ServerOptions
from ..service.service import Service

MAX_INSTANCES = 128
FORMAT = "@requestFormat"


class Instances(BaseModel):
    """The body of a request for predictions."""

    instances: Annotated[list[dict[str, Any]], Field(max_length=MAX_INSTANCES)]


def routes(service: Service, options: ServerOptions) -> list[Route]:
    """The one endpoint, where the server runs for Vertex AI."""
    return [Route(options.predict_path, predict, methods=["POST"])] if options.predict_path else []


@describe("Answer instances, each as the endpoint that it names", Instances)
async def predict(request: Request) -> Response:
    body = await json_body(request, Instances)
    named = formats(request.app.routes)
    predictions = await asyncio.gather(*(_prediction(request, named, each) for each in body.instances))
    return JSONResponse({"predictions": predictions})


def formats(routes: Sequence[BaseRoute]) -> dict[str, Route]:
    """Endpoints by their paths, and by names made of these: /v1/chat/completions is chatCompletions too.

    Of paths that make the same name those under /v1 come first.
    """
    posts = [
        route
        for route in routes
        if isinstance(route, Route)
        and "POST" in (route.methods or ())
        and "{" not in route.path
        and route.endpoint is not predict
    ]
    named: dict[str, Route] = {}
    for route in sorted(posts, key=lambda route: not route.path.startswith("/v1/")):
        first, *others = re.split("[/_-]", route.path.removeprefix("/v1").removeprefix("/"))
        named.setdefault(first + "".join(other[:1].upper() + other[1:] for other in others), route)
    return named | {route.path: route for route in posts}


async def _prediction(request: Request, named: dict[str, Route], instance: dict[str, Any]) -> Any:
    """What the endpoint answers, or an error in the form of one."""
    fields = dict(instance)
    name = fields.pop(FORMAT, None)
    route = named.get(name) if isinstance(name, str) else None
    if route is None:
        error = ApiError(f"{FORMAT}: expected the name of an endpoint, such as chatCompletions", param=FORMAT)
        return json.loads(bytes(error_response(record_of(request.scope).error_form, error).body))
    if "stream" in fields:
        fields["stream"] = False
    return await _answer(request.scope, route, json.dumps(fields).encode())


async def _answer(outer: Scope, route: Route, body: bytes) -> Any:
    """What an endpoint answers to a body: JSON, or its text."""
    scope = {
        **outer,
        "path": route.path,
        "raw_path": route.path.encode(),
        "query_string": b"",
        "root_path": "",
    }
    pieces: list[bytes] = []
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:  # whether the client has left is seen by whoever called us, and cancels this
            await asyncio.get_running_loop().create_future()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            pieces.append(cast(bytes, message.get("body", b"")))

    await route.handle(scope, receive, send)
    text = b"".join(pieces).decode()
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


VERTEX = API(routes)
