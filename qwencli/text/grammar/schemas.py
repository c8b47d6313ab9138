"""JSON schemas without the keywords that ask for nothing, which llguidance would refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMATS = {
    "date-time",
    "date",
    "time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
    "unknown",
}
"""Those that llguidance holds answers to. All others are annotations (JSON Schema 2020-12, Validation, 7.2.1), such as "password"."""
SCHEMA = {
    "items",
    "additionalItems",
    "additionalProperties",
    "contains",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "not",
    "if",
    "then",
    "else",
}
SCHEMAS = {"anyOf", "oneOf", "allOf", "prefixItems", "items"}
NAMED_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
"""Keywords whose value is a schema, a list of schemas, or schemas by name."""
ANYTHING: tuple[Any, ...] = (True, {})
NOTHING_ASKED: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "propertyNames": ANYTHING,
    "unevaluatedItems": ANYTHING,
    "unevaluatedProperties": ANYTHING,
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "not": (False,),
}
"""Values with which a keyword allows all."""
ONLY_WITH = {"minContains": "contains", "maxContains": "contains", "then": "if", "else": "if"}
"""Keywords that say nothing without another one."""


def meaningful(schema: Any) -> Any:
    """The same schema without what asks for nothing, at every level."""
    if not isinstance(schema, Mapping):
        return schema
    kept = {}
    for key, value in schema.items():
        if asks_nothing(schema, key, value):
            continue
        if key in NAMED_SCHEMAS and isinstance(value, Mapping):
            value = {name: meaningful(each) for name, each in value.items()}
        elif key in SCHEMAS and isinstance(value, list):
            value = [meaningful(each) for each in value]
        elif key in SCHEMA:
            value = meaningful(value)
        kept[key] = value
    return kept


def asks_nothing(schema: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether this keyword of a schema allows all."""
    if key == "format":
        return isinstance(value, str) and value not in FORMATS
    if key in ONLY_WITH:
        return ONLY_WITH[key] not in schema
    if key == "if":
        return not {"then", "else"} & schema.keys()
    return any(type(value) is type(empty) and value == empty for empty in NOTHING_ASKED.get(key, ()))
