"""Chats without a terminal: turns are lines of stdin."""

from __future__ import annotations

import sys
from typing import BinaryIO

from ...errors import InputError
from .._streams import say
from .commands import take
from .conversation import Chat
from .multiline import continued, finished

MAX_LINE = 16 * 2**20


def converse(chat: Chat) -> None:
    """Take turns from stdin until it ends."""
    lines = Lines(sys.stdin.buffer)
    while not chat.ended and not lines.ended:
        try:
            take(chat, lines.turn())
        except InputError as error:
            chat.fail(str(error))


def may_drop() -> bool:
    """There is nobody to ask."""
    say("--context-shift drops the oldest turns when the context is full")
    return False


class Lines:
    """Reads turns from a stream: a line each, or several that belong together."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._n, self.ended = stream, 0, False

    def turn(self) -> str:
        """The next turn, "" at the end. Raises InputError for a line that is too long or isn't UTF-8."""
        text = self._line()
        while not self.ended and (begun := continued(text)) is not None:
            text = begun + "\n" + self._line()
        return finished(text)

    def _line(self) -> str:
        raw = self._stream.readline(MAX_LINE + 1)
        self._n = self._n + 1
        self.ended = not raw
        if len(raw) > MAX_LINE:
            while raw and not raw.endswith(b"\n"):
                raw = self._stream.readline(MAX_LINE)
            raise InputError(f"line {self._n} is longer than {MAX_LINE // 2**20} MB")
        try:
            return raw.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"line {self._n} is not UTF-8: byte {raw[error.start]:#04x}") from None
