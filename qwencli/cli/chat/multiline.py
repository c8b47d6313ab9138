"""Messages of several lines."""

from __future__ import annotations

QUOTES = '"""'


def continued(text: str) -> str | None:
    '''What a newline and the next line are added to if the message goes on: it ends with a backslash, which is then left out, or begins
    with """ that are not closed. None for a complete message.'''
    if text.lstrip().startswith(QUOTES):
        return None if text.strip()[len(QUOTES) :].endswith(QUOTES) else text
    return text[:-1] if text.endswith("\\") else None


def finished(text: str) -> str:
    '''The message without the """ around it, or the backslash that nothing followed.'''
    inner = text.strip()
    if inner.startswith(QUOTES):
        return inner[len(QUOTES) :].removesuffix(QUOTES).strip("\n")
    return text.removesuffix("\\")
