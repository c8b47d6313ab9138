"""The first Qwen, 2023 (https://arxiv.org/abs/2309.16609): one matrix with biases for queries, keys and values, keys for every head."""

from dataclasses import replace

from ...gguf.file import GGUFFile
from ..blocks import Decoder
from ..config import read_config
from ..model import Model


def build(file: GGUFFile) -> Model:
    """The graph of a Qwen file. Raises ModelError for missing tensors and wrong shapes."""
    c = read_config(file, "qwen")
    # the metadata gives the sum of gate's and up's widths
    d = Decoder(file, replace(c, n_ff=c.n_ff // 2, n_ff_layers=tuple(n // 2 for n in c.n_ff_layers)))
    x = d.embedding()
    for i in range(c.n_layer):
        x = d.attention(x, i, bias=True)
        x = d.feed_forward(x, i)
    return d.model(x)
