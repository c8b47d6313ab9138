"""How tokens are chosen: the settings of all samplers, where they come from, and what they may be."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import InputError, ModelError
from ..gguf.metadata import Metadata

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
"""llama.cpp's letters for its samplers, and their names, in its order."""
SAMPLERS = tuple(LETTERS.values())
ALIASES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p"} | {
    alias: name for name in SAMPLERS for alias in (name, name.replace("_", "-"), name.replace("_", ""))
}


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. The defaults are llama.cpp's, and so are the names, mostly those of its server.

    `samplers` says which are applied, one after the other, each to what the ones before have left; `logit_bias` comes before them all.
    `mirostat` 1 or 2 takes their place, behind `temp`. Raises InputError for a value that is out of range or of the wrong type.
    """

    temp: float = 0.8
    """0 takes the likeliest token that is left."""
    dynatemp_range: float = 0.0
    """The temperature lies between temp - range and temp + range: the more even the probabilities are, the higher. 0 = off."""
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    """Keep the k likeliest tokens. 0 = off."""
    top_p: float = 0.95
    """Keep the likeliest tokens that together have this probability. 1 = off."""
    min_p: float = 0.05
    """Keep tokens with at least this share of the likeliest one's probability. 0 = off."""
    typical_p: float = 1.0
    """Keep the tokens nearest to the expected surprise that together have this probability. 1 = off."""
    top_n_sigma: float = -1.0
    """Keep tokens whose logit is at most so many standard deviations below the largest. 0 and less = off."""
    xtc_probability: float = 0.0
    """How often all tokens of at least `xtc_threshold` are removed except the least likely of them. 0 = off."""
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    """Positive logits of the last `penalty_last_n` tokens are divided by it, negative ones multiplied. 1 = off."""
    frequency_penalty: float = 0.0
    """Subtracted from their logits for each time that they are among them. 0 = off."""
    presence_penalty: float = 0.0
    """Subtracted from their logits once. 0 = off."""
    penalty_last_n: int = 64
    """0 = off, -1 = all tokens."""
    dry_multiplier: float = 0.0
    """Tokens that would continue a repetition of n tokens lose multiplier * base ** (n - allowed_length). 0 = off."""
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    """In how many of the last tokens repetitions are looked for. 0 = off, -1 = all."""
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    """Repetitions don't reach across tokens with these texts."""
    mirostat: int = 0
    mirostat_tau: float = 5.0
    """The surprise, in bits, that is aimed at."""
    mirostat_eta: float = 0.1
    """How fast it gets there."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens and what is added to their logits; -inf forbids a token."""
    samplers: tuple[str, ...] = SAMPLERS
    min_keep: int = 0
    """What top_p, min_p, typ_p and xtc leave at least."""
    n_probs: int = 0
    """How many of the likeliest tokens are reported with each that is chosen."""
    explain: bool = False
    """Whether it is reported how many tokens each sampler left."""
    seed: int | None = None
    """Without it each run differs."""

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value, kind = getattr(self, name), (int,) if isinstance(DEFAULTS[name], int) else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind):
                raise InputError(
                    f"{name} is {value!r}, expected a {'number' if float in kind else 'whole number'}"
                )
            if not low <= value <= high:
                raise InputError(f"{name} is {value}, expected a value from {low} to {high}")
        if self.seed is not None and not (type(self.seed) is int and 0 <= self.seed < 2**64):
            raise InputError(f"seed is {self.seed!r}, expected a whole number from 0 to {2**64 - 1}")
        if not isinstance(self.explain, bool):
            raise InputError(f"explain is {self.explain!r}, expected True or False")
        object.__setattr__(self, "samplers", parse_samplers(self.samplers))
        object.__setattr__(self, "dry_sequence_breakers", checked_breakers(self.dry_sequence_breakers))
        object.__setattr__(self, "logit_bias", checked_bias(self.logit_bias))

    @classmethod
    def from_metadata(cls, metadata: Metadata, **chosen: Any) -> SamplingParams:
        """llama.cpp's defaults, over them the file's `general.sampling.*`, over both what is `chosen` and not None.

        Raises ModelError where the file's values cannot be followed, InputError for chosen ones.
        """
        params = cls()
        for field, key in FILE_KEYS.items():
            getter = metadata.integer if isinstance(getattr(params, field), int) else metadata.number
            low, high = LIMITS[field]
            value = getter(
                f"general.sampling.{key}", getattr(params, field), -(2**31) if field == "top_k" else low, high
            )
            params = replace(
                params, **{field: max(value, 0) if field == "top_k" else value}
            )  # as llama.cpp: -1 is all, too
        if (sequence := metadata.string("general.sampling.sequence", None)) and chosen.get(
            "samplers"
        ) is None:
            try:
                params = replace(params, samplers=parse_samplers(sequence))
            except InputError as error:
                raise ModelError(
                    f"{metadata.path}: metadata key 'general.sampling.sequence': {error}"
                ) from None
        names = {f.name for f in fields(cls)}
        return replace(
            params, **{name: value for name, value in chosen.items() if value is not None and name in names}
        )


COUNT = 2**31 - 1
LIMITS: dict[str, tuple[float, float]] = {
    "temp": (0.0, 100.0),
    "dynatemp_range": (0.0, 100.0),
    "dynatemp_exponent": (0.0, 100.0),
    "top_k": (0, COUNT),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "top_n_sigma": (-1.0, 100.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "repeat_penalty": (0.01, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "penalty_last_n": (-1, COUNT),
    "dry_multiplier": (0.0, 100.0),
    "dry_base": (1.0, 100.0),
    "dry_allowed_length": (1, COUNT),
    "dry_penalty_last_n": (-1, COUNT),
    "mirostat": (0, 2),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 100.0),
    "min_keep": (0, COUNT),
    "n_probs": (0, COUNT),
}
FILE_KEYS = {
    "temp": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "repeat_penalty": "penalty_repeat",
    "penalty_last_n": "penalty_last_n",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
"""Our names and those of the keys under `general.sampling.` in a GGUF file."""
DEFAULTS = {f.name: f.default for f in fields(SamplingParams)}
MAX_BIAS = 1e4
MAX_BREAKER = 40
"""Bytes of a text that breaks repetitions; llama.cpp cuts longer ones."""


def parse_samplers(value: str | Iterable[str]) -> tuple[str, ...]:
    """Names of samplers, one by one or in a string with semicolons between them, as SAMPLERS has them.

    llama.cpp's other spellings are understood too: top-k, topk, nucleus, temp, typ. Raises InputError.
    """
    names = items(
        "samplers", [name for name in value.split(";") if name] if isinstance(value, str) else value
    )
    for name in names:
        if not isinstance(name, str) or name.strip().lower() not in ALIASES:
            raise InputError(f"there is no sampler {name!r}, expected some of {';'.join(SAMPLERS)}")
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
    pairs = items("logit_bias", value.items() if isinstance(value, Mapping) else value)
    for pair in pairs:
        if len(items("logit_bias", pair)) != 2:
            raise InputError(f"logit_bias has {pair!r}, expected a token and its bias")
        token, bias = pair
        if type(token) is not int or not 0 <= token <= COUNT:
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
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InputError(f"{name} is {value!r}, expected a list")
    return tuple(value)
