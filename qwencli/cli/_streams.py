"""What commands read and write: text in UTF-8, data to stdout, messages to stderr."""

from __future__ import annotations

import os
import sys

import click

from ..errors import InputError, QwenError


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
