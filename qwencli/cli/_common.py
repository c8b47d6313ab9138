"""What several commands share: options, reading text. Nothing here imports more than it must."""

from __future__ import annotations

import os
import sys

import click

from ..backends.kv_cache import TYPES
from ..errors import InputError, QwenError

mmap_option = click.option(
    "--no-mmap", is_flag=True, help="Read the file instead of mapping it (it may then change while in use)."
)
threads_option = click.option(
    "-t", "--threads", type=click.IntRange(1, 1024), help="Threads. Default: as many as there are cores."
)
backend_option = click.option(
    "--backend",
    type=click.Choice(["auto", "cpu", "numpy"]),
    default="auto",
    help="cpu: compiled kernels. numpy: the slow float32 reference. Default: cpu, if it has the file's types.",
)
cache_type_k_option, cache_type_v_option = (
    click.option(
        f"-ct{letter}",
        f"--cache-type-{letter}",
        type=click.Choice(list(TYPES)),
        help=f"As what {what} are kept in the KV cache. Default: f16. q8_0 takes half the memory, q4_0 a quarter.",
    )
    for letter, what in (("k", "keys"), ("v", "values"))
)
fit_option = click.option(
    "--fit/--no-fit",
    default=None,
    help="Take the longest context up to -c that fits into the free memory; or don't look whether it fits.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def example(*lines: str) -> str:
    """An epilog that shows example calls as they stand."""
    return "\b\nExamples:\n" + "\n".join("  " + line for line in lines)


def printable(text: str) -> str:
    """`text` with control characters escaped: names and values from a file must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def read_text(path: str | None) -> str:
    """The text of a file, or of stdin for None or '-'. Raises InputError if it is no UTF-8, QwenError if it cannot be read."""
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
            f"{name}: not a UTF-8 text: byte {raw[error.start]:#04x} at offset {error.start}"
        ) from None
    except OSError as error:
        raise QwenError(f"{path}: cannot be read: {error.strerror or error}") from None


def write_text(text: str) -> None:
    """Write to stdout as UTF-8, whatever the locale, and at once."""
    write_bytes(text.encode("utf-8", "replace"))


def write_bytes(data: bytes) -> None:
    """Write to stdout at once. A closed pipe ends the command as if it were done: whoever read it has enough."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # what is still buffered must not fail at exit
        raise click.exceptions.Exit(0) from None  # click itself would exit with 1


def say(message: str) -> None:
    """Talk to the user, on stderr."""
    print(printable(message), file=sys.stderr, flush=True)


def warn(message: str) -> None:
    print(f"qwencli: warning: {printable(message)}", file=sys.stderr, flush=True)


def check_context(n_ctx: int, trained: int) -> None:
    """Warn of a context longer than the model was trained for; it is used all the same."""
    if n_ctx > trained:
        warn(
            f"a context of {n_ctx} is more than the {trained} that the model was trained for; answers may get worse beyond that"
        )
