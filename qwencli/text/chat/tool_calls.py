"""Tool calls as Qwen models write them: JSON (Hermes; Qwen2.5, Qwen3) or XML (Qwen3-Coder, Qwen3.5), each within `<tool_call>`.

The formats are those that the models' chat templates ask for; where these leave something open, llama.cpp and vLLM are followed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .incoming import Incoming, NotACall, Reading, Tags

SPACE = " \t\r\n"
OPEN, CLOSE, FUNCTION, FUNCTION_END, PARAMETER = (
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "</function>",
    "<parameter=",
)
IN_STRING, OUTSIDE_STRING = Tags('"', "\\", stops=["\n"]), Tags('"', CLOSE)
NAME_END, VALUE_END = Tags(">", stops=["<", "\n"]), Tags("</parameter>")
"""JSON's strings hold no newlines: otherwise an unpaired quote would swallow the calls that follow."""
MAX_DEPTH = 100
"""Levels of JSON: those who get the arguments walk them recursively."""
Schemas = dict[str, Any]
"""JSON schemas of tools' arguments, by the tools' names. They are whatever a user wrote."""


@dataclass(frozen=True)
class ToolCall:
    """A whole call of a tool, as soon as it is complete. The arguments are what JSON can say: finite numbers, valid Unicode."""

    name: str
    arguments: dict[str, Any]


def schemas_of(tools: Sequence[Mapping[str, Any]]) -> Schemas:
    """From OpenAI's tool definitions, or from what these have in `function`."""
    functions = [mapping(mapping(tool).get("function", tool)) for tool in tools]
    return {f["name"]: f.get("parameters") for f in functions if isinstance(f.get("name"), str)}


def read_call(text: Incoming, schemas: Schemas) -> Reading[ToolCall]:
    """The call whose first tag comes next. XML parameters get the types that the schemas say.

    Raises NotACall as soon as it is clear that there is none.
    """
    opened = yield from text.starts(OPEN)
    if opened:
        yield from text.span(SPACE)
    begin = yield from text.starts("{", FUNCTION)
    if begin == "{":
        return parse_json_call("{" + (yield from _json_rest(text)))
    if begin != FUNCTION:
        raise NotACall
    call = yield from _xml_call(text, schemas)
    if opened:  # Qwen3-Coder leaves the opening tag out at times
        yield from text.span(SPACE)
        if not (yield from text.starts(CLOSE)):
            raise NotACall
    return call


def _json_rest(text: Incoming) -> Reading[str]:
    """What follows up to a closing tag that is not within a string."""
    parts, in_string = [], False
    while True:
        part, tag = yield from text.until(IN_STRING if in_string else OUTSIDE_STRING)
        parts.append(part)
        if tag == CLOSE:
            return "".join(parts)
        parts.append(tag)
        if tag == "\\":
            parts.append((yield from text.read(1)))
        else:
            in_string = not in_string


def parse_json_call(body: str) -> ToolCall:
    """`{"name": ..., "arguments": {...}}`; arguments may be left out, or be a string of JSON. Raises NotACall."""
    try:
        call = json_value(body)
        arguments = call.get("arguments")
        if isinstance(arguments, str):
            arguments = json_value(arguments)
    except ValueError:
        raise NotACall from None
    arguments = {} if arguments is None else arguments
    name = call.get("name")
    if not (isinstance(name, str) and name and isinstance(arguments, dict)):
        raise NotACall
    return ToolCall(name, arguments)


def json_value(text: str) -> Any:
    """A JSON value that can be written as JSON and UTF-8 again, at most MAX_DEPTH levels deep. Raises ValueError."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for v in level
            if isinstance(v, (dict, list))
            for child in (v.values() if isinstance(v, dict) else v)
        ]
    if level:
        raise ValueError("nested too deeply")
    return value


def _xml_call(text: Incoming, schemas: Schemas) -> Reading[ToolCall]:
    """What follows `<function=`, up to `</function>`."""
    name = yield from _name(text)
    schema = mapping(schemas.get(name))
    properties = mapping(schema.get("properties"))
    arguments: dict[str, Any] = {}
    yield from text.span(SPACE)
    tag = yield from text.starts(PARAMETER, FUNCTION_END)
    while tag == PARAMETER:
        key = yield from _name(text)
        value, tag = yield from _value(text)
        arguments[key] = typed(value, types_of(properties.get(key), schema))
    if not tag:
        raise NotACall
    return ToolCall(name, arguments)


def _name(text: Incoming) -> Reading[str]:
    name, _ = yield from text.until(NAME_END)
    if not name:
        raise NotACall
    return name


def _value(text: Incoming) -> Reading[tuple[str, str]]:
    """A parameter's value without the newlines at its tags, and the tag after it: a closing tag that none follows is part of the value."""
    parts = []
    while True:
        part, closing = yield from text.until(VALUE_END)
        parts.append(part)
        space = yield from text.span(SPACE)
        if tag := (yield from text.starts(PARAMETER, FUNCTION_END)):
            return "".join(parts).removeprefix("\n").removesuffix("\n"), tag
        parts += [closing, space]


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` where it is an object, else an empty one: JSON from outside may hold anything in any place."""
    return value if isinstance(value, Mapping) else {}


def types_of(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The JSON types that a JSON schema names, through `anyOf` and the like, `enum`, and references within `root`."""
    types: set[str] = set()
    todo, seen = [schema], set()
    while todo:
        schema = todo.pop()
        if not isinstance(schema, Mapping) or id(schema) in seen:
            continue
        seen.add(id(schema))
        named, values = schema.get("type"), schema.get("enum")
        types |= {t for t in (named if isinstance(named, list) else [named]) if isinstance(t, str)}
        if not named:
            types |= {
                kind(value)
                for value in (
                    values if isinstance(values, list) else [schema["const"]] if "const" in schema else []
                )
            }
        for branches in map(schema.get, ("anyOf", "oneOf", "allOf")):
            todo += branches if isinstance(branches, list) else []
        if isinstance(path := schema.get("$ref"), str):
            target: Any = root
            for part in path.removeprefix("#/").split("/"):
                target = mapping(target).get(part)
            todo.append(target)
    return types


def kind(value: Any) -> str:
    """The name that JSON schemas have for a value's type."""
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    names = {
        type(None): "null",
        bool: "boolean",
        int: "integer",
        str: "string",
        dict: "object",
        list: "array",
    }
    return names.get(type(value), "")


def typed(text: str, types: set[str]) -> Any:
    """An XML parameter's value as one of its types, else as the string that it is.

    Templates write other values than strings, objects and arrays as Python does (`None`, `True`). Where no string is asked for, `null`
    means that there is no value.
    """
    if types <= {"string"}:
        return text
    word = text.strip()
    try:
        value = json_value({"True": "true", "False": "false", "None": "null"}.get(word, word))
    except ValueError:
        return text
    if kind(value) == "integer" and "integer" in types:
        return int(value)
    fits = (
        kind(value) in types
        or (kind(value) == "integer" and "number" in types)
        or (value is None and "string" not in types)
    )
    return value if fits and kind(value) != "string" else text
