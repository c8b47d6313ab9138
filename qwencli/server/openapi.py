"""The description of the API at /openapi.json, made of the routes and of the pydantic models that their endpoints read."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

F = TypeVar("F", bound=Callable[..., Any])
KEY = "described"


@dataclass(frozen=True)
class Description:
    summary: str
    body: type[BaseModel] | None
    answer: type[BaseModel] | None
    stream: bool


def describe(summary: str, body: type[BaseModel] | None = None, answer: type[BaseModel] | None = None,
             stream: bool = False) -> Callable[[F], F]:
    """For an endpoint: what it does, the models of its body and of its answer, and whether that may be a stream of events."""
    def decorate(endpoint: F) -> F:
        setattr(endpoint, KEY, Description(summary, body, answer, stream))
        return endpoint
    return decorate
