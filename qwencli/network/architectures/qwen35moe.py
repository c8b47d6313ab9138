"""Qwen3.5 with a mixture of experts, text only: Qwen3.5's layers, with a shared network in addition to the experts."""

from ...gguf.file import GGUFFile
from ..blocks import Decoder
from ..config import read_config, read_delta_nets, read_experts
from ..model import Model


def build(file: GGUFFile) -> Model:
    """The graph of a Qwen3.5-MoE file. Raises ModelError for missing tensors and wrong shapes."""
    nets = read_delta_nets(file, "qwen35moe", tiled=True)
    experts = read_experts(file, "qwen35moe", normalised=True, shared=True)
    d = Decoder(file, read_config(file, "qwen35moe", sections=True, experts=experts, delta_nets=nets))
    x = d.embedding()
    for i in range(d.c.n_layer):
        x = d.delta_net(x, i) if i in nets.layers else d.attention(x, i, head_norm=True, gated=True)
        x = d.experts(x, i, norm="post_attention_norm")
    return d.model(x)
