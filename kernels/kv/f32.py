"""F32: float32 as it is."""

from ..simd import F32
from ._floats import Floats

FORMAT = Floats(4, F32, lambda e, x: x, lambda e, x: x)
