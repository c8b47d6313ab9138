"""The settings of a chat by their names, as a user types them or a file holds them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from ..errors import InputError
from ..sampling import SETTINGS, parse_logit_bias, parse_samplers
from .dialogue import Settings

TYPES = {s.name: s.type for s in SETTINGS.values() if not s.of_report} | {
    f.name: str(f.type) for f in fields(Settings) if f.name not in ("sampling", "tools")
}
"""All settings, and their types as the dataclasses spell them."""
EXPECTED = {
    "float": "a number",
    "int": "a whole number",
    "bool": "on or off",
    "dry_sequence_breakers": 'JSON, such as ["\\n", ":"]',
}
SWITCH = {"on": True, "off": False}


def names() -> list[str]:
    """The names of all settings."""
    return list(TYPES)


def values(settings: Settings) -> dict[str, Any]:
    """All settings by name, for JSON."""
    found = {
        name: getattr(settings if hasattr(settings, name) else settings.sampling, name) for name in TYPES
    }
    found["logit_bias"] = shown("logit_bias", found["logit_bias"])  # JSON has no infinity
    return found


def changed(settings: Settings, new: Mapping[str, Any]) -> Settings:
    """The settings with new values for some, as `values` gives them. Raises InputError for unknown names and wrong values."""
    for name in new:
        check_name(name)
    new = {
        name: parse(name, value) if name == "logit_bias" and isinstance(value, str) else value
        for name, value in new.items()
    }
    sampling = {name: value for name, value in new.items() if not hasattr(settings, name)}
    return replace(
        settings,
        sampling=replace(settings.sampling, **sampling),
        **{name: new[name] for name in new.keys() - sampling.keys()},
    )


def parse(name: str, text: str) -> Any:
    """The value that a user means by `text`. Raises InputError."""
    check_name(name)
    kind, _, none = TYPES[name].partition(" | ")
    parsers: dict[str, Callable[[str], Any]] = {
        "float": float,
        "int": int,
        "bool": SWITCH.__getitem__,
        "samplers": parse_samplers,
        "dry_sequence_breakers": json.loads,
        "logit_bias": lambda text: (
            [parse_logit_bias(each) for each in text.split(";")] if text != "none" else []
        ),
    }
    if none and text == "none":
        return None
    key = name if name in parsers else kind
    try:
        return parsers[key](text)
    except (KeyError, ValueError, RecursionError):
        raise InputError(f"{name} is {text}, expected {EXPECTED[key]}{', or none' if none else ''}") from None


def shown(name: str, value: Any) -> str:
    """A setting's value as `parse` reads it."""
    if value is None or (name == "logit_bias" and not value):
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return value
    if name == "logit_bias":
        return ";".join(f"{token}{bias:+.6f}".rstrip("0").removesuffix(".") for token, bias in value)
    if name == "samplers":
        return ";".join(value)
    return json.dumps(value, ensure_ascii=False)


def check_name(name: str) -> None:
    """Raises InputError for the name of no setting."""
    if name not in TYPES:
        raise InputError(f"unknown setting {name}{suggestion(name, TYPES) or ': /set shows all'}")


def suggestion(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown word: the known ones that it resembles; "" if there are none."""
    near = [prefix + each for each in difflib.get_close_matches(word, list(known))]
    return f", did you mean {' or '.join(near)}?" if near else ""
