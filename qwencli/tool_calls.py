"""Tool calls as Qwen models write them: JSON (Hermes; Qwen2.5, Qwen3) or XML (Qwen3-Coder, Qwen3.5), each within `<tool_call>`.

The formats are those that the models' chat templates ask for; where these leave something open, llama.cpp and vLLM are followed.
"""
from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""Reads from an Incoming; yields where it needs more text, returns T."""

SPACE = " \t\r\n"
MAX_CALL = 1 << 20  # characters: what is longer is given up and is text
MAX_DEPTH = 100  # levels of JSON: whoever gets the arguments walks them recursively


class ToolCall(NamedTuple):
    """A whole call of a tool, as soon as it is complete. The arguments are what JSON can say: finite numbers, valid Unicode."""
    name: str
    arguments: dict[str, Any]


class NotACall(Exception):
    """What began like a call turned out to be none."""


class Tags:
    """Strings to look for, `stops` among them. The first character of each occurs nowhere else in it."""

    def __init__(self, *tags: str, stops: Sequence[str] = ()) -> None:
        tags = (*tags, *stops)
        self.all, self.stops, self._any = tags, stops, re.compile("|".join(map(re.escape, tags)) or "(?!)")

    def search(self, text: str, start: int) -> tuple[int, str]:
        """Where the first tag begins, and the tag; or where the text's end may be the begin of one (else its end) and ""."""
        if found := self._any.search(text, start):
            return found.start(), found[0]
        begins = (text.rfind(tag[0], start) for tag in self.all if tag.startswith(text[max(start, text.rfind(tag[0], start)):]))
        return min((i for i in begins if i >= 0), default=len(text)), ""


class Incoming:
    """Text that arrives in pieces, for readers that never look back. What is read after `mark` is kept, up to MAX_CALL characters."""

    def __init__(self) -> None:
        self._text, self._at, self.ended = "", 0, False
        self._kept: list[str] | None = None
        self._n_left, self._barrier = 0, ""

    def add(self, text: str) -> None:
        self._text, self._at = self._text[self._at:] + text, 0

    def mark(self, barrier: str = "") -> None:
        """A call may begin here. It does not reach beyond the tag `barrier`."""
        self._kept, self._n_left, self._barrier = [], MAX_CALL, barrier

    def unmark(self) -> str:
        """What was read since `mark`."""
        text, self._kept = "".join(self._kept or ()), None
        return text

    def _more(self) -> Reading[bool]:
        """Wait for more text; False if none will come. Raises NotACall if none will come and a call was begun."""
        if not self.ended:
            yield
            return True
        if self._kept is not None:
            self._take(len(self._text))
            raise NotACall
        return False

    def _take(self, end: int) -> str:
        """The text up to index `end`. Raises NotACall after exactly MAX_CALL characters, however the text was cut into pieces."""
        full = self._kept is not None and end - self._at > self._n_left
        if full:
            end = self._at + self._n_left
        text, self._at = self._text[self._at:end], end
        if self._kept is not None:
            self._kept.append(text)
            self._n_left -= len(text)
        if full:
            raise NotACall
        return text

    def read(self, n: int) -> Reading[str]:
        """The next `n` characters, fewer at the end."""
        while len(self._text) - self._at < n and (yield from self._more()):
            pass
        return self._take(min(self._at + n, len(self._text)))

    def starts(self, *tags: str) -> Reading[str | None]:
        """The one of the tags that comes next, which is read, or None. None of the tags begins another."""
        while True:
            for tag in tags:
                if self._text.startswith(tag, self._at):
                    return self._take(self._at + len(tag))
            rest = self._text[self._at:self._at + max(map(len, tags))]
            if not any(tag.startswith(rest) for tag in tags) or not (yield from self._more()):
                return None

    def span(self, characters: str) -> Reading[str]:
        """All of the given characters that come next."""
        parts, other = [], re.compile(f"[^{re.escape(characters)}]")
        while True:
            found = other.search(self._text, self._at)
            parts.append(self._take(found.start() if found else len(self._text)))
            if found or not (yield from self._more()):
                return "".join(parts)

    def passage(self, tags: Tags) -> Reading[tuple[str, str]]:
        """Text as far as it has come, and the tag if one follows, which is not read; ("", "") at the end."""
        while True:
            end, tag = tags.search(self._text, self._at)
            if self.ended and not tag:
                end = len(self._text)
            if end > self._at or tag:
                return self._take(end), tag
            if not (yield from self._more()):
                return "", ""

    def until(self, tags: Tags) -> Reading[tuple[str, str]]:
        """All text of a call up to a tag, and the tag, which is read. Raises NotACall before a stop or the barrier."""
        if self._barrier:
            tags = Tags(*tags.all, stops=[*tags.stops, self._barrier])
        parts, tag = [], ""
        while not tag:
            text, tag = yield from self.passage(tags)
            parts.append(text)
        if tag in tags.stops:
            raise NotACall
        yield from self.read(len(tag))
        return "".join(parts), tag


OPEN, CLOSE, FUNCTION, FUNCTION_END, PARAMETER = "<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter="
IN_STRING, OUTSIDE_STRING = Tags('"', "\\", stops=["\n"]), Tags('"', CLOSE)
NAME_END, VALUE_END = Tags(">", stops=["<", "\n"]), Tags("</parameter>")
"""A newline is none in JSON's strings: otherwise an unpaired quote would swallow the calls that follow."""


Schemas = dict[str, Any]
"""JSON schemas of tools' arguments, by the tools' names. They are whatever a user wrote."""


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
    kind = yield from text.starts("{", FUNCTION)
    if kind == "{":
        return parse_json_call("{" + (yield from _json_rest(text)))
    if kind != FUNCTION:
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
        level = [child for v in level if isinstance(v, (dict, list)) for child in (v.values() if isinstance(v, dict) else v)]
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
            types |= {kind(value) for value in (values if isinstance(values, list) else [schema["const"]] if "const" in schema else [])}
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
    names = {type(None): "null", bool: "boolean", int: "integer", str: "string", dict: "object", list: "array"}
    return names.get(type(value), "")


def typed(text: str, types: set[str]) -> Any:
    """An XML parameter's value as one of its types, else as the string that it is.

    Templates write what is no string, object or array as Python does (`None`, `True`). Where no string is asked for, `null` says that
    there is no value.
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
    fits = kind(value) in types or (kind(value) == "integer" and "number" in types) or (value is None and "string" not in types)
    return value if fits and kind(value) != "string" else text
