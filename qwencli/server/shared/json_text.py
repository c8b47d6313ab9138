"""JSON that is put together from parts which are JSON already: what is long is encoded while it comes, not all at once at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from starlette.responses import Response

from ..http.sse import encoded


def json_object(fields: Mapping[str, str]) -> str:
    """An object whose values are JSON already."""
    return "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"


def json_array(items: Iterable[str]) -> str:
    """An array of what is JSON already."""
    return f"[{','.join(items)}]"


def all_encoded(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: encoded(value) for name, value in fields.items()}


def json_response(text: str) -> Response:
    return Response(text, media_type="application/json")
