"""Chats at a terminal: a line editor with history and completion, Ctrl-C and Ctrl-D."""

from __future__ import annotations

from collections.abc import Iterable

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from ...dialogue.settings import names
from .._streams import say, warn
from .commands import COMMANDS, take
from .conversation import Chat
from .history import PrivateHistory, history_path
from .multiline import continued, finished


def converse(chat: Chat) -> None:
    """Take turns from the terminal until the user ends the chat."""
    session = line_editor()
    while not chat.ended:
        draft, chat.dialogue.draft = chat.dialogue.draft, ""
        try:
            text = session.prompt("> ", default=draft)
            take(chat, finished(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")))
        except EOFError:
            return
        except (KeyboardInterrupt, click.Abort):
            pass  # what was being done ends, the chat goes on


def may_drop() -> bool:
    """Ask whether the oldest turns may go. Raises click.Abort after Ctrl-D.

    The line editor asks: Python's own input() misses Ctrl-C between its prompt and its reading.
    """
    session: PromptSession[str] = PromptSession()
    while True:
        try:
            answer = session.prompt("The context is full. Drop the oldest turns? [Y/n]: ").strip().lower()
        except EOFError:
            raise click.Abort from None
        if answer in ("", "y", "yes"):
            return True
        if answer in ("n", "no"):
            return False


def line_editor() -> PromptSession[str]:
    path = history_path()
    return PromptSession(
        history=PrivateHistory(path, warn) if path else InMemoryHistory(),
        key_bindings=keys(),
        multiline=True,
        prompt_continuation="  ",
        completer=CommandCompleter(),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        reserve_space_for_menu=0,
        enable_suspend=True,
    )


def keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        begun = continued(buffer.text)
        if begun is None:
            buffer.validate_and_handle()
            return
        if begun != buffer.text:
            buffer.document = Document(begun)
        buffer.newline(copy_margin=False)

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    @keys.add("<sigint>")
    def clear_line(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            run_in_terminal(lambda: say("Ctrl-D or /bye ends the chat"))

    return keys


class CommandCompleter(Completer):
    """Completes commands and what may follow them: files, settings, words to choose from."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            yield from matching(COMMANDS, name)
        elif name in COMMANDS:
            arguments = COMMANDS[name].arguments
            if arguments == "FILE":
                yield from self._paths.get_completions(Document(argument), complete_event)
            elif arguments.startswith("[NAME"):
                yield from matching(names(), argument)
            elif "|" in arguments:
                yield from matching(arguments.split("|"), argument)


def matching(words: Iterable[str], begin: str) -> Iterable[Completion]:
    return (Completion(word, start_position=-len(begin)) for word in words if word.startswith(begin))
