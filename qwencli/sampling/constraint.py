"""What a sequence is held to beside its samplers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Constraint(Protocol):
    """Which tokens an answer may consist of. One for each sequence.

    It is asked with the answer's tokens so far, so that a step that is done again finds it as it was. It may keep what it knows of those
    that it has seen. Both raise QwenError where the answer has left it already, or it costs too much to say.
    """

    def mask(self, answer: Sequence[int]) -> NDArray[np.bool_] | None:
        """Of each token whether it may come next, bool [n_vocab], at least one; None: any may."""

    def ended(self, answer: Sequence[int]) -> bool:
        """Whether the answer is complete, and no token can follow but one that ends it."""
