"""Embeddings as clients get them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..http.errors import ApiError
from ..service.service import Service


def check_embeds(service: Service, pooled: bool = False) -> None:
    """Raise ApiError for a server that ranks texts, and, if the API wants one vector for a text (`pooled`), for one without pooling."""
    if service.pooling == "rank":
        raise ApiError(
            "This server ranks texts and makes no embeddings. Start it with another `--pooling`", 501
        )
    if pooled and service.pooling == "none":
        raise ApiError("Pooling type 'none' is not OAI compatible. Please use a different pooling type")


def unit(vector: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Brought to length 1, float32 in little-endian order; zeros stay zeros."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector / length if length else vector).astype("<f4")
