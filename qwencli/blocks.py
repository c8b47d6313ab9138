"""The parts of a transformer layer that the Qwen architectures share, written once for their files in `models/`."""
from __future__ import annotations

from .graph import Graph, Tensor
from .model import Config, Weights


def attention(g: Graph, w: Weights, c: Config, q: Tensor, k: Tensor, v: Tensor, x: Tensor, i: int) -> Tensor:
    """RoPE, causal attention over the cache of layer `i`, the output projection, and x added to it.

    q is [n_tokens, n_head, head_dim], k and v [n_tokens, n_head_kv, head_dim], x [n_tokens, n_embd]. In the last layer the result has only
    the rows whose logits are wanted: nothing behind it looks at the others.
    """
    q, k = g.rope(q, c.rope, f"Qcur-{i}"), g.rope(k, c.rope, f"Kcur-{i}")
    a = g.attention(q, g.kv_store(k, v, i, f"kv-{i}"), c.head_dim ** -0.5, f"kqv_out-{i}")
    a = g.linear(w(f"blk.{i}.attn_output.weight", c.n_embd, c.n_head * c.head_dim), a, f"attn_out-{i}")
    if i == c.n_layer - 1:
        a, x = g.get_rows(a, g.outputs, f"attn_out_rows-{i}"), g.get_rows(x, g.outputs, f"inp_rows-{i}")
    return g.add(a, x, f"ffn_inp-{i}")


def feed_forward(g: Graph, w: Weights, c: Config, x: Tensor, i: int) -> Tensor:
    """The dense SwiGLU network of layer `i` on the normalised x, and x added to it: [k, n_embd] -> [k, n_embd]."""
    h = g.rms_norm(x, w(f"blk.{i}.ffn_norm.weight", c.n_embd), c.rms_eps, f"ffn_norm-{i}")
    gate = g.linear(w(f"blk.{i}.ffn_gate.weight", c.n_ff, c.n_embd), h, f"ffn_gate-{i}")
    up = g.linear(w(f"blk.{i}.ffn_up.weight", c.n_ff, c.n_embd), h, f"ffn_up-{i}")
    h = g.linear(w(f"blk.{i}.ffn_down.weight", c.n_embd, c.n_ff), g.swiglu(gate, up, f"ffn_swiglu-{i}"), f"ffn_out-{i}")
    return g.add(h, x, f"l_out-{i}")


def output_head(g: Graph, w: Weights, c: Config, x: Tensor) -> Tensor:
    """The last norm and the logits, [n_outputs, n_vocab]; the embedding is the output matrix when the file has no other."""
    x = g.rms_norm(x, w("output_norm.weight", c.n_embd), c.rms_eps, "result_norm")
    output = w.optional("output.weight", c.n_vocab, c.n_embd) or w("token_embd.weight", c.n_vocab, c.n_embd)
    return g.linear(output, x, "result_output", w.optional("output.bias", c.n_vocab))
