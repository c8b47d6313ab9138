"""Who may use the server: those who know a key, and no web page that was not invited."""

from __future__ import annotations

import hmac
import re
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from ..options import ServerOptions
from ..sockets import is_address, is_loopback
from .cors import invites
from .errors import ApiError
from .folder import Folder
from .paths import leads_to, path_under

HOST = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::\d*)?")


class Guarded:
    """Asks for the key, except at `open_paths` and for files of `folder`, and refuses what other sites' pages send.

    A file with the path of one of the routes in `closed` is no file of the folder: the endpoint answers.
    """

    def __init__(
        self,
        app: ASGIApp,
        options: ServerOptions,
        open_paths: Collection[str] = (),
        folder: Folder | None = None,
        closed: Sequence[BaseRoute] = (),
    ) -> None:
        self._app, self._options = app, options
        self._open, self._folder, self._closed = set(open_paths), folder, closed
        self._keys = [key.encode() for key in options.api_keys]
        self._any_host = bool(options.api_keys) or not all(map(is_loopback, options.hosts))
        self._own_name = socket.gethostname().lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            self._check_site(scope, headers)
            if self._keys and not self._is_open(scope):
                self._check_key(headers)
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = path_under(self._options.api_prefix, scope["path"])
        if path in self._open or not self._folder:
            return path in self._open
        return not leads_to(self._closed, scope, path) and leads_to([self._folder], scope, path)

    def _check_key(self, headers: dict[bytes, bytes]) -> None:
        given = given_keys(headers)
        # all are compared, so that the time gives no hint
        if not sum(hmac.compare_digest(key, value) for key in self._keys for value in given):
            raise ApiError("the API key is missing or wrong", 401, code="invalid_api_key")

    def _check_site(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """A browser says which site's page sends a request. Any page can send one; only ours and those invited may use the model.

        A site that gives its own name the address of this machine (DNS rebinding) looks like ours, except for the name.
        """
        host = headers.get(b"host", b"").decode("latin-1").lower()
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        allowed = self._options.cors_origins
        if origin and not invites(allowed, origin) and origin.partition("://")[2] != host:
            raise ApiError("pages of other sites may not use this server; --cors-origins lets them", 403)
        if not self._any_host and not through_unix_socket(scope) and not self._is_here(host):
            raise ApiError(
                "the server is reached by a name that is not this machine's; use localhost, or set an API key",
                403,
            )

    def _is_here(self, host: str) -> bool:
        match = HOST.fullmatch(host)
        name = match[1] or match[2] if match else "?"
        return name in ("", "localhost", self._own_name) or name.endswith(".localhost") or is_address(name)


def through_unix_socket(scope: Scope) -> bool:
    """Whether a request came where no browser reaches, and where names mean nothing."""
    server = scope.get("server")
    return server is not None and server[1] is None


def given_keys(headers: Mapping[bytes, bytes]) -> list[bytes]:
    """The keys that a request names in either of the ways, b"" where it doesn't."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return [headers.get(b"x-api-key", b""), token.strip() if scheme.lower() == b"bearer" else b""]


def key_of(scope: Scope, keys: Iterable[str]) -> str:
    """Which of the keys a request was let in with, "" where none is asked for."""
    given = given_keys(dict(scope["headers"]))
    return next((key for key in keys if key.encode() in given), "")
