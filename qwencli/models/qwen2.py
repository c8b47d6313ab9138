"""Qwen2 and Qwen2.5, dense (https://arxiv.org/abs/2407.10671): grouped-query attention with biases on queries, keys and values."""
from ..blocks import attention, feed_forward, output_head
from ..gguf_file import GGUFFile
from ..graph import Graph, Tensor
from ..model import Model, Weights, read_config


def build(file: GGUFFile) -> Model:
    """The graph of a Qwen2 file. Raises ModelError for missing tensors and wrong shapes."""
    c = read_config(file, "qwen2")
    g = Graph()
    w = Weights(file, g)

    def project(h: Tensor, which: str, n_head: int, i: int) -> Tensor:
        n_out = n_head * c.head_dim
        weight, bias = w(f"blk.{i}.attn_{which}.weight", n_out, c.n_embd), w(f"blk.{i}.attn_{which}.bias", n_out)
        flat = g.linear(weight, h, f"{which.upper()}cur_flat-{i}", bias)
        return g.heads(flat, n_head, f"{which.upper()}cur_heads-{i}")

    x = g.get_rows(w("token_embd.weight", c.n_vocab, c.n_embd), g.tokens, "inp_embd")
    for i in range(c.n_layer):
        h = g.rms_norm(x, w(f"blk.{i}.attn_norm.weight", c.n_embd), c.rms_eps, f"attn_norm-{i}")
        q, k, v = project(h, "q", c.n_head, i), project(h, "k", c.n_head_kv, i), project(h, "v", c.n_head_kv, i)
        x = attention(g, w, c, q, k, v, x, i)
        x = feed_forward(g, w, c, x, i)
    output_head(g, w, c, x)
    w.check_all_used()
    return Model(file, c, g)
