"""An answer that is held to a form may think before it, freely."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .thinking import CLOSE, OPEN

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..sampling.constraint import Constraint
    from ..tokenizer import Tokenizer


def thinks_in_tokens(tokenizer: Tokenizer) -> bool:
    """Whether the tags of thinking are tokens of their own, so that its begin and end can be told."""
    return all(len(tokenizer.encode(tag)) == 1 for tag in (OPEN, CLOSE))


class AfterThinking:
    """A Constraint that holds for what follows a block of thinking, if there is one. `inside`: the prompt has opened it already."""

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer, inside: bool) -> None:
        self._constraint, self._tokenizer, self._inside = constraint, tokenizer, inside
        self._open, self._close = (tokenizer.encode(tag)[0] for tag in (OPEN, CLOSE))
        self._newlines = tokenizer.encode("\n\n")[0]

    def mask(self, answer: Sequence[int]) -> NDArray[np.bool_] | None:
        """See Constraint."""
        begin = self._begin(answer)
        if begin is None:
            return None
        mask = self._constraint.mask(answer[begin:])
        also = self._open if not answer and not self._inside else self._newlines if answer and answer[-1] == self._close else None
        if mask is not None and also is not None:
            mask = mask.copy()
            mask[also] = True
        return mask

    def ended(self, answer: Sequence[int]) -> bool:
        """See Constraint."""
        begin = self._begin(answer)
        return begin is not None and self._constraint.ended(answer[begin:])

    def _begin(self, answer: Sequence[int]) -> int | None:
        """Where the thinking and the newlines behind it are over, None if they are not."""
        if not self._inside and answer[:1] != [self._open]:
            return 0
        try:
            begin = answer.index(self._close) + 1
        except ValueError:
            return None
        while begin < len(answer) and not self._tokenizer.token_bytes(answer[begin]).strip(b"\n"):
            begin += 1
        return begin
