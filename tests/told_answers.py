"""Answers of chats that a test makes up: whether the tiny model calls a tool is luck."""

from typing import Any

import pytest

from qwencli.text.chat.answers import Event


class Told:
    """A ChatAnswer with given events at its end."""

    def __init__(self, generation: Any, events: list[Event]) -> None:
        self.generation, self._events = generation, events

    def add(self, part: Any) -> list[Event]:
        return []

    def end(self) -> list[Event]:
        return self._events


def tell(monkeypatch: pytest.MonkeyPatch, api: str, *events: Event) -> None:
    """Answer chats of an API, the name of its folder, with these events."""
    monkeypatch.setattr(
        f"qwencli.server.{api}.endpoints.ChatAnswer", lambda asked, generation: Told(generation, [*events])
    )
