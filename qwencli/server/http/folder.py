"""A folder whose files anyone may read, in place of the page."""

from __future__ import annotations

import mimetypes
import os
from pathlib import Path

from starlette.responses import FileResponse
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from ...errors import InputError
from .static import TYPES

INDEX = "index.html"
MORE_TYPES = {
    "mjs": TYPES["js"],
    "json": "application/json",
    "map": "application/json",
    "webmanifest": "application/manifest+json",
    "wasm": "application/wasm",
    "woff": "font/woff",
    "woff2": "font/woff2",
    "txt": "text/plain; charset=utf-8",
    "md": "text/markdown; charset=utf-8",
}
"""Those that browsers insist on, or that Python's list lacks. The system's list counts for nothing: it differs from machine to machine."""
KNOWN = mimetypes.MimeTypes()
FILE = "qwencli.file"


class Folder(BaseRoute):
    """Answers GET for each file in the folder and below it, and for a folder with its index.html.

    What lies elsewhere is not found, also where a path or a link in the folder leads there. Raises InputError where there is no such
    folder.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise InputError(f"--path {path}: not a folder")
        self._root = os.path.realpath(path)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            return Match.NONE, {}
        found = self._found(scope["path"].removeprefix(scope.get("root_path", "")))
        return (Match.FULL, {FILE: found}) if found else (Match.NONE, {})

    def _found(self, path: str) -> str | None:
        """The file at a path, as it is found when all links are followed."""
        if not path.startswith("/") or "\0" in path or "\\" in path:
            return None
        try:
            found = os.path.realpath(os.path.join(self._root, path.lstrip("/")))
            if path.endswith("/"):
                found = os.path.realpath(os.path.join(found, INDEX))
            is_inside = os.path.commonpath([self._root, found]) == self._root
            return found if is_inside and os.path.isfile(found) else None
        except (OSError, ValueError):  # a name that is too long, or another drive
            return None

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = scope[FILE]
        answer = FileResponse(found, media_type=type_of(found), headers={"Cache-Control": "no-cache"})
        await answer(scope, receive, send)


def type_of(name: str) -> str:
    """The content type of a file, by its name."""
    ending = name.rpartition(".")[2].lower()
    known = TYPES.get(ending) or MORE_TYPES.get(ending)
    return known or KNOWN.guess_type(name)[0] or "application/octet-stream"
