"""What was entered in earlier chats, in a file of the user's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory

MAX_ENTRY = 10_000
"""Characters. Longer entries were pasted, and are remembered only as long as the chat lasts."""


def history_path() -> Path | None:
    """The file: in $XDG_STATE_HOME/qwencli, else in $QWENCLI_CACHE, else where the system keeps a user's state; None without a home."""
    state = os.environ.get("XDG_STATE_HOME", "")
    cache = os.environ.get("QWENCLI_CACHE", "")
    if not os.path.isabs(state):
        if cache:
            return Path(cache) / "chat_history"
        if sys.platform == "win32":
            state = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
        else:
            state = os.path.expanduser(
                "~/Library/Application Support" if sys.platform == "darwin" else "~/.local/state"
            )
    return Path(state) / "qwencli" / "chat_history" if os.path.isabs(state) else None


class PrivateHistory(FileHistory):
    """A file that only its owner can read. `warn` is told once if it can't be read or written; the chat goes on without it."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        super().__init__(str(path))
        self._path, self._warn, self._works = path, warn, True

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError as error:
            self._give_up(error)
            return []

    def store_string(self, string: str) -> None:
        if not self._works or len(string) > MAX_ENTRY:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600))
            super().store_string(string)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._warn(f"{self._path}: entries are not kept for later chats: {error.strerror or error}")
        self._works = False
