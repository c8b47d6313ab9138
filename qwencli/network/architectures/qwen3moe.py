"""Qwen3-30B-A3B and similar models (https://arxiv.org/abs/2505.09388): Qwen3 with a mixture of experts."""

from ...gguf.file import GGUFFile
from ..blocks import Decoder
from ..config import read_config, read_experts
from ..model import Model


def build(file: GGUFFile) -> Model:
    """The graph of a Qwen3-MoE file. Raises ModelError for missing tensors and wrong shapes."""
    experts = read_experts(file, "qwen3moe", normalised=True)
    d = Decoder(file, read_config(file, "qwen3moe", experts=experts))
    x = d.embedding()
    for i in range(d.c.n_layer):
        x = d.attention(x, i, head_norm=True)
        x = d.experts(x, i)
    return d.model(x)
