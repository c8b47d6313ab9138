"""Qwen2 and Qwen2.5, dense (https://arxiv.org/abs/2407.10671): grouped-query attention with biases on queries, keys and values."""

from ...gguf.file import GGUFFile
from ..blocks import Decoder
from ..config import read_config
from ..model import Model


def build(file: GGUFFile) -> Model:
    """The graph of a Qwen2 file. Raises ModelError for missing tensors and wrong shapes."""
    d = Decoder(file, read_config(file, "qwen2"))
    x = d.embedding()
    for i in range(d.c.n_layer):
        x = d.attention(x, i)
        x = d.feed_forward(x, i)
    return d.model(x)
