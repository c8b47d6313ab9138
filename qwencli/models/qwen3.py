"""Qwen3, dense (https://arxiv.org/abs/2505.09388): grouped-query attention with normalised queries and keys, no biases."""
from ..blocks import attention, feed_forward, output_head
from ..gguf_file import GGUFFile
from ..graph import Graph, Tensor
from ..model import Model, Weights, read_config


def build(file: GGUFFile) -> Model:
    """The graph of a Qwen3 file. Raises ModelError for missing tensors and wrong shapes."""
    c = read_config(file, "qwen3")
    g = Graph()
    w = Weights(file, g)

    def project(h: Tensor, which: str, n_head: int, i: int) -> Tensor:
        flat = g.linear(w(f"blk.{i}.attn_{which}.weight", n_head * c.head_dim, c.n_embd), h, f"{which.upper()}cur_flat-{i}")
        return g.heads(flat, n_head, f"{which.upper()}cur_heads-{i}")

    def head_norm(x: Tensor, which: str, i: int) -> Tensor:
        return g.rms_norm(x, w(f"blk.{i}.attn_{which}_norm.weight", c.head_dim), c.rms_eps, f"{which.upper()}cur_normed-{i}")

    x = g.get_rows(w("token_embd.weight", c.n_vocab, c.n_embd), g.tokens, "inp_embd")
    for i in range(c.n_layer):
        h = g.rms_norm(x, w(f"blk.{i}.attn_norm.weight", c.n_embd), c.rms_eps, f"attn_norm-{i}")
        q, k, v = project(h, "q", c.n_head, i), project(h, "k", c.n_head_kv, i), project(h, "v", c.n_head_kv, i)
        q, k = head_norm(q, "q", i), head_norm(k, "k", i)
        x = attention(g, w, c, q, k, v, x, i)
        x = feed_forward(g, w, c, x, i)
    output_head(g, w, c, x)
    w.check_all_used()
    return Model(file, c, g)
