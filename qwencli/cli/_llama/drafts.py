"""Speculative decoding, which doesn't exist here yet."""

from .entries import refused

NOT_YET = "speculative decoding doesn't exist here yet: leave it out"
REMOVED = "llama.cpp has removed it: leave it out"


def _draft(spec: str, variable: str | None = None, nothing: str = "") -> object:
    return refused(spec, variable, NOT_YET, nothing)
