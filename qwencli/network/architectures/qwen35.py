"""Qwen3.5, dense, text only: gated delta nets, with gated attention in every fourth layer."""

from ...gguf.file import GGUFFile
from ..blocks import Decoder
from ..config import read_config, read_delta_nets
from ..model import Model


def build(file: GGUFFile) -> Model:
    """The graph of a Qwen3.5 file. Raises ModelError for missing tensors and wrong shapes."""
    nets = read_delta_nets(file, "qwen35", tiled=True)
    d = Decoder(file, read_config(file, "qwen35", sections=True, delta_nets=nets))
    x = d.embedding()
    for i in range(d.c.n_layer):
        x = d.delta_net(x, i) if i in nets.layers else d.attention(x, i, head_norm=True, gated=True)
        x = d.feed_forward(x, i, norm="post_attention_norm")
    return d.model(x)
