"""Tool calls as Qwen models write them: JSON (Hermes; Qwen2.5, Qwen3) or XML (Qwen3-Coder, Qwen3.5), each within `<tool_call>`.

The formats are those that the models' chat templates ask for; where these leave something open, llama.cpp and vLLM are followed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .incoming import Incoming, NotACall, Reading, Tags

SPACE = " \t\r\n"
OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
IN_STRING, OUTSIDE_STRING = Tags('"', "\\", stops=["\n"]), Tags('"', CLOSE, OPEN)
NAME_END, VALUE_END = Tags(">", stops=["<", "\n"]), Tags(PARAMETER_END, PARAMETER, FUNCTION_END)
WORD_END = Tags(">", "<", "\n")
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

    At the end of the text, or before another call, the closing tag may be missing: models leave it out at times.

    Raises NotACall as soon as it is clear that there is none.
    """
    opened = yield from text.starts(OPEN)
    if opened:
        yield from text.span(SPACE)
    begin = yield from text.starts("{", FUNCTION)
    if begin == "{":
        try:
            body = "{" + (yield from _json_rest(text))
        except NotACall:
            if text.left != "":
                raise
            body = without_tag(text.kept[len(OPEN) :])
        return parse_json_call(body)
    if begin != FUNCTION:
        raise NotACall
    call = yield from _xml_call(text, schemas, opened is not None)
    if opened:  # Qwen3-Coder leaves the opening tag out at times
        yield from _close(text)
    return call


def _close(text: Incoming) -> Reading[None]:
    """Read a closing tag, which another call or the end of the text stands for, too."""
    end = text.place
    try:
        yield from text.span(SPACE)
        tag = yield from text.starts(CLOSE, OPEN)
        if not tag:
            raise NotACall
        if tag == OPEN:
            text.rewind(end)
    except NotACall:
        text.rewind(end)
        if (left := text.left) is None or without_tag(left).strip(SPACE):
            raise
        yield from text.read(len(left))


def without_tag(text: str) -> str:
    """A text without the closing tag that it ends with the beginning of."""
    n = next((n for n in range(len(CLOSE) - 1, 0, -1) if text.endswith(CLOSE[:n])), 0)
    return text[: len(text) - n]


def _json_rest(text: Incoming) -> Reading[str]:
    """What follows up to a closing tag that is not within a string, or to another call."""
    parts, in_string = [], False
    while True:
        part, tag = yield from text.until(IN_STRING if in_string else OUTSIDE_STRING)
        parts.append(part)
        if tag == OPEN:
            text.rewind(text.place - len(tag))
        if tag in (OPEN, CLOSE):
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
            arguments = json_value(arguments) if arguments.strip() else {}
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


def _xml_call(text: Incoming, schemas: Schemas, opened: bool) -> Reading[ToolCall]:
    """What follows `<function=`, up to `</function>`. `opened`: there was an opening tag before."""
    name = yield from _name(text)
    schema = mapping(schemas.get(name))
    properties = mapping(schema.get("properties"))
    arguments: dict[str, Any] = {}
    yield from text.span(SPACE)
    tag = yield from text.starts(PARAMETER, FUNCTION_END)
    key = (yield from _name(text)) if tag == PARAMETER else ""

    def may_follow(name: str) -> bool:
        return name not in arguments and name != key and (name in properties or not properties)

    while tag == PARAMETER:
        value, tag, following = yield from _value(text, may_follow, opened)
        arguments[key] = typed(value, types_of(properties.get(key), schema))
        key = following
    if not tag:
        raise NotACall
    return ToolCall(name, arguments)


def _name(text: Incoming) -> Reading[str]:
    name, _ = yield from text.until(NAME_END)
    if not name:
        raise NotACall
    return name


def _value(text: Incoming, may_follow: Callable[[str], bool], opened: bool) -> Reading[tuple[str, str, str]]:
    """A parameter's value without the newlines at its tags, the tag after it, and the name of the parameter that this tag begins.

    A value ends at `</parameter>`, where another tag follows. Models leave that out at times: then it ends where a parameter begins that
    may follow, or at `</function>`, where the call ends with it or the text holds no other end. All other tags are part of the value.
    """
    parts: list[str] = []
    other_end: tuple[int, int] | None = None  # parts of the value, and the place after the tag
    try:
        while True:
            part, tag = yield from text.until(VALUE_END)
            parts.append(part)
            if tag == PARAMETER_END:
                space = yield from text.span(SPACE)
                if after := (yield from text.starts(PARAMETER, FUNCTION_END)):
                    following = (yield from _name(text)) if after == PARAMETER else ""
                    return trimmed(parts), after, following
                parts += [tag, space]
            elif tag == PARAMETER:
                word, closing = yield from _word(text)
                if closing and may_follow(word) and begins_line(parts):
                    return trimmed(parts), PARAMETER, word
                parts += [tag, word, closing]
            else:
                end = len(parts), text.place
                other_end = other_end or end
                over, rest = yield from _call_ends(text, opened)
                if over:
                    other_end = end
                    raise NotACall
                parts += [tag, rest]
    except NotACall:
        if not other_end:
            raise
        text.rewind(other_end[1])
        return trimmed(parts[: other_end[0]]), FUNCTION_END, ""


def _word(text: Incoming) -> Reading[tuple[str, str]]:
    """What may be the name in a tag, and `>` where the tag ends so, else ""."""
    parts, tag = [], ""
    while not tag:
        part, tag = yield from text.passage(WORD_END)
        parts.append(part)
    return "".join(parts), (yield from text.read(1)) if tag == ">" else ""


def _call_ends(text: Incoming, opened: bool) -> Reading[tuple[bool, str]]:
    """Whether a call ends with the `</function>` that was read: the answer ends, or another call follows. Else what was read meanwhile."""
    rest = ""
    try:
        rest = yield from text.span(SPACE)
        if opened:
            tag = yield from text.starts(CLOSE, OPEN)
            if tag != CLOSE:
                return tag == OPEN, rest
            rest += CLOSE + (yield from text.span(SPACE))
        return bool((yield from text.starts(OPEN, *(() if opened else (FUNCTION, CLOSE))))), rest
    except NotACall:
        if text.left != "":
            raise
        return True, ""


def trimmed(parts: Sequence[str]) -> str:
    return "".join(parts).removeprefix("\n").removesuffix("\n")


def begins_line(parts: Sequence[str]) -> bool:
    """Whether a tag after these parts of a value would stand in a line of its own; anywhere where the value itself does not."""
    return not next((part for part in parts if part), "").startswith("\n") or next(
        part for part in reversed(parts) if part
    ).endswith("\n")


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
