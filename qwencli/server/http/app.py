"""The web application: the endpoints of some APIs, the page, and what holds for every request.

Which APIs there are is not known here. Their endpoints read their body by `requests.json_body`, pass every generation through
`requests.track`, describe themselves by `openapi.describe`, and raise QwenError or ApiError for what cannot be done. An endpoint is
cancelled when its client leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...errors import QwenError
from ..options import ServerOptions
from ..service.service import Service
from . import openapi, static
from .awake import Awake
from .cors import CrossOrigin
from .errors import ErrorForm, ErrorForms, error_response
from .folder import Folder
from .guard import Guarded
from .limits import Limited
from .logs import Recorded, reason, record_of
from .names import Capitalised
from .paths import Prefixed

HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


@dataclass(frozen=True)
class API:
    """An HTTP API."""

    routes: Callable[[Service, ServerOptions], list[Route]]
    """Its endpoints, for a service that has been started."""
    error_form: ErrorForm | None = None
    prefix: str = "/"
    """Errors on paths that start so have that form; where the prefixes of several APIs fit, the longest counts."""
    open_paths: Collection[str] = ()
    """Those that ask for no key."""
    polled_paths: Collection[str] = ()
    """Those that programs ask every second, which are logged only where they fail."""
    idle_paths: Collection[str] = ()
    """Those that are answered by GET without the model: they neither load it where it is unloaded, nor count as its use."""


def build_app(service: Service, options: ServerOptions, apis: Sequence[API]) -> Starlette:
    """The application, for a service that has been started."""
    service.only = options.only
    folder = Folder(options.static_path) if options.static_path else None
    pages = static.routes() if options.ui and not folder else []
    endpoints = [route for api in apis for route in api.routes(service, options)]
    forms = ErrorForms({api.prefix: api.error_form for api in apis if api.error_form})
    routes = [
        *pages,
        *endpoints,
        openapi.route(endpoints, forms, options.api_prefix),
        *([folder] if folder else []),
    ]
    health = {options.health_path} if options.health_path else set()
    open_paths = {page.path for page in pages}.union(health, *(api.open_paths for api in apis))
    idle_paths = health.union(*(api.idle_paths for api in apis))
    uses = [
        route for route in endpoints if route.path not in idle_paths or "GET" not in (route.methods or ())
    ]
    polled_paths = health.union(*(api.polled_paths for api in apis))
    middleware = [
        Middleware(Capitalised),
        Middleware(CrossOrigin, origins=options.cors_origins),
        Middleware(
            Recorded,
            service=service,
            options=options,
            headers=HEADERS,
            error_forms=forms,
            polled_paths=polled_paths,
        ),
        Middleware(Guarded, options=options, open_paths=open_paths, folder=folder, closed=endpoints),
        *([Middleware(Prefixed, prefix=options.api_prefix)] if options.api_prefix else []),
        Middleware(Limited, options=options),
        Middleware(Awake, service=service, routes=uses),
    ]
    return Starlette(
        routes=routes, middleware=middleware, exception_handlers={HTTPException: failed, QwenError: failed}
    )


async def failed(request: Request, error: Exception) -> Response:
    """An error as an answer. A coroutine, since Starlette calls a plain function in a thread."""
    record = record_of(request.scope)
    record.error = reason(error)
    return error_response(record.error_form, error)
