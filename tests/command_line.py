"""What the tests of the commands share: the story that their model tells, and ways to call `qwencli`."""
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gguf_builder import STORY, TOKENS

QWENCLI = shutil.which("qwencli", path=str(Path(sys.executable).parent)) or "qwencli is not installed beside this Python"
COMMANDS = ["bench", "chat", "detokenize", "doctor", "info", "list", "perplexity", "pull", "rm", "run", "serve", "tokenize", "warmup"]
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
    """Run the installed command."""
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done: subprocess.CompletedProcess[bytes] = subprocess.run([QWENCLI, *map(str, args)], timeout=60, **(streams | options))
    return done
