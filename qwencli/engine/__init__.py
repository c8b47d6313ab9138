"""Sequences of token ids, step by step."""
