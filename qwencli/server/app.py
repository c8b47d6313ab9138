"""The web application: the endpoints of both APIs, the page, and what holds for every request.

An API is a module with `routes(service, config) -> list[Route]`. Its endpoints read their body by `requests.json_body`, pass every
generation through `requests.track`, describe themselves by `openapi.describe`, and raise QwenError or ApiError for what cannot be done.
"""
from __future__ import annotations

from importlib import import_module

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from ..errors import QwenError
from .config import Config
from .errors import error_response
from .service import Service

APIS = ["openai", "llamacpp"]


def build_app(service: Service, config: Config) -> Starlette:
    routes: list[BaseRoute] = []
    for name in APIS:
        routes += import_module(f".{name}", __package__).routes(service, config)
    return Starlette(routes=routes, exception_handlers={HTTPException: failed, QwenError: failed})


def failed(request: Request, error: Exception) -> Response:
    return error_response(request.url.path, error)
