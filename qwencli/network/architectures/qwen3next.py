"""Qwen3-Next: gated delta nets, with gated attention in every fourth layer, and a mixture of experts."""

from ...gguf.file import GGUFFile
from ..blocks import Decoder
from ..config import read_config, read_delta_nets, read_experts
from ..model import Model


def build(file: GGUFFile) -> Model:
    """The graph of a Qwen3-Next file. Raises ModelError for missing tensors and wrong shapes."""
    nets = read_delta_nets(file, "qwen3next", tiled=False)
    experts = read_experts(file, "qwen3next", normalised=True, shared=True)
    d = Decoder(file, read_config(file, "qwen3next", experts=experts, delta_nets=nets))
    x = d.embedding()
    for i in range(d.c.n_layer):
        x = d.delta_net(x, i) if i in nets.layers else d.attention(x, i, head_norm=True, gated=True)
        x = d.experts(x, i, norm="post_attention_norm")
    return d.model(x)
