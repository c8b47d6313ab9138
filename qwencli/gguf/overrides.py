"""Values of metadata that replace those of a file, as llama.cpp's `--override-kv` gives them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from ..errors import InputError
from .metadata import BOOL, NUMBERS, STRING, LazyArray, Metadata, MetadataValue

Scalar = bool | int | float | str
TYPES: dict[str, tuple[type, int]] = {
    "int": (int, 11),
    "float": (float, 12),
    "bool": (bool, BOOL),
    "str": (str, STRING),
}
"""The types of `--override-kv`: Python's, and the file's for a key that it doesn't have."""
MOST_KEY, MOST_STRING = 127, 127
"""Bytes of a key and of a string: llama.cpp has no room for more (`llama_model_kv_override` in llama.h)."""
FORM = "expected KEY=TYPE:VALUE with the type int, float, bool or str"


def read_overrides(text: str) -> dict[str, Scalar]:
    """The values of a list such as "qwen3.context_length=int:4096,general.name=str:mine". Of a key that comes twice the first value counts,
    as in llama.cpp. Raises InputError.
    """
    found: dict[str, Scalar] = {}
    for item in split_list(text):
        key, value = _read(item)
        found.setdefault(key, value)
    return found


def split_list(text: str) -> list[str]:
    """The items of a list with commas. An item that begins with a quote ends with one: it may have commas, and quotes that are doubled."""
    items, item, quoted, i = [], "", False, 0
    while i < len(text):
        letter = text[i]
        if letter == '"' and quoted and text[i + 1 : i + 2] == '"':
            item += letter
            i += 1
        elif letter == '"' and (quoted or not item):
            quoted = not quoted
        elif letter == "," and not quoted:
            items.append(item)
            item = ""
        else:
            item += letter
        i += 1
    return [*items, item]


def _read(item: str) -> tuple[str, Scalar]:
    key, has_value, rest = item.partition("=")
    kind, has_kind, value = rest.partition(":")
    what = f"the override {item[:60]!r}"
    if not (has_value and has_kind and kind in TYPES):
        raise InputError(f"{what}: {FORM}")
    if not 0 < len(key.encode()) <= MOST_KEY:
        raise InputError(f"{what}: the key has {len(key.encode())} bytes, expected 1 to {MOST_KEY}")
    if kind == "str":
        if len(value.encode()) > MOST_STRING:
            raise InputError(
                f"{what}: the string has {len(value.encode())} bytes, expected at most {MOST_STRING}"
            )
        return key, value
    if kind == "bool":
        if value not in ("true", "false"):
            raise InputError(f"{what}: expected true or false")
        return key, value == "true"
    if kind == "int":
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", value, re.ASCII) or not -(2**63) <= int(value) < 2**63:
            raise InputError(f"{what}: expected an integer of 64 bits")
        return key, int(value)
    try:
        number = float(value) if re.fullmatch(r"[+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?", value, re.ASCII) else None
    except ValueError:
        number = None
    if number is None or not math.isfinite(number):
        raise InputError(f"{what}: expected a number")
    return key, number


def overridden(metadata: Metadata, values: Mapping[str, Scalar]) -> Metadata:
    """The metadata with these values. Raises InputError for a value of another type than the file's: llama.cpp ignores those."""
    typed = dict(metadata.typed)
    for key, value in values.items():
        kind = next(name for name, (python, _) in TYPES.items() if type(value) is python)
        old = typed.get(key)
        expected = _kind(old) if old else kind
        if kind != expected:
            raise InputError(
                f"the override {key[:60]!r}: the file has a value of type {old.type_name if old else ''}, "
                + (f"expected {expected}:VALUE, not {kind}" if expected else "which can't be replaced")
            )
        typed[key] = MetadataValue(old.type if old else TYPES[kind][1], value)
    return Metadata(metadata.path, typed)


def _kind(old: MetadataValue) -> str | None:
    """The type in an override that fits a value of the file; None for arrays."""
    if isinstance(old.value, LazyArray):
        return None
    if old.type in NUMBERS:
        return "float" if NUMBERS[old.type] in "fd" else "int"
    return "bool" if old.type == BOOL else "str"
