"""Requests that need the model load it where it is not in memory, and keep it there while they are answered."""

from __future__ import annotations

from collections.abc import Sequence

from starlette._utils import get_route_path
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..service.service import Service
from .paths import leads_to


class Awake:
    """The innermost middleware. `routes` are those that need the model."""

    def __init__(self, app: ASGIApp, service: Service, routes: Sequence[Route]) -> None:
        self._app, self._presence, self._routes = app, service.presence, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not leads_to(self._routes, scope, get_route_path(scope)):
            return await self._app(scope, receive, send)
        async with self._presence.use():
            await self._app(scope, receive, send)
