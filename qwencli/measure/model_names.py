"""What llama-bench calls a model."""

from __future__ import annotations

from ..gguf.types import FILE_TYPES
from ..network.model import Model

SIZES = {
    (24, 896): "0.5B",
    (28, 1024): "0.6B",
    (28, 1536): "1.5B",
    (24, 2048): "1.8B",
    (28, 2048): "1.7B",
    (36, 2048): "3B",
    (36, 2560): "4B",
    (28, 3584): "7B",
    (32, 4096): "7B",
    (36, 4096): "8B",
    (40, 5120): "14B",
    (48, 5120): "14B",
    (64, 5120): "32B",
    (80, 8192): "72B",
}
"""Names of models by their numbers of layers and of values per token: the files' own labels count parameters in different ways."""
DELTA_SIZES = {(24, 1024): "0.8B", (24, 2048): "2B", (32, 2560): "4B", (32, 4096): "9B", (64, 5120): "27B"}
EXPERTS_SIZES = {
    ("qwen2moe", 24): "A2.7B",
    ("qwen2moe", 28): "57B.A14B",
    ("qwen3moe", 48): "30B.A3B",
    ("qwen3moe", 94): "235B.A22B",
    ("qwen3vlmoe", 48): "30B.A3B",
    ("qwen3vlmoe", 94): "235B.A22B",
    ("qwen3next", 48): "80B.A3B",
    ("qwen35moe", 40): "35B.A3B",
    ("qwen35moe", 48): "122B.A10B",
    ("qwen35moe", 60): "397B.A17B",
}
"""Models with delta nets, and models with experts."""


def describe(model: Model) -> str:
    """What llama.cpp calls a model: architecture, size, mix of types."""
    c, get = model.config, model.file.metadata
    sizes = DELTA_SIZES if c.delta_nets else SIZES
    known = EXPERTS_SIZES.get((c.architecture, c.n_layer)) if c.experts else sizes.get((c.n_layer, c.n_embd))
    size = known or get.string("general.size_label", None) or "?B"
    mix = FILE_TYPES.get(get.integer("general.file_type", -1, -(2**31)), "unknown mix")
    if mix == "Q2_K":
        mix = "Q2_K_M"
    elif mix == "F32":
        mix = "all F32"
    for letter, word in ("_S", " - Small"), ("_M", " - Medium"), ("_L", " - Large"):
        if "_K" in mix:
            mix = mix.removesuffix(letter) + word if mix.endswith(letter) else mix
    return f"{c.architecture} {size} {mix}"
