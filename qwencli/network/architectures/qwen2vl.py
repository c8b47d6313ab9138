"""Qwen2-VL and Qwen2.5-VL (https://arxiv.org/abs/2409.12191), text only: Qwen2 with rotation by several positions, all equal in text."""

from ...gguf.file import GGUFFile
from ..blocks import Decoder
from ..config import read_config
from ..model import Model


def build(file: GGUFFile) -> Model:
    """The graph of a Qwen2-VL file. Raises ModelError for missing tensors and wrong shapes."""
    d = Decoder(file, read_config(file, "qwen2vl", sections=True))
    x = d.embedding()
    for i in range(d.c.n_layer):
        x = d.attention(x, i)
        x = d.feed_forward(x, i)
    return d.model(x)
