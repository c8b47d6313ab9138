"""Computes what the next turn will start with, while the user reads and types."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from ..engine.engine import Engine, Sequence
from ..errors import QwenError
from ..sampling import SamplingParams

STEP = 64
"""Tokens a step. Whoever wants the engine waits for one step at most."""


class LookAhead:
    """Reads tokens into the cache in a thread of its own. From `start` until `stop` nobody else may use the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread: threading.Thread | None = None
        self._stopping = False

    def start(self, prompt: Callable[[], list[int]]) -> None:
        """Read the tokens that `prompt` returns; it is called in the thread."""
        self.stop()
        self._stopping = False
        self._thread = threading.Thread(target=self._read, args=(prompt,), name="look-ahead", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the reading after the current step. What was read stays in the cache."""
        self._stopping = True
        self.wait()

    def wait(self) -> None:
        """Wait until everything is read."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _read(self, prompt: Callable[[], list[int]]) -> None:
        with suppress(QwenError, MemoryError):  # it only saves time; the turn itself will report the error
            seq = Sequence(prompt(), SamplingParams(temp=0), max_tokens=1)
            try:
                if not self._stopping:
                    self._engine.submit(seq)
                while not self._stopping and seq in self._engine.running:
                    self._engine.step(STEP)
            finally:
                self._engine.cancel(seq)
