"""Text that arrives in pieces, read by generators that wait for more of it where they need to."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""Reads from an Incoming; yields where it needs more text, returns T."""

MAX_CALL = 1 << 20
"""Characters of a tool call: what is longer is given up and is text."""


class NotACall(Exception):
    """What began like a tool call turned out to be none."""


class Tags:
    """Strings to look for, `stops` among them: single characters, or longer ones with `<` as their first and nowhere else."""

    def __init__(self, *tags: str, stops: Sequence[str] = ()) -> None:
        tags = (*tags, *stops)
        self.all, self.stops = tags, stops
        self._any = re.compile("|".join(map(re.escape, tags)) or "(?!)")

    def search(self, text: str, start: int) -> tuple[int, str]:
        """Where the first tag begins, and the tag; or where a tag may start at the text's end, else its end, and ""."""
        if found := self._any.search(text, start):
            return found.start(), found[0]
        begin = text.rfind("<", start)
        rest = text[begin:]
        if begin >= 0 and any(tag.startswith(rest) for tag in self.all):
            return begin, ""
        return len(text), ""


class Incoming:
    """Text that arrives in pieces, for readers that look back to their mark at most: what is read after `mark` is kept, up to MAX_CALL
    characters."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self.ended = False
        self._kept: list[str] | None = None
        self._n_left = 0
        self._barrier = ""

    def add(self, text: str) -> None:
        self._text, self._at = self._text[self._at :] + text, 0

    def mark(self, barrier: str = "") -> None:
        """A call may begin here. It does not reach beyond the tag `barrier`."""
        self._kept = []
        self._n_left = MAX_CALL
        self._barrier = barrier

    def unmark(self) -> str:
        """What was read since `mark`, which is over now."""
        text, self._kept = self.kept, None
        return text

    @property
    def kept(self) -> str:
        """What was read since `mark`."""
        return "".join(self._kept or ())

    @property
    def place(self) -> int:
        """How many characters that is."""
        return MAX_CALL - self._n_left

    @property
    def left(self) -> str | None:
        """What is left to read where nothing follows, None while more may come."""
        return self._text[self._at :] if self.ended else None

    def rewind(self, place: int) -> None:
        """Back to where `place` characters had been read since `mark`."""
        kept = self.kept
        self._text, self._at = kept[place:] + self._text[self._at :], 0
        self._kept, self._n_left = [kept[:place]], MAX_CALL - place

    def _more(self) -> Reading[bool]:
        """Wait for more text; False if none will come. Raises NotACall if none will come and a call was begun."""
        if not self.ended:
            yield
            return True
        if self._kept is not None:
            raise NotACall
        return False

    def _take(self, end: int) -> str:
        """The text up to index `end`. Raises NotACall after exactly MAX_CALL characters, however the text was cut into pieces."""
        full = self._kept is not None and end - self._at > self._n_left
        if full:
            end = self._at + self._n_left
        text, self._at = self._text[self._at : end], end
        if self._kept is not None:
            self._kept.append(text)
            self._n_left -= len(text)
        if full:
            raise NotACall
        return text

    def read(self, n: int) -> Reading[str]:
        """The next `n` characters, fewer at the end."""
        while len(self._text) - self._at < n and (yield from self._more()):
            pass
        return self._take(min(self._at + n, len(self._text)))

    def starts(self, *tags: str) -> Reading[str | None]:
        """The one of the tags that comes next, which is read, or None. None of the tags begins another."""
        while True:
            for tag in tags:
                if self._text.startswith(tag, self._at):
                    return self._take(self._at + len(tag))
            rest = self._text[self._at : self._at + max(map(len, tags))]
            if not any(tag.startswith(rest) for tag in tags) or not (yield from self._more()):
                return None

    def span(self, characters: str) -> Reading[str]:
        """All of the given characters that come next."""
        parts, other = [], re.compile(f"[^{re.escape(characters)}]")
        while True:
            found = other.search(self._text, self._at)
            parts.append(self._take(found.start() if found else len(self._text)))
            if found or not (yield from self._more()):
                return "".join(parts)

    def passage(self, tags: Tags) -> Reading[tuple[str, str]]:
        """Text as far as it has come, and the tag if one follows, which is not read; ("", "") at the end."""
        while True:
            end, tag = tags.search(self._text, self._at)
            if self.ended and not tag:
                end = len(self._text)
            if end > self._at or tag:
                return self._take(end), tag
            if not (yield from self._more()):
                return "", ""

    def until(self, tags: Tags) -> Reading[tuple[str, str]]:
        """All text of a call up to a tag, and the tag, which is read. Raises NotACall before a stop or the barrier."""
        if self._barrier:
            tags = Tags(*tags.all, stops=[*tags.stops, self._barrier])
        parts, tag = [], ""
        while not tag:
            text, tag = yield from self.passage(tags)
            parts.append(text)
        if tag in tags.stops:
            raise NotACall
        yield from self.read(len(tag))
        return "".join(parts), tag
