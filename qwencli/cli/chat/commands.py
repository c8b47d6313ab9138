"""What a user can enter in a chat: questions, and commands. One table, COMMANDS, and a small function for each of its lines."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ...dialogue.settings import changed, check_name, parse, shown, suggestion, values
from ...dialogue.transcript import Transcript, save
from ...errors import InputError, QwenError
from ...system.files import read_file
from .._streams import say
from .conversation import Chat

MAX_FILE = 16 * 2**20
"""Bytes of a file to /read: more than any context holds."""
THINK = {"on": True, "off": False, "auto": None}
KEYS = """
A line that ends with a backslash continues on the next one, as does all text between two \"\"\"; Alt-Enter starts a new line too.
Two slashes begin a message with a slash. Ctrl-C stops an answer: what has been written of it stays; if that is nothing, or only
thinking, the question is taken back and can be edited. Ctrl-D ends the chat. Tab completes, the arrow keys bring back earlier entries.
"""


class Command(NamedTuple):
    """`arguments` says what follows the name: "" for nothing, in brackets what may be left out. Tab completes accordingly."""

    name: str
    arguments: str
    help: str
    run: Callable[[Chat, str], None]


def show_help(chat: Chat, argument: str) -> None:
    lines = [(f"/{c.name} {c.arguments}", c.help) for c in COMMANDS.values()]
    width = max(len(usage) for usage, _ in lines)
    for usage, text in lines:
        say(f"{usage:{width}}  {text}")
    for line in KEYS.strip().splitlines():
        say(line)


def clear(chat: Chat, argument: str) -> None:
    chat.dialogue.clear()


def regenerate(chat: Chat, argument: str) -> None:
    chat.answer(chat.dialogue.regenerate())


def go_on(chat: Chat, argument: str) -> None:
    chat.answer(chat.dialogue.go_on())


def undo(chat: Chat, argument: str) -> None:
    question = chat.dialogue.undo()
    say(f"took back: {question if len(question) <= 60 else question[:57] + '...'}")


def edit(chat: Chat, argument: str) -> None:
    chat.dialogue.edit()


def read(chat: Chat, argument: str) -> None:
    """Put a file before the next question, under its name, as in llama.cpp. Raises QwenError."""
    path = path_of(argument)
    raw = read_file(path, MAX_FILE)
    if len(raw) > MAX_FILE:
        raise InputError(f"{path}: larger than {MAX_FILE // 2**20} MB, more than any context holds")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 text: byte {raw[error.start]:#04x} at offset {error.start}"
        ) from None
    chat.dialogue.attached += (
        f"--- File: {path.name} ---\n{text}{'' if text.endswith(chr(10)) else chr(10)}\n"
    )
    say(f"{path.name}: {len(text)} characters, they go before your next message")


def system(chat: Chat, argument: str) -> None:
    if not argument:
        say(f"system message: {chat.dialogue.system or 'none'}")
    else:
        chat.dialogue.system = "" if argument == "-" else argument


def change_setting(chat: Chat, argument: str) -> None:
    name, *text = argument.split(maxsplit=1) or [""]
    if text:
        chat.dialogue.settings = changed(chat.dialogue.settings, {name: parse(name, text[0])})
        return
    if name:
        check_name(name)
    known = values(chat.dialogue.settings)
    for each in [name] if name else known:
        say(f"{each:{max(map(len, known))}}  {shown(each, known[each])}")


def think(chat: Chat, argument: str) -> None:
    if argument not in THINK:
        raise InputError(f"/think takes one of {', '.join(THINK)}, not {argument}")
    chat.dialogue.settings = changed(chat.dialogue.settings, {"think": THINK[argument]})


def save_chat(chat: Chat, argument: str, overwrite: bool = False) -> None:
    path, messages = path_of(argument), chat.dialogue.messages
    save(path, Transcript(chat.model, chat.dialogue.settings, messages), overwrite)
    say(f"saved {len(messages)} messages to {path}")


def overwrite_chat(chat: Chat, argument: str) -> None:
    save_chat(chat, argument, overwrite=True)


def load_chat(chat: Chat, argument: str) -> None:
    path = path_of(argument)
    chat.load(str(path))
    say(f"loaded {len(chat.dialogue.messages)} messages from {path}")


def show_stats(chat: Chat, argument: str) -> None:
    for line in stats_lines(chat.dialogue.model.stats(), chat.dialogue.model.stop_reason):
        say(line)


def stats_lines(s: dict[str, float], stop_reason: str | None) -> list[str]:
    """The last answer's figures in words; a server may leave some out, or all of them if it failed."""
    lines = []
    for what, count, speed in (
        ("prompt", "prompt_n", "prompt_per_second"),
        ("answer", "predicted_n", "predicted_per_second"),
    ):
        if count in s:
            lines.append(f"{what}: {s[count]:.0f} tokens" + (f", {s[speed]:.1f} t/s" if s.get(speed) else ""))
    if s.get("cache_n") and "prompt_n" in s:
        lines[0] += f"; {s['cache_n']:.0f} more were cached"
    if "context_n" in s and "n_ctx" in s:
        lines.append(f"context: {s['context_n']:.0f} of {s['n_ctx']:.0f} tokens")
    if stop_reason:
        lines.append(f"stopped by: {stop_reason}")
    return lines or ["no answer yet"]


def end(chat: Chat, argument: str) -> None:
    chat.ended = True


def path_of(text: str) -> Path:
    """The path that a user means; ~ is the home folder. Raises InputError for one that no system has."""
    if "\0" in text:
        raise InputError("a path can't contain a zero byte")
    return Path(os.path.expanduser(text))


COMMANDS = {
    command.name: command
    for command in [
        Command("help", "", "this list", show_help),
        Command("clear", "", "start over; the system message stays", clear),
        Command("regen", "", "answer the last question again", regenerate),
        Command("continue", "", "go on with the last answer where it ends", go_on),
        Command("undo", "", "take back the last question and its answer", undo),
        Command("edit", "", "take them back and edit the question", edit),
        Command("read", "FILE", "put a text file before the next message", read),
        Command("system", "[TEXT]", "set the system message; - for none", system),
        Command("set", "[NAME [VALUE]]", "change a setting, or show it, or show all", change_setting),
        Command(
            "think", "on|off|auto", "whether the model thinks before it answers; auto: as it likes", think
        ),
        Command("save", "FILE", "write this chat and its settings to a file", save_chat),
        Command("save!", "FILE", "the same, overwriting any file", overwrite_chat),
        Command("load", "FILE", "continue a saved chat", load_chat),
        Command("stats", "", "tokens, speed and context of the last answer", show_stats),
        Command("bye", "", "end the chat", end),
    ]
}
ALIASES = {"?": "help", "exit": "bye", "quit": "bye"}


def take(chat: Chat, text: str) -> None:
    """Run the command in `text`, which begins with a slash, or ask the question. Two slashes begin a question with one."""
    try:
        if text.startswith("/") and not text.startswith("//"):
            run(chat, text)
        elif text.strip():
            chat.answer(chat.dialogue.ask(text[1:] if text.startswith("//") else text))
    except (QwenError, MemoryError) as error:
        chat.fail(str(error) or "not enough memory")


def run(chat: Chat, text: str) -> None:
    """Run a command. Raises InputError for an unknown one and for missing or needless arguments, QwenError where it fails."""
    word, *rest = text[1:].split(maxsplit=1) or [""]
    name = ALIASES.get(word, word)
    argument = "".join(rest).strip()
    command = COMMANDS.get(name)
    if command is None:
        if "\n" in text:  # a paste: it can be edited
            chat.dialogue.draft = text
        near = suggestion(name, COMMANDS, "/") or ": /help lists them, // begins a message with a slash"
        raise InputError(f"unknown command /{name[:40]}{near}")
    if argument and not command.arguments:
        raise InputError(f"/{name} takes no argument")
    if not argument and command.arguments and not command.arguments.startswith("["):
        raise InputError(f"/{name} needs {command.arguments}")
    command.run(chat, argument)
