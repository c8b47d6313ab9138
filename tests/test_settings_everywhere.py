"""Each setting of the samplers has one range, one default and one help text, and options, requests, chats, files and the page all have
these."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import pytest
from gguf_builder import reciter
from pydantic import ValidationError

from qwencli.cli import cli
from qwencli.dialogue import settings as chat
from qwencli.dialogue.dialogue import Settings
from qwencli.dialogue.remote.protocol import sampling_fields
from qwencli.errors import InputError, ModelError
from qwencli.gguf.file import GGUFFile
from qwencli.sampling import NUMBERS, SETTINGS, SamplingParams
from qwencli.server.llamacpp.answer import settings as llama_cpp_settings
from qwencli.server.llamacpp.fields import CompletionFields
from qwencli.server.openai.fields import ChatRequest, CompletionRequest

COUNT = 2**31 - 1
RANGES: dict[str, tuple[float, float]] = {
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
    "adaptive_target": (-1.0, 1.0),
    "adaptive_decay": (0.0, 0.99),
    "min_keep": (0, COUNT),
    "n_probs": (0, COUNT),
}
NO_OPTION = {"min_keep", "n_probs"}
REQUESTS = {"temp": "temperature", "penalty_last_n": "repeat_last_n"}
"""Names of fields of requests that are not the setting's."""
FILES = {
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
"""llama.cpp's keys under general.sampling (common/common.cpp)."""
NEAREST = {
    "temp",
    "top_p",
    "min_p",
    "xtc_probability",
    "xtc_threshold",
    "mirostat",
    "adaptive_target",
    "adaptive_decay",
}
"""Settings whose nearest value llama.cpp takes for one that is out of range."""
BODIES: dict[type[Any], dict[str, Any]] = {
    ChatRequest: {"messages": [{"role": "user", "content": "Hi"}]},
    CompletionRequest: {"prompt": "Hi"},
    CompletionFields: {"prompt": "Hi"},
}


def whole(name: str) -> bool:
    return isinstance(RANGES[name][0], int)


def outside(name: str) -> list[float]:
    """The nearest values beyond both ends."""
    least, most = RANGES[name]
    if whole(name):
        return [least - 1, most + 1]
    return [math.nextafter(least, -math.inf), math.nextafter(most, math.inf)]


def test_the_table_is_what_it_was_written_down_as() -> None:
    assert {s.name: (s.least, s.most) for s in NUMBERS.values()} == RANGES
    assert {s.name: s.is_whole for s in NUMBERS.values()} == {name: whole(name) for name in RANGES}
    assert {s.name: s.request_name for s in NUMBERS.values() if s.request} == REQUESTS
    assert {s.name: s.file_key for s in NUMBERS.values() if s.file_key} == FILES
    assert all(s.help.endswith(".") for s in SETTINGS.values())


@pytest.mark.parametrize("name", RANGES)
def test_python_and_chats(name: str) -> None:
    before = Settings(SamplingParams())
    for value in RANGES[name]:
        assert getattr(SamplingParams(**{name: value}), name) == value
        if name in chat.names():
            after = chat.changed(before, {name: chat.parse(name, repr(value))})
            assert getattr(after.sampling, name) == value
    for value in outside(name):
        with pytest.raises(InputError, match=f"^{name} is "):
            SamplingParams(**{name: value})
        if name in chat.names():
            with pytest.raises(InputError, match=f"^{name} is "):
                chat.changed(before, {name: chat.parse(name, repr(value))})


def options_of(command: str) -> dict[str, click.Option]:
    context = click.Context(cli)
    found = cli.get_command(context, command)
    assert found
    return {str(o.name): o for o in found.params if isinstance(o, click.Option)}


@pytest.mark.parametrize("command", ["run", "chat", "serve"])
@pytest.mark.parametrize("name", RANGES)
def test_options(command: str, name: str) -> None:
    options = options_of(command)
    assert (name in options) == (name not in NO_OPTION)
    if name not in options:
        return
    o = options[name]
    assert isinstance(o.type, click.IntRange if whole(name) else click.FloatRange)
    assert (o.type.min, o.type.max) == RANGES[name]
    for value in RANGES[name]:
        assert o.type.convert(repr(value), o, None) == value
    for value in outside(name):
        with pytest.raises(click.BadParameter):
            o.type.convert(repr(value), o, None)
    assert o.help == SETTINGS[name].help


def test_help_names_every_option_with_its_range_and_its_default(call: Any) -> None:
    usual, more = (" ".join(call("run", option).out.split()) for option in ("--help", "--help-sampling"))
    for name in RANGES.keys() - NO_OPTION:
        shown = more if SETTINGS[name].group else usual
        least, most = RANGES[name]
        default = f" Default: {SETTINGS[name].default:g}." if SETTINGS[name].group else ""
        help = SETTINGS[name].help + default
        assert f"{SETTINGS[name].options[-1]} N {help} [{least}<=x<={most}]" in shown
        assert (SETTINGS[name].options[0] in usual) != (SETTINGS[name].options[0] in more)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", RANGES.keys() - {"n_probs"})
def test_requests(body: type[Any], name: str) -> None:
    field = REQUESTS.get(name, name)
    for value in RANGES[name]:
        assert getattr(body.model_validate(BODIES[body] | {field: value}), name) == value
    for value, nearest in zip(outside(name), RANGES[name]):
        if body is CompletionFields and name in NEAREST:
            assert getattr(body.model_validate(BODIES[body] | {field: value}), name) == nearest
        elif (name == "top_k" and value < 0) or (
            body is CompletionFields and name == "dry_base" and value < 1
        ):
            body.model_validate(BODIES[body] | {field: value})  # all tokens, and llama.cpp's default
        else:
            with pytest.raises(ValidationError, match=field):
                body.model_validate(BODIES[body] | {field: value})


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path) -> None:
    def recommended(value: float) -> Any:
        file = reciter()
        file.metadata |= {f"general.sampling.{FILES[name]}": ("i64" if whole(name) else "f64", value)}
        metadata = GGUFFile(file.write(tmp_path / "m.gguf")).metadata
        return getattr(SamplingParams.from_metadata(metadata), name)

    for value in RANGES[name]:
        assert recommended(value) == value
    for value in outside(name):
        if name == "top_k" and value < 0:
            assert recommended(value) == 0
        else:
            with pytest.raises(ModelError, match=re.escape(f"general.sampling.{FILES[name]}")):
                recommended(value)


def test_what_is_asked_of_other_servers_and_told_to_llama_cpp_s_clients() -> None:
    names = {REQUESTS.get(name, name) for name in RANGES}
    most = SamplingParams(**dict(zip(RANGES, (most for _, most in RANGES.values()))))  # type: ignore[arg-type]
    assert sampling_fields(most).keys() == names - {"n_probs", "typical_p"}  # its default is the most
    assert names <= llama_cpp_settings(most, 1, None).keys()


class Inputs(HTMLParser):
    """The attributes of a page's number fields, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, dict[str, str | None]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        if tag == "input" and fields.get("type") == "number":
            self.found[str(fields["name"])] = fields


def test_the_page() -> None:
    page = Path(__file__).resolve().parents[1] / "qwencli/server/web/index.html"
    inputs = Inputs()
    inputs.feed(page.read_text(encoding="utf-8"))
    settings = {name: SETTINGS[name] for name in RANGES if REQUESTS.get(name, name) in inputs.found}
    assert settings.keys() == {"temp", "top_k", "top_p", "min_p", "repeat_penalty"}
    for name in settings:
        fields = inputs.found[REQUESTS.get(name, name)]
        assert (float(fields["min"] or ""), float(fields["max"] or "")) == RANGES[name]
