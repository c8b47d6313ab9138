"""Grammars for answers whose beginning is given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...sampling import Constraint


class Continued:
    """A Constraint for what follows the tokens of a beginning, which follow the grammar, too."""

    def __init__(self, constraint: Constraint, beginning: Sequence[int]) -> None:
        self._constraint, self._beginning = constraint, beginning

    def mask(self, answer: Sequence[int]) -> NDArray[np.bool_] | None:
        """See Constraint."""
        return self._constraint.mask([*self._beginning, *answer])

    def ended(self, answer: Sequence[int]) -> bool:
        """See Constraint."""
        return self._constraint.ended([*self._beginning, *answer])
