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
    """The first thing that is wrong, as `messages.0.role: Field required`."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return ApiError(f"{where}: {first['msg']}" if where else first["msg"], param=where or None)


def track(request: Request, generation: Generation) -> Generation:
    """To be called with each generation of a request: it is cancelled when the request is over, however that came, and logged with it."""
    record_of(request.scope).generations.append(generation)
    return generation
