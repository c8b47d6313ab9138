"""A chat as its user sees it: answers are shown while they come, and what fails is told in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from ...dialogue.dialogue import CollectedAnswer, Dialogue, Events
from ...dialogue.settings import changed
from ...dialogue.transcript import load
from ...text.chat.answers import Event
from .._answers import AnswerPrinter, answer_fields
from .._bar import Bar
from .._streams import say, write_text

Show = Callable[[Iterator[Event]], None]


class Chat:
    """Runs what the user enters. `model` is the model's name in transcripts; `show` writes an answer as it comes."""

    def __init__(self, dialogue: Dialogue, model: str, show: Show) -> None:
        self.dialogue, self.model, self._show = dialogue, model, show
        self.ended = self.failed = False

    def answer(self, events: Events) -> None:
        """Show an answer. However it ends, the dialogue keeps what was written of it."""
        with closing(events):
            self._show(events)
        if self.dialogue.model.stop_reason == "context":
            say("the context is full, so the answer ends here; /undo and /clear make room")

    def fail(self, message: str) -> None:
        self.failed = True
        say(f"error: {message}")

    def load(self, path: str, chosen: dict[str, Any] | None = None) -> None:
        """Go on with a saved chat and its settings, except for the `chosen` ones. Changes nothing where that raises QwenError."""
        saved = load(path)
        settings = changed(saved.settings, chosen or {})
        settings.tools = self.dialogue.settings.tools
        self.dialogue.clear()
        self.dialogue.messages, self.dialogue.settings = list(saved.messages), settings


def printing(hide_thinking: bool, bar: Bar) -> Show:
    """Shows answers as text, each followed by a newline, and before that the progress of reading the prompt."""

    def show(events: Iterator[Event]) -> None:
        printer = AnswerPrinter(hide_thinking)
        shown = False
        bar.close()
        try:
            for event in events:
                bar.close()
                shown = True
                printer.add(event)
            shown = True  # an answer may be empty
        finally:
            bar.close()
            printer.end()
            if shown or sys.stdout.isatty():  # at a terminal it is a blank line before the next question
                write_text("\n")

    return show


def printing_json(dialogue: Dialogue) -> Show:
    """Shows each answer as one line of JSON."""

    def show(events: Iterator[Event]) -> None:
        answer = CollectedAnswer()
        for event in events:
            answer.add(event)
        about = {"stop_reason": dialogue.model.stop_reason, "timings": dialogue.model.stats()}
        write_text(json.dumps(answer_fields(answer) | about, ensure_ascii=False) + "\n")

    return show
