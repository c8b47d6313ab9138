"""Random JSON schemas of the kinds that people use, all of whose answers are short."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]
NAMES = [
    "name",
    "age",
    "tags",
    "status",
    "id",
    "price",
    "address",
    "items",
    "is_active",
    "größe",
    "created-at",
    "x",
]
WORDS = ["red", "green", "dark blue", "n/a", "Zürich", "日本", 'a "b"', "back\\slash", ""]
PATTERNS = [
    "^[a-z]{2,5}$",
    r"^\d{3}-\d{4}$",
    "^(yes|no|maybe)$",
    "^[A-Z][a-z]{1,6}( [A-Z][a-z]{1,6})?$",
    "^#[0-9a-f]{6}$",
]


def random_schema(seed: int) -> Schema:
    """A schema, mostly of objects, with the definitions that it refers to."""
    rng = random.Random(seed)
    kind = rng.choice([obj] * 6 + [array, any_of, linked, mapping])
    integers = {
        "x": {"type": "integer", "minimum": 0, "maximum": 99},
        "y": {"type": "integer", "minimum": -9, "maximum": 9},
    }
    point = {"type": "object", "properties": integers, "required": ["x", "y"], "additionalProperties": False}
    next_node = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
    node = {
        "type": "object",
        "properties": {"value": any_schema(rng, 2), "next": next_node},
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    about = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A thing",
        "description": "What it is",
    }
    return (about if rng.random() < 0.3 else {}) | kind(rng, 0) | {"$defs": {"point": point, "node": node}}


def any_schema(rng: random.Random, depth: int) -> Schema:
    kinds = [string, string, enum, integer, number, boolean, null, const, types, reference, formatted]
    if depth < 3:
        kinds += [obj, obj, array, array, any_of, all_of, mapping, pair]
    return rng.choice(kinds)(rng, depth + 1)


def obj(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(NAMES, rng.randint(0, 5 - depth))
    required = [name for name in names if rng.random() < 0.6]
    schema: Schema = {
        "type": "object",
        "properties": {name: any_schema(rng, depth) for name in names},
        "additionalProperties": False,
    }
    return schema | ({"required": required} if required else {})


def mapping(rng: random.Random, depth: int) -> Schema:
    key = {"patternProperties": {"^[a-z]{1,4}$": any_schema(rng, 2)}, "additionalProperties": False}
    return {"type": "object", "minProperties": rng.randint(0, 1), "maxProperties": 2} | key


def array(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(0, 2)
    return {
        "type": "array",
        "items": any_schema(rng, depth + 1),
        "minItems": low,
        "maxItems": low + rng.randint(0, 2),
    }


def pair(rng: random.Random, depth: int) -> Schema:
    return {
        "type": "array",
        "prefixItems": [any_schema(rng, depth), any_schema(rng, depth)],
        "items": False,
        "minItems": 2,
    }


def any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [any_schema(rng, depth) for _ in range(rng.randint(1, 3))]}


def all_of(rng: random.Random, depth: int) -> Schema:
    a, b = rng.sample(NAMES, 2)
    return {
        "allOf": [
            {"type": "object", "properties": {name: any_schema(rng, depth + 1)}, "required": [name]}
            for name in (a, b)
        ],
        "properties": {a: True, b: True},
        "additionalProperties": False,
    }


def linked(rng: random.Random, depth: int) -> Schema:
    """A list whose elements refer to its own definition."""
    return {"$ref": "#/$defs/node"}


def string(rng: random.Random, depth: int) -> Schema:
    if rng.random() < 0.3:
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    low = rng.randint(0, 3)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randint(1, 12)}


def formatted(rng: random.Random, depth: int) -> Schema:
    return {"type": "string", "format": rng.choice(["date", "time", "uuid", "ipv4", "date-time"])}


def enum(rng: random.Random, depth: int) -> Schema:
    return {"enum": rng.sample([*WORDS, 1, 2.5, None, True, ["a"], {"k": "v"}], rng.randint(1, 5))}


def const(rng: random.Random, depth: int) -> Schema:
    return {"const": rng.choice([*WORDS, 7, None, {"deep": [1, "two"]}])}


def integer(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(-500, 500)
    schema = {
        "type": "integer",
        rng.choice(["minimum", "exclusiveMinimum"]): low,
        rng.choice(["maximum", "exclusiveMaximum"]): low + 200,
    }
    return schema | ({"multipleOf": rng.choice([2, 5, 10])} if rng.random() < 0.2 else {})


def number(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(-50, 50) / 4
    return {
        "type": "number",
        rng.choice(["minimum", "exclusiveMinimum"]): low,
        "maximum": low + 7.25,
        "multipleOf": 0.25,
    }


def boolean(rng: random.Random, depth: int) -> Schema:
    return {"type": "boolean"}


def null(rng: random.Random, depth: int) -> Schema:
    return {"type": "null"}


def types(rng: random.Random, depth: int) -> Schema:
    return {"type": ["string", "null"], "maxLength": 8}


def reference(rng: random.Random, depth: int) -> Schema:
    return {"$ref": "#/$defs/point"}
