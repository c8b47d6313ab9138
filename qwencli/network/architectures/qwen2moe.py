"""Qwen1.5-MoE and Qwen2-57B-A14B (https://arxiv.org/abs/2407.10671): Qwen2 with a mixture of experts and a shared network."""

from ...gguf.file import GGUFFile
from ..blocks import Decoder
from ..config import read_config, read_experts
from ..model import Model


def build(file: GGUFFile) -> Model:
    """The graph of a Qwen2-MoE file. Raises ModelError for missing tensors and wrong shapes."""
    experts = read_experts(file, "qwen2moe", normalised=False, shared=True)
    d = Decoder(file, read_config(file, "qwen2moe", experts=experts))
    x = d.embedding()
    for i in range(d.c.n_layer):
        x = d.attention(x, i)
        x = d.experts(x, i)
    return d.model(x)
