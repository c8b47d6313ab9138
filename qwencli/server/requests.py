"""What all endpoints do with a request: read its JSON, and tie its generations to it."""
from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from .errors import ApiError
from .logs import record_of
from .service import Generation

M = TypeVar("M", bound=BaseModel)
LARGE = 1 << 16
"""Bytes of JSON that are read beside the event loop."""
KINDS = {"str", "int", "float", "bool"}


async def json_body(request: Request, model: type[M]) -> M:
    """The request's body as `model`, whatever its content type says. Raises ApiError, which names the field that is wrong."""
    body = await request.body()
    try:
        if len(body) < LARGE:
            return model.model_validate_json(body)
        return await asyncio.to_thread(model.model_validate_json, body)
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError) -> ApiError:
    """What is wrong, as `messages.0.role: Field required`.

    Where a field may be of several kinds, there are complaints of each of them: those that lie deepest are of the one that was meant.
    """
    found = [(named(e["loc"]), str(e["msg"]).removeprefix("Value error, "))
             for e in error.errors(include_url=False, include_context=False, include_input=False)]
    where = max((name for name, _ in found), key=len)
    reasons = " or ".join(dict.fromkeys(reason for name, reason in found if name == where))
    field = ".".join(map(str, where))
    return ApiError(f"{field}: {reasons}" if field else reasons, param=field or None)


def named(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A place as a client knows it, without pydantic's names for the kinds that a value may be of."""
    return tuple(part for part in loc if isinstance(part, int) or (part.isidentifier() and part.islower() and part not in KINDS))


def track(request: Request, generation: Generation) -> Generation:
    """To be called with each generation of a request: it is cancelled when the request is over, however that came, and logged with it."""
    record_of(request.scope).generations.append(generation)
    return generation
