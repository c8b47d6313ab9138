"""The web application: the endpoints of both APIs, the page, and what holds for every request.

An API is a module with `routes(service, config) -> list[Route]`. Its endpoints read their body by `requests.json_body`, pass every
generation through `requests.track`, describe themselves by `openapi.describe`, and raise QwenError or ApiError for what cannot be done.
An endpoint is cancelled when its client leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...errors import QwenError
from ..service.config import Config
from ..service.service import Service
from . import openapi, static
from .errors import error_response
from .guard import Guarded
from .limits import Limited
from .logs import Recorded, reason, record_of

APIS = ["openai.endpoints", "llamacpp.endpoints", "http.metrics"]
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class API(Protocol):
    """What a module of endpoints has."""

    def routes(self, service: Service, config: Config) -> list[Route]: ...


def build_app(service: Service, config: Config, apis: Sequence[API] | None = None) -> Starlette:
    """The application, for a service that has been started. `apis` are by default those of APIS."""
    pages = static.routes() if config.ui else []
    if apis is None:
        apis = [cast(API, import_module(f"..{name}", __package__)) for name in APIS]
    endpoints = [route for api in apis for route in api.routes(service, config)]
    routes = [*pages, *endpoints, openapi.route(endpoints)]
    middleware = [
        Middleware(Recorded, service=service, config=config, headers=HEADERS),
        Middleware(Guarded, config=config, open_paths=[page.path for page in pages]),
        Middleware(Limited, config=config),
    ]
    if config.cors_origins:
        invited = Middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
        middleware.insert(0, invited)
    return Starlette(
        routes=routes, middleware=middleware, exception_handlers={HTTPException: failed, QwenError: failed}
    )


async def failed(
    request: Request, error: Exception
) -> Response:  # Starlette calls a plain function in a thread
    record_of(request.scope).error = reason(error)
    return error_response(request.url.path, error)
