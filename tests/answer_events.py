"""Answers fed to an AnswerParser in pieces, for several tests."""

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

from qwencli.text.chat.answers import AnswerParser, Event, ToolCall

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "n": {"type": "integer"},
                    "x": {"type": "number"},
                    "flag": {"type": "boolean"},
                    "list": {"type": "array"},
                    "map": {"type": "object"},
                    "nothing": {"type": "null"},
                },
            },
        },
    }
]


def joined(events: Iterable[Event]) -> list[Event]:
    """Neighbours of one kind as one; calls stay single. No event is empty."""
    out: list[Event] = []
    for kind, group in itertools.groupby(events, type):
        if kind is ToolCall:
            out += group
        else:
            texts = [event.text for event in group]
            assert all(texts), "an empty event"
            out.append(kind("".join(texts)))
    return out


def events_of(
    text: str, *, thinking: bool = False, tools: Sequence[dict[str, Any]] | None = None, size: int = 0
) -> list[Event]:
    """The joined events of a text in pieces of `size` characters, 0 for one piece."""
    parser = AnswerParser(thinking, tools)
    events = [
        event
        for i in range(0, len(text), size or max(1, len(text)))
        for event in parser.add(text[i : i + (size or len(text))])
    ]
    return joined(events + parser.end())


def in_random_pieces(
    text: str, rng: random.Random, *, thinking: bool = False, tools: Sequence[dict[str, Any]] | None = None
) -> list[Event]:
    parser, events, at = AnswerParser(thinking, tools), [], 0
    while at < len(text):
        n = rng.choice([0, 1, 1, 2, 5, 11, 30])
        events += parser.add(text[at : at + n])
        at += n
    return joined(events + parser.end())
