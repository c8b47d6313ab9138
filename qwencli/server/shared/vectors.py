"""Embeddings as clients get them."""

from __future__ import annotations

from typing import Any

import numpy as np


def unit(vector: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Brought to length 1, float32 in little-endian order; zeros stay zeros."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector / length if length else vector).astype("<f4")
