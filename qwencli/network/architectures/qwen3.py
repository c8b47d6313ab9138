"""Qwen3, dense (https://arxiv.org/abs/2505.09388): grouped-query attention with normalised queries and keys, no biases."""

from ...gguf.file import GGUFFile
from ..blocks import Decoder
from ..config import read_config
from ..model import Model


def build(file: GGUFFile) -> Model:
    """The graph of a Qwen3 file. Raises ModelError for missing tensors and wrong shapes."""
    d = Decoder(file, read_config(file, "qwen3"))
    x = d.embedding()
    for i in range(d.c.n_layer):
        x = d.attention(x, i, head_norm=True)
        x = d.feed_forward(x, i)
    return d.model(x, rank_head=True)
