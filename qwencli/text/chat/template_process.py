"""The process in which a chat template runs, from the side that asks: it is started, asked, and ended when it takes too long."""

from __future__ import annotations

import signal
import sys
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from ...errors import InputError, ModelError, QwenError
from ...system import confined
from . import template_child

if TYPE_CHECKING:
    from subprocess import Popen

CPU_SECONDS = 0.5
"""Processor time for compiling a template, and for each conversation. Qwen's templates need about 20 ms and 1 ms."""
CLOCK_SECONDS = 10 if sys.platform != "win32" else 3
"""Wall-clock time for the same, for systems without limits on processor time and for processes that hang."""
START_SECONDS = 30
TIME_IS_UP = {-signal.SIGPROF} if sys.platform != "win32" else set()
"""Exit codes of a process that has used up its processor time."""


class Ended(Exception):
    """The process has ended, and why."""


class TemplateProcess:
    """A running template_child. It ends with this object, and with this process however that ends, since it reads from us.

    Raises QwenError where it can't be started.
    """

    def __init__(self) -> None:
        self._process = confined.start(template_child.__name__, CPU_SECONDS, "for the chat template")
        weakref.finalize(self, _end, self._process)
        try:
            self._exchange(b"", START_SECONDS)
        except Ended as error:
            raise QwenError(f"cannot start {sys.executable} for the chat template: it {error}") from None

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: str) -> str:
        """The answer to a request of template_child. Raises Ended, or as the answer says: ModelError, InputError."""
        data = request.encode("utf-8", "surrogatepass")
        if len(data) > template_child.MAX_BYTES:
            raise InputError(f"the conversation is larger than {template_child.MAX_BYTES >> 20} MiB")
        kind, text = self._exchange(len(data).to_bytes(4, "big") + data, CLOCK_SECONDS)
        if kind == template_child.TEXT:
            return text
        if kind == template_child.INVALID:
            raise ModelError(f"the model's chat template isn't valid Jinja: {text}")
        if kind == template_child.NO_MEMORY:
            raise InputError("the model's chat template takes too much memory")
        says = "refuses" if kind == template_child.REFUSED else "fails on"
        raise InputError(f"the model's chat template {says} this conversation: {text}")

    def _exchange(self, data: bytes, seconds: float) -> tuple[bytes, str]:
        """Send, and read what comes back: what it is, and its text."""
        process, start = self._process, time.monotonic()
        assert process.stdin is not None
        assert process.stdout is not None
        clock = threading.Timer(seconds, process.kill)
        clock.daemon = True
        clock.start()
        try:
            with suppress(OSError):  # it has ended, which reading finds too
                process.stdin.write(data)
                process.stdin.flush()
            header = process.stdout.read(5)
            size = int.from_bytes(header[1:], "big")
            text = process.stdout.read(size) if size <= template_child.MAX_BYTES else b""
            if len(header) == 5 and len(text) == size:
                return header[:1], text.decode("utf-8", "surrogatepass")
        except UnicodeError:  # not an answer of template_child's
            pass
        except BaseException:  # Ctrl-C: an answer that nobody has read would be taken for the next one
            _end(process)
            raise
        finally:
            clock.cancel()
        _end(process)
        too_long = process.returncode in TIME_IS_UP or time.monotonic() - start >= seconds
        raise Ended("took too long" if too_long else f"ended its process, code {process.returncode}")


def _end(process: Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in process.stdin, process.stdout:
        with suppress(OSError):  # where it has not read all
            if pipe:
                pipe.close()
