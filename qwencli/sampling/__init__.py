"""Choosing the next token from logits: llama.cpp's samplers, with its names, order and defaults.

Nothing here imports NumPy before the first token is chosen, so that the commands' help needs none.
"""

from .constraint import Constraint
from .params import LIMITS, SAMPLERS, SamplingParams, parse_logit_bias, parse_sampler_letters, parse_samplers
from .sampler import NOT_FINITE, Breakers, Draw, Report, Sampler, choose, uniform

__all__ = [
    "LIMITS",
    "NOT_FINITE",
    "SAMPLERS",
    "Breakers",
    "Constraint",
    "Draw",
    "Report",
    "Sampler",
    "SamplingParams",
    "choose",
    "parse_logit_bias",
    "parse_sampler_letters",
    "parse_samplers",
    "uniform",
]
