"""Progress bars for work that takes long."""

from __future__ import annotations

import sys
import time
from typing import Any


class Bar:
    """A bar on stderr. Call it with the amount done and the total; it goes away when all is done.

    It appears `delay` seconds after it was made or last closed, if it is `shown` at all: by default at a terminal. `options` are tqdm's.
    """

    def __init__(self, shown: bool | None = None, delay: float = 0.0, **options: Any) -> None:
        self.shown = sys.stderr.isatty() if shown is None else shown
        self._options = options
        self._delay = delay
        self._start = time.monotonic()
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif self.shown and done < total and time.monotonic() - self._start >= self._delay:
            from tqdm import tqdm  # takes 20 ms: not on the way to a first token that comes soon

            self._bar = tqdm(total=total, initial=done, leave=False, **self._options)
        if done >= total:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._start = None, time.monotonic()
