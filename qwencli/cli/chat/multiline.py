"""Messages of several lines."""

from __future__ import annotations

QUOTES = '"""'


def continued(text: str) -> str | None:
    '''What the next line is added to, behind a newline, where a message goes on: it ends with a backslash, which is left out then, or it
    begins with """ that are not closed. None for a message that is complete.'''
    if text.lstrip().startswith(QUOTES):
        return None if text.strip()[len(QUOTES) :].endswith(QUOTES) else text
    return text[:-1] if text.endswith("\\") else None


def finished(text: str) -> str:
    '''The message without the """ around it, or the backslash that nothing followed.'''
    inner = text.strip()
    if inner.startswith(QUOTES):
        return inner[len(QUOTES) :].removesuffix(QUOTES).strip("\n")
    return text.removesuffix("\\")
