"""The strings that end an answer."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on up to the first of some strings, holding back what may turn out to begin one.

    `found` is the stop string once one is complete, "" until then.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = ""

    def add(self, text: str) -> str:
        """The text that can be passed on now; nothing from the start of a stop string on."""
        if self.found:
            return ""
        self._held += text
        ends = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if ends:  # the first to be complete counts, however the text came in pieces
            end, start = min(ends)
            self.found = self._held[start:end]
            return self._held[:start]
        cut = len(self._held) - max(map(self._n_begun, self._stops), default=0)
        passed = self._held[:cut]
        self._held = self._held[cut:]
        return passed

    def _n_begun(self, stop: str) -> int:
        """How many characters of a stop string the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        return "" if self.found else self._held
