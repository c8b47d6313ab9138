"""F16: IEEE half floats, rounded to nearest even."""

from ..simd import I16, Emitter
from ._floats import Floats

FORMAT = Floats(2, I16, Emitter.f16_to_f32, Emitter.f32_to_f16)
