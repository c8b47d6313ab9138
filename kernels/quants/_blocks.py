"""What the formats of 32-weight blocks share: panels of 16 rows with the rows in lanes, activations in Q8_0.

A panel holds, for each block of 16 rows, 8 vectors of four weights a lane and a vector of f32 scales.
"""
from __future__ import annotations

from ._quarts import VECTOR

QUARTS = 8 * VECTOR
PANEL_BYTES = QUARTS + VECTOR
