"""What every endpoint does with a request: read its JSON, and tie its generations to it."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from ..service.generation import Generation
from .errors import ApiError
from .logs import record_of

M = TypeVar("M", bound=BaseModel)
LARGE = 1 << 16
"""Bytes of JSON from which on it is parsed in another thread than the event loop's."""
MAX_LISTS, MAX_VALUES = 20_000, 300_000
"""Lists and objects, and values, of a body. While JSON is parsed no other thread runs: half a second for 2 MiB of empty lists."""
KINDS = {"str", "int", "float", "bool"}


async def json_body(request: Request, model: type[M]) -> M:
    """The request's body as `model`, whatever its content type says. Raises ApiError, which names the field that is wrong."""
    body = await request.body()
    found = parsed(body, model) if len(body) < LARGE else await asyncio.to_thread(parsed, body, model)
    ping = getattr(found, "sse_ping_interval", None)  # here, so that every API with this field has it
    if ping is not None:
        record_of(request.scope).ping = ping if ping > 0 else None
    return found


def parsed(body: bytes, model: type[M]) -> M:
    """Raises ApiError."""
    if len(body) >= LARGE:
        check_amount(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


def check_amount(body: bytes) -> None:
    """Whether JSON has no more values than MAX_LISTS and MAX_VALUES, counted without parsing it. Raises ApiError."""
    n_lists, n_values = body.count(b"[") + body.count(b"{"), body.count(b",")
    if n_lists > MAX_LISTS or n_values > MAX_VALUES:  # some may stand in texts
        bare = body.replace(rb"\\", b"").replace(rb"\"", b"")
        if bare.count(b'"') <= MAX_VALUES:
            outside = b"".join(bare.split(b'"')[::2])
            n_lists, n_values = outside.count(b"[") + outside.count(b"{"), outside.count(b",")
        if n_lists > MAX_LISTS or n_values > MAX_VALUES:
            raise ApiError(
                f"the request has too many values, expected at most {MAX_VALUES}, and {MAX_LISTS} lists and objects",
                413,
            )


def invalid(error: ValidationError) -> ApiError:
    """What is wrong, as `messages.0.role: Field required`.

    Where a field may be of several kinds there are complaints about each of them; the deepest are about the one that was meant.
    """
    found = [
        (named(e["loc"]), str(e["msg"]).removeprefix("Value error, "))
        for e in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    where = max((name for name, _ in found), key=len)
    reasons = " or ".join(dict.fromkeys(reason for name, reason in found if name == where))
    field = ".".join(map(str, where))
    return ApiError(f"{field}: {reasons}" if field else reasons, param=field or None)


def named(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A place as a client knows it, without pydantic's names for the kinds of a value."""
    return tuple(
        part
        for part in loc
        if isinstance(part, int) or (part.isidentifier() and part.islower() and part not in KINDS)
    )


def track(request: Request, generation: Generation) -> Generation:
    """To be called with each generation of a request: it is cancelled when the request ends, for whatever reason, and logged with it."""
    record_of(request.scope).generations.append(generation)
    return generation
