"""Choosing the next token from logits: llama.cpp's samplers, with its names, order and defaults.

What is imported here needs no NumPy, so that the commands' help starts fast; `sampler`, which chooses, is imported by its own name.
"""

from .breakers import Breakers
from .constraint import Constraint
from .params import NUMBERS, SETTINGS, SamplingParams
from .parsing import SAMPLERS, parse_logit_bias, parse_sampler_letters, parse_samplers

__all__ = [
    "NUMBERS",
    "SAMPLERS",
    "SETTINGS",
    "Breakers",
    "Constraint",
    "SamplingParams",
    "parse_logit_bias",
    "parse_sampler_letters",
    "parse_samplers",
]
