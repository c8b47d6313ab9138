"""How long a model may think before it answers."""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"


def ends_inside(prompt: str) -> bool:
    """Whether a rendered prompt ends within a block of thinking, which some templates open."""
    return prompt.rstrip().endswith(OPEN)


def last_block(prompt: str) -> str:
    """The block of thinking that a rendered prompt ends with, open or empty: from its tag to the end; "" for none."""
    found = re.search(rf"{OPEN}\s*(?:{CLOSE}\s*)?\Z", prompt)
    return found[0] if found else ""


class ReasoningBudget:
    """Ends an answer's thinking after `n_tokens` tokens of it. `inside`: the prompt has opened the block already. `message` comes before
    the closing tag, as if the model had thought it."""

    def __init__(self, n_tokens: int, inside: bool, message: str = "") -> None:
        self._left = n_tokens
        self._message = message
        self._inside = inside
        self._text = ""
        self._over = False

    def add(self, text: str) -> str:
        """Takes a token's text. Returns the text that has to follow where the thinking ends now, else ""."""
        if self._over:
            return ""
        self._text += text
        if self._inside:
            self._left -= 1
            self._over = CLOSE in self._text  # by itself
            self._text = self._text[-len(CLOSE) :]
        else:
            self._text = self._text.lstrip()
            self._inside = self._text.startswith(OPEN)
            self._over = not self._inside and not OPEN.startswith(self._text)  # an answer without thinking
        if self._over or not self._inside or self._left > 0 or not text:  # no text: half a character
            return ""
        self._over = True
        return self._message + closing(self._text + self._message)


def closing(text: str) -> str:
    """What ends a block of thinking after this text, as Qwen's templates write it."""
    newlines = 2 if text.rstrip("\n").endswith(OPEN) else 1  # nothing was thought
    return "\n" * (newlines - len(text) + len(text.rstrip("\n"))) + CLOSE + "\n\n"
