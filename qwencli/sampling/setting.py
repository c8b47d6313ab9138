"""What is known of a setting of the samplers, stated once for everything that takes or shows it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of SamplingParams: what it is called elsewhere, its default and its help text."""

    name: str
    type: str
    """As the field's annotation spells it: float, int, int | None ..."""
    default: Any
    help: str
    group: str | None = None
    """The heading under which --help-sampling shows it; None: --help does."""
    flags: tuple[str, ...] | None = None
    """The options of the command line, llama.cpp's; None: one, made from the name; (): there is none."""
    request: str | None = None
    """The field of HTTP requests, where it has another name."""
    file_key: str | None = None
    """The key under `general.sampling.` by which a GGUF file recommends a value."""
    of_report: bool = False
    """It asks for a report on how tokens were chosen, and doesn't change the choice."""

    @property
    def options(self) -> tuple[str, ...]:
        return ("--" + self.name.replace("_", "-"),) if self.flags is None else self.flags

    @property
    def request_name(self) -> str:
        return self.request or self.name


@dataclass(frozen=True, kw_only=True)
class NumberSetting(Setting):
    """A setting that is a number from `least` to `most`, whole if `type` says so."""

    least: float
    most: float

    @property
    def is_whole(self) -> bool:
        return self.type != "float"


def number(default: float | None, least: float, most: float, help: str, **others: Any) -> Any:
    """A dataclass's field that is a NumberSetting; `others` are attributes of Setting."""
    return field(default=default, metadata={"help": help, "least": least, "most": most} | others)


def setting(default: Any, help: str, **others: Any) -> Any:
    """A dataclass's field that is a Setting of another kind."""
    return field(default=default, metadata={"help": help} | others)


def settings_of(owner: type[Any]) -> dict[str, Setting]:
    """The settings of a dataclass whose fields are made by `number` and `setting`, by name."""
    found = {}
    for f in fields(owner):
        kind = NumberSetting if "least" in f.metadata else Setting
        found[f.name] = kind(name=f.name, type=str(f.type), default=f.default, **f.metadata)
    return found
