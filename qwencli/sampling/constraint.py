"""What a sequence is held to besides its samplers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Constraint(Protocol):
    """Which tokens an answer may consist of. One for each sequence.

    It is asked with the answer's tokens so far, so that a step that is repeated finds it as it was; it may keep what it knows about
    tokens that it has seen. Both methods raise QwenError if the answer already breaks it, or if it costs too much to tell.
    """

    def mask(self, answer: Sequence[int]) -> NDArray[np.bool_] | None:
        """Which tokens may come next, bool [n_vocab] with at least one True; None: any may."""

    def ended(self, answer: Sequence[int]) -> bool:
        """Whether the answer is complete, so that only a token that ends it can follow."""
