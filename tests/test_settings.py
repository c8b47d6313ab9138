"""Settings by their names: as text, as values, and what they may not be."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import pytest

from qwencli.dialogue.dialogue import Settings
from qwencli.dialogue.settings import changed, names, parse, shown, values
from qwencli.errors import InputError
from qwencli.sampling import NUMBERS, SamplingParams

OTHER: dict[str, Any] = {
    "temp": 0.5,
    "dynatemp_range": 0.25,
    "dynatemp_exponent": 2.0,
    "top_k": 7,
    "top_p": 0.125,
    "min_p": 0.5,
    "typical_p": 0.75,
    "top_n_sigma": 1.5,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.2,
    "repeat_penalty": 1.25,
    "frequency_penalty": -1.0,
    "presence_penalty": 1e-3,
    "penalty_last_n": -1,
    "dry_multiplier": 0.8,
    "dry_base": 2.0,
    "dry_allowed_length": 3,
    "dry_penalty_last_n": 100,
    "dry_sequence_breakers": ("\n", ";", "é"),
    "mirostat": 2,
    "mirostat_tau": 3.0,
    "mirostat_eta": 0.2,
    "adaptive_target": 0.4,
    "adaptive_decay": 0.5,
    "logit_bias": ((15, -math.inf), (16, 0.5), (17, -1000.0), (18, 1e-4)),
    "samplers": ("top_k", "temperature"),
    "min_keep": 2,
    "seed": 2**64 - 1,
    "max_tokens": 9,
    "think": False,
    "reasoning_budget": 0,
}
"""A value for each setting that is not its default."""


def default() -> Settings:
    return Settings(SamplingParams())


def get(settings: Settings, name: str) -> Any:
    return (
        getattr(settings, name, None)
        if name in ("max_tokens", "think", "reasoning_budget")
        else getattr(settings.sampling, name)
    )


def test_all_fields_are_settings() -> None:
    """But for those that no chat has a use for: a new one gets its place here."""
    every = {f.name for owner in (SamplingParams, Settings) for f in fields(owner)}
    assert (
        set(names())
        == every - {"sampling", "tools", "n_probs", "explain", "post_sampling_probs"}
        == OTHER.keys()
    )


@pytest.mark.parametrize("name", OTHER)
def test_what_is_shown_can_be_typed(name: str) -> None:
    for value in OTHER[name], get(default(), name):
        settings = changed(default(), {name: parse(name, shown(name, value))})
        assert get(settings, name) == value


def test_values_go_through_json() -> None:
    settings = changed(default(), OTHER)
    assert {name: get(settings, name) for name in OTHER} == OTHER
    text = json.dumps(values(settings), allow_nan=False)
    assert changed(default(), json.loads(text)) == settings
    assert changed(default(), json.loads(json.dumps(values(default())))) == default()


def test_settings_are_changed_whole_or_not_at_all() -> None:
    before = default()
    with pytest.raises(InputError):
        changed(before, {"temp": 0.5, "top_p": 2})
    assert before == default()
    assert changed(before, {"temp": 0.5}) != before == default()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temp", "1", 1.0),
        ("temp", "1e-1", 0.1),
        ("top_k", "-0", 0),
        ("seed", "none", None),
        ("think", "on", True),
        ("think", "none", None),
        ("samplers", "top-k;nucleus;temp", ("top_k", "top_p", "temperature")),
        ("logit_bias", "none", []),
        ("logit_bias", "15043+1;7-inf", [(15043, 1.0), (7, -math.inf)]),
        ("dry_sequence_breakers", '["\\n"]', ["\n"]),
    ],
)
def test_what_a_user_types(name: str, text: str, value: Any) -> None:
    assert parse(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temp", "hot", "temp is hot, expected a number"),
        ("top_k", "1.5", "top_k is 1.5, expected a whole number"),
        ("top_k", "none", "top_k is none, expected a whole number"),
        ("seed", "x", "seed is x, expected a whole number, or none"),
        ("think", "maybe", "think is maybe, expected on or off, or none"),
        ("temp", "nan", "temp is nan, expected a value from 0.0 to 100.0"),
        ("temp", "inf", "temp is inf, expected a value from 0.0 to 100.0"),
        ("temp", "-1", "temp is -1.0, expected a value from 0.0 to 100.0"),
        ("top_k", "9" * 5000, "expected a whole number"),
        ("logit_bias", "x", "the bias 'x' is not understood"),
        ("samplers", "foo", "there is no sampler 'foo'"),
        ("dry_sequence_breakers", "[" * 10**5, "expected JSON"),
        ("dry_sequence_breakers", "5", "dry_sequence_breakers is 5, expected a list"),
        ("max_tokens", "-1", "max_tokens is -1, expected a "),
        ("tmp", "1", "unknown setting tmp, did you mean temp?"),
        ("temperature", "1", "unknown setting temperature"),
        ("colour", "red", "unknown setting colour: /set shows all"),
        ("sampling", "1", "unknown setting sampling"),
        ("", "1", "unknown setting"),
    ],
)
def test_wrong_values_and_names(name: str, text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        changed(default(), {name: parse(name, text)})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("wrong", ["0", True, None, [], {}])
def test_values_of_a_wrong_type(name: str, wrong: Any) -> None:
    if name in names():
        with pytest.raises(InputError, match=f"^{name} is "):
            changed(default(), {name: wrong})
