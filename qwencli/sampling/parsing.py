"""The settings that aren't numbers: how they are written, and what they may be."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import InputError

LETTERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
}
"""llama.cpp's letters for its samplers and their names, in its order."""
SAMPLERS = tuple(LETTERS.values())
"""Those that are used by default."""
LETTERS |= {"a": "adaptive_p"}
ALIASES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p"} | {
    alias: name
    for name in LETTERS.values()
    for alias in (name, name.replace("_", "-"), name.replace("_", ""))
}
MAX_TOKEN = 2**31 - 1
"""The largest id that a token can have."""
MAX_BIAS = 1e4
MAX_BREAKER = 40
"""The most bytes of a text that breaks repetitions; llama.cpp cuts longer ones off."""


def parse_samplers(value: str | Iterable[str]) -> tuple[str, ...]:
    """The samplers that are meant, by the names in SAMPLERS: from a list, or from a string with semicolons between the names.

    llama.cpp's other spellings are understood too: top-k, topk, nucleus, temp, typ. Raises InputError.
    """
    names = items(
        "samplers", [name for name in value.split(";") if name] if isinstance(value, str) else value
    )
    for name in names:
        if not isinstance(name, str) or name.strip().lower() not in ALIASES:
            raise InputError(f"there is no sampler {name!r}, expected some of {';'.join(LETTERS.values())}")
    return tuple(ALIASES[name.strip().lower()] for name in names)


def parse_sampler_letters(text: str) -> tuple[str, ...]:
    """Samplers by llama.cpp's letters, such as kpt. Raises InputError."""
    for letter in text:
        if letter not in LETTERS:
            known = ", ".join(f"{letter} {name}" for letter, name in LETTERS.items())
            raise InputError(f"there is no sampler with the letter {letter!r}, expected some of {known}")
    return tuple(LETTERS[letter] for letter in text)


def parse_logit_bias(text: str) -> tuple[int, float]:
    """A token and its bias as llama.cpp writes them: 15043+1, 15043-1.5, 15043-inf. Raises InputError."""
    match = re.fullmatch(r"\s*(\d{1,10})\s*([+-])\s*(\d{1,10}(?:\.\d*)?|\.\d+|inf)\s*", text, re.ASCII)
    if not match:
        raise InputError(
            f"the bias {text!r} is not understood, expected a token id and what is added to its logit, such as 15043+1,"
            " 15043-1.5 or 15043-inf"
        )
    return checked_bias([(int(match[1]), float(match[2] + match[3]))])[0]


def checked_bias(value: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of a token and its bias, from such pairs or a mapping. Raises InputError."""
    pairs = items("logit_bias", value.items() if isinstance(value, Mapping) else value)
    for pair in pairs:
        if len(items("logit_bias", pair)) != 2:
            raise InputError(f"logit_bias has {pair!r}, expected a token and its bias")
        token, bias = pair
        if type(token) is not int or not 0 <= token <= MAX_TOKEN:
            raise InputError(f"logit_bias names the token {token!r}, expected a token id")
        if (
            isinstance(bias, bool)
            or not isinstance(bias, (int, float))
            or not (-MAX_BIAS <= bias <= MAX_BIAS or bias == -math.inf)
        ):
            raise InputError(
                f"logit_bias is {bias!r} for token {token}, expected a value from {-MAX_BIAS:g} to {MAX_BIAS:g}, or -inf"
            )
    return tuple((token, float(bias)) for token, bias in pairs)


def checked_breakers(value: Any) -> tuple[str, ...]:
    """Texts that the DRY sampler can look for. Raises InputError."""
    texts = items("dry_sequence_breakers", value)
    for text in texts:
        try:
            size = len(text.encode())
        except (AttributeError, UnicodeEncodeError):
            size = 0
        if not 1 <= size <= MAX_BREAKER:
            raise InputError(
                f"a dry_sequence_breaker is {text!r}, expected a text of 1 to {MAX_BREAKER} bytes"
            )
    return texts


def items(name: str, value: Any) -> tuple[Any, ...]:
    """The items of a list, which the setting `name` is. Raises InputError for anything else, a text too."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InputError(f"{name} is {value!r}, expected a list")
    return tuple(value)
