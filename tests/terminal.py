"""A command at a terminal, driven as its user would drive it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

import pexpect
from command_line import QWENCLI, allow_ctrl_c

READY, TAKEN = "\x1b[?2004h", "\x1b[?2004l"
"""What the line editor writes when it starts to take input, and when it has taken it: bracketed paste on and off."""
CTRL_C, CTRL_D, ALT_ENTER, TAB, UP = "\x03", "\x04", "\x1b\r", "\t", "\x1b[A"
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A process of `qwencli`."""

    def __init__(self, home: Path, *args: object, env: Mapping[str, str] = {}) -> None:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("NO_COLOR", "OPENAI_API_KEY", "QWENCLI_MODEL")
        }
        env = (
            inherited
            | {
                "HOME": str(home),
                "XDG_STATE_HOME": str(home / "state"),
                "TERM": "xterm",
                "PROMPT_TOOLKIT_NO_CPR": "1",
            }
            | env
        )
        if not env.get("QWENCLI_CACHE"):  # HOME decides where compiled kernels are looked for, too
            env["HOME"] = os.path.expanduser("~")
        self.child = pexpect.spawn(
            QWENCLI,
            [str(a) for a in args],
            env=env,
            encoding="utf-8",
            timeout=60,
            dimensions=(24, 80),
            cwd=home,
            preexec_fn=allow_ctrl_c,
        )
        self.child.delaybeforesend = None
        self.child.ptyproc.delayafterclose = 0

    def until(self, text: str) -> str:
        """Wait for a text; return what came before it."""
        self.child.expect_exact(text)
        return str(self.child.before)

    def ready(self) -> str:
        """Wait until the line editor takes input; return what came before."""
        return self.until(READY)

    def send(self, keys: str) -> None:
        self.child.send(keys)

    def enter(self, text: str) -> None:
        """Type a line, and wait until it is taken."""
        self.send(text + "\r")
        self.until(TAKEN)

    def say(self, text: str) -> str:
        """Enter a line; return all that is written until the next one can be entered, without colours and the like."""
        self.enter(text)
        return plain(self.ready())

    def line(self) -> str:
        """Finish a line that was started; return the text that the editor has drawn since, without its escape sequences."""
        self.send("\r")
        return plain(self.until(TAKEN))

    def end(self) -> int | None:
        """Wait for the end of the process; return its exit code."""
        self.child.expect(pexpect.EOF)
        self.child.wait()  # else `close` would end it, which may take its time to exit
        self.child.close()
        code: int | None = self.child.exitstatus
        return code

    def kill(self) -> None:
        """End the process if it has not ended."""
        if self.child.isalive():
            self.child.kill(signal.SIGKILL)
            self.child.wait()
        self.child.close()


def plain(text: str) -> str:
    return ANSI.sub("", text)


def paste(text: str) -> str:
    """What a terminal sends for a text from the clipboard."""
    return f"\x1b[200~{text}\x1b[201~"
