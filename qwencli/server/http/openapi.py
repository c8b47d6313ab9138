"""The description of the API at /openapi.json, made from the routes and the pydantic models of their bodies."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ... import __version__
from .errors import ApiError, ErrorForm, ErrorForms

F = TypeVar("F", bound=Callable[..., Any])
KEY = "described"


@dataclass(frozen=True)
class Description:
    summary: str
    body: type[BaseModel] | None
    answer: type[BaseModel] | None
    stream: bool
    type: str | None


def describe(
    summary: str,
    body: type[BaseModel] | None = None,
    answer: type[BaseModel] | None = None,
    stream: bool = False,
    type: str | None = None,
) -> Callable[[F], F]:
    """Describes an endpoint: what it does, the models of its body and of its answer, and whether that may be a stream of events.

    `type` is the content type of an answer that isn't JSON.
    """

    def decorate(endpoint: F) -> F:
        setattr(endpoint, KEY, Description(summary, body, answer, stream, type))
        return endpoint

    return decorate


EXAMPLES = ApiError("what is wrong"), ApiError("what is wrong", 404, param="field", code="code")
"""Errors that have all that an API may tell of one, and as little as it can."""
JSON_TYPES: dict[type, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}
REFERENCE = "#/components/schemas/"


def route(routes: Sequence[BaseRoute], forms: ErrorForms, prefix: str = "") -> Route:
    """/openapi.json for those of `routes` that are described, all of which are under `prefix`."""

    @cache
    def text() -> bytes:
        return json.dumps(
            document(routes, forms) | ({"servers": [{"url": prefix}]} if prefix else {})
        ).encode()

    async def openapi(
        request: Request,
    ) -> Response:  # made when it is asked for: that takes as long as importing all of NumPy
        return Response(await asyncio.to_thread(text), media_type="application/json")

    return Route("/openapi.json", openapi)


async def build_models(routes: Sequence[BaseRoute]) -> None:
    """Build the models of all bodies, one after the other: pydantic would do so when the first request of each kind comes."""
    for route in routes:
        description = getattr(getattr(route, "endpoint", None), KEY, None)
        if description and description.body:
            description.body.model_rebuild()
            await asyncio.sleep(0.01)  # requests come first


def document(routes: Sequence[BaseRoute], forms: ErrorForms) -> dict[str, Any]:
    """OpenAPI 3.1."""
    described = [
        (route, description)
        for route in routes
        if isinstance(route, Route) and (description := getattr(route.endpoint, KEY, None))
    ]
    models = {model for _, d in described for model in (d.body, d.answer) if model}
    wanted = sorted(models, key=lambda model: model.__name__)
    names, schemas = models_json_schema(
        [(model, "validation") for model in wanted], ref_template=REFERENCE + "{model}"
    )
    references = {model: reference for (model, _), reference in names.items()}
    paths: dict[str, dict[str, Any]] = {}
    for route, description in described:
        for method in sorted((route.methods or {"GET"}) - {"HEAD"}):
            paths.setdefault(re.sub(r":\w+}", "}", route.path), {})[method.lower()] = operation(
                method, route.path, description, references, error_name(forms.prefix_of(route.path))
            )
    return {
        "openapi": "3.1.0",
        "info": {"title": "qwencli", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {error_name(prefix): error_schema(form) for prefix, form in forms.items()}
            | schemas.get("$defs", {}),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def operation(
    method: str, path: str, description: Description, references: Mapping[Any, Any], error: str
) -> dict[str, Any]:
    answer = (
        {"application/json": {"schema": references[description.answer] if description.answer else {}}}
        if not description.type
        else {description.type: {"schema": {"type": "string"}}}
    )
    if description.stream:
        answer["text/event-stream"] = {}
    found: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}"),
        "summary": description.summary,
        "responses": {
            "200": {"description": "The answer", "content": answer},
            "default": {
                "description": "What is wrong",
                "content": {"application/json": {"schema": {"$ref": REFERENCE + error}}},
            },
        },
    }
    if names := re.findall(r"{(\w+)", path):
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if description.body and method == "POST":
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": references[description.body]}},
        }
    return found


def error_name(prefix: str) -> str:
    """The name of the schema for errors on paths that begin so: Error, ErrorV1, ErrorV1Messages."""
    return "Error" + "".join(word.capitalize() for word in re.findall(r"\w+", prefix))


def error_schema(form: ErrorForm) -> dict[str, Any]:
    return schema_of([form(error) for error in EXAMPLES])


def schema_of(values: Sequence[Any]) -> dict[str, Any]:
    """A schema that some JSON values follow."""
    if all(isinstance(value, dict) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        return {
            "type": "object",
            "required": [name for name in names if all(name in value for value in values)],
            "properties": {name: schema_of([v[name] for v in values if name in v]) for name in names},
        }
    return {"type": list(dict.fromkeys(JSON_TYPES[type(value)] for value in values))}
