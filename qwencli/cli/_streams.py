"""What commands read and write: text in UTF-8, data to stdout, messages to stderr."""

from __future__ import annotations

import io
import os
import re
import sys
from typing import TextIO

import click

from ..errors import InputError, QwenError

ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}


def printable(text: str) -> str:
    """`text` with control characters escaped: names and values from a file must not control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def read_text(path: str | None) -> str:
    """The text of a file, or of stdin for None or '-'. Raises InputError if it isn't UTF-8, QwenError if it can't be read."""
    try:
        if path in (None, "-"):
            name, raw = "stdin", sys.stdin.buffer.read()
        else:
            name = str(path)
            with open(name, "rb") as f:
                raw = f.read()
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: not UTF-8 text: byte {raw[error.start]:#04x} at offset {error.start}"
        ) from None
    except OSError as error:
        raise QwenError(f"{path}: cannot be read: {error.strerror or error}") from None


def write_text(text: str) -> None:
    """Write to stdout at once, as UTF-8 whatever the locale."""
    write_bytes(text.encode("utf-8", "replace"))


def write_bytes(data: bytes) -> None:
    """Write to stdout at once. A closed pipe ends the command as if it were done: its reader has seen enough."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # What is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(0) from None  # click itself would exit with 1


def say(message: str) -> None:
    """Tell the user something, on stderr."""
    print(printable(message), file=sys.stderr, flush=True)


def warn(message: str) -> None:
    print(f"qwencli: warning: {printable(message)}", file=sys.stderr, flush=True)


class Tee(io.TextIOBase):
    """A stream that writes to a file what it writes to another stream."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self._stream, self._file = stream, file

    def write(self, text: str) -> int:
        self._file.write(text)
        self._file.flush()
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


def log_to(path: str) -> None:
    """From here on write to a file, too, what goes to stderr; what the file had before is gone. Raises QwenError."""
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise QwenError(f"{path}: cannot be written: {error.strerror or error}") from None
    sys.stderr = Tee(sys.stderr, file)


def unescape(text: str) -> str:
    r"""Replace \n, \r, \t, \', \", \\ and \xHH by what they stand for, as llama.cpp does; other backslashes stay.

    Raises InputError if the bytes written as \xHH aren't UTF-8.
    """

    def replace(match: re.Match[bytes]) -> bytes:
        return ESCAPES.get(match[1]) or bytes([int(match[1][1:], 16)])

    try:
        return re.sub(rb"\\([nrt'\"\\]|x[0-9a-fA-F]{2})", replace, text.encode()).decode()
    except UnicodeError:
        raise InputError(
            f"the text {text[:40]!r} isn't valid UTF-8, or its escapes make it invalid"
        ) from None
