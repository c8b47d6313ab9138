"""What the tests of the commands share: the story that their model tells, and ways to call `qwencli`."""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gguf_builder import STORY, TOKENS

QWENCLI = (
    shutil.which("qwencli", path=str(Path(sys.executable).parent))
    or "qwencli is not installed next to this Python"
)
COMMANDS = [
    "bench",
    "chat",
    "detokenize",
    "devices",
    "doctor",
    "graph",
    "info",
    "list",
    "perplexity",
    "pull",
    "rm",
    "run",
    "serve",
    "tokenize",
    "warmup",
]
TEXT = "abcdefghijklmnopqrstuvwxyzé the"
IDS = [TOKENS.index(t) for t in STORY]
"""What gguf_builder.reciter answers, as text and as ids."""


class Result(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Result]
"""The fixture `call`: call(*args, stdin=b"") runs a command line in this process."""


def process(*args: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the installed command. The time limit leaves room for what a first run compiles, on a busy machine with one core."""
    streams: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        [QWENCLI, *map(str, args)], timeout=300, **(streams | options)
    )
    return done


def allow_ctrl_c() -> None:
    """Undo, in a process that is about to start, that Ctrl-C is ignored, as it may be where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def read_terminal(terminal: int, end: bytes) -> bytes:
    """What was written to the other end of a pseudo-terminal, up to `end` or further. It comes piece by piece, and may come late."""
    text, deadline = b"", time.monotonic() + 60
    while end not in text:
        assert select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0], text
        text += os.read(terminal, 2**16)
    return text
