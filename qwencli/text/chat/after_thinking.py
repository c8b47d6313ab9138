"""Grammars for answers of models that think first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ...sampling import Constraint
from ..tokenizer import Tokenizer
from .thinking import CLOSE, OPEN

MAX_BLANK = 1
"""Tokens of white space that the model may write between thinking and answer, as it has learnt to."""
END = CLOSE.encode()

Mask = NDArray[np.bool_]


class State(NamedTuple):
    """Where an answer is after `n` tokens. `part` is "begin", "thinking", "blank" after the thinking, or "answer", which starts with token
    `start`. `text` is the end of what was thought."""

    n: int
    part: str
    text: bytes = b""
    start: int = 0


class AfterThinking:
    """A Constraint for what follows a block of thinking.

    `inside`: the prompt has opened the block. Else the answer may open it, with <think>, where that is a token. An answer that started to
    think doesn't end before it has said something.
    """

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer, inside: bool) -> None:
        self._constraint, self._tokenizer = constraint, tokenizer
        opening = tokenizer.encode(OPEN, parse_special=True)
        self._opening = opening[0] if len(opening) == 1 else None
        self._first = self._state = State(0, "thinking" if inside else "begin")

    def mask(self, answer: Sequence[int]) -> Mask | None:
        """See Constraint."""
        state = self._read(answer)
        if state.part == "thinking":
            begun = next(n for n in range(len(END) - 1, -1, -1) if state.text.endswith(END[:n]))
            return masks(self._tokenizer)[begun]
        mask = self._constraint.mask(answer[state.start :] if state.part == "answer" else [])
        if mask is None:
            return None
        if state.part == "begin" and self._opening is not None:
            mask = mask.copy()
            mask[self._opening] = True
        if state.part == "blank" and state.n - state.start < MAX_BLANK:
            mask = mask | masks(self._tokenizer)[-1]
        return mask

    def ended(self, answer: Sequence[int]) -> bool:
        """See Constraint."""
        state = self._read(answer)
        return state.part == "answer" and self._constraint.ended(answer[state.start :])

    def _read(self, answer: Sequence[int]) -> State:
        """Where the answer is."""
        state = self._state if self._state.n <= len(answer) else self._first
        for token in answer[state.n :]:
            state = self._after(state, token)
        self._state = state
        return state

    def _after(self, state: State, token: int) -> State:
        n = state.n + 1
        if state.part == "answer":
            return state._replace(n=n)
        if state.part == "begin":
            return State(n, "thinking") if token == self._opening else State(n, "answer", start=0)
        word = self._tokenizer.token_bytes(token)
        if state.part == "thinking":
            text = state.text + word
            return State(n, "blank", start=n) if END in text else State(n, "thinking", text[-len(END) :])
        return state._replace(n=n) if not word.strip() else State(n, "answer", start=n - 1)


_masks: WeakKeyDictionary[Tokenizer, list[Mask]] = WeakKeyDictionary()


def masks(tokenizer: Tokenizer) -> list[Mask]:
    """Which tokens may come in thinking, by how many bytes of </think> it ends with already; and last, which are white space.

    All text may come, but not the end of the thinking and something else in one token: nothing would check what follows the end.
    """
    if tokenizer not in _masks:
        words = tokenizer.all_bytes()
        text = np.array([bool(word) for word in words])
        text[[*tokenizer.control_ids, *tokenizer.eog_ids]] = False
        closing = tokenizer.encode(CLOSE, parse_special=True)
        if len(closing) == 1:
            text[closing] = True
        ends = tuple(END[begun:] for begun in range(len(END)))
        able = [(token, word) for token, word in enumerate(words) if word.startswith(ends) or END in word]
        found = []
        for begun in range(len(END)):
            mask = text.copy()
            mask[[token for token, word in able if (END[:begun] + word).partition(END)[2].strip()]] = False
            found.append(mask)
        _masks[tokenizer] = [*found, text & np.array([not word.strip() for word in words])]
    return _masks[tokenizer]
