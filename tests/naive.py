"""Qwen2 and Qwen3 from their papers, in float64 and over a whole prompt at once: slow, short, and without a cache.

A test holds it against transformers; others take their expected logits from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tiny_models import F32, Config, head_dim

F64 = NDArray[np.float64]


def forward(c: Config, tensors: Mapping[str, F32], tokens: Sequence[int]) -> dict[str, F64]:
    """The hidden states after each layer (`l_out-0` ...) and the last norm, and the logits (`result_output`), each [n_tokens, ...]."""
    assert not c.get("rope_scaling"), "only plain RoPE is written here"
    w = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    n, d, n_head, n_head_kv = len(tokens), head_dim(c), c["num_attention_heads"], c["num_key_value_heads"]
    causal = np.tril(np.ones((n, n), bool))
    found = {}

    def rms_norm(x: F64, weight: F64) -> F64:
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + c["rms_norm_eps"]) * weight

    def rope(x: F64) -> F64:
        angle = np.arange(n)[:, None] * c["rope_theta"] ** (-np.arange(0, d, 2) / d)
        turn = np.exp(1j * angle)[:, None] * (x[..., : d // 2] + 1j * x[..., d // 2 :])
        return np.concatenate([turn.real, turn.imag], -1)

    x = w["token_embd.weight"][list(tokens)]
    for i in range(c["num_hidden_layers"]):

        def project(h: F64, which: str, n_heads: int, i: int = i) -> F64:
            y = (h @ w[f"blk.{i}.attn_{which}.weight"].T + w.get(f"blk.{i}.attn_{which}.bias", 0)).reshape(
                n, n_heads, d
            )
            norm = w.get(f"blk.{i}.attn_{which}_norm.weight")
            return y if norm is None else rms_norm(y, norm)

        h = rms_norm(x, w[f"blk.{i}.attn_norm.weight"])
        q, k, v = rope(project(h, "q", n_head)), rope(project(h, "k", n_head_kv)), project(h, "v", n_head_kv)
        heads = []
        for j in range(n_head):
            shared = j // (n_head // n_head_kv)
            scores = np.where(causal, q[:, j] @ k[:, shared].T / d**0.5, -np.inf)
            chances = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(chances / chances.sum(-1, keepdims=True) @ v[:, shared])
        x = x + np.concatenate(heads, -1) @ w[f"blk.{i}.attn_output.weight"].T
        h = rms_norm(x, w[f"blk.{i}.ffn_norm.weight"])
        gate, up = h @ w[f"blk.{i}.ffn_gate.weight"].T, h @ w[f"blk.{i}.ffn_up.weight"].T
        x = found[f"l_out-{i}"] = x + gate / (1 + np.exp(-gate)) * up @ w[f"blk.{i}.ffn_down.weight"].T
    found["result_norm"] = rms_norm(x, w["output_norm.weight"])
    found["result_output"] = found["result_norm"] @ w.get("output.weight", w["token_embd.weight"]).T
    return found


def greedy(c: Config, tensors: Mapping[str, F32], prompt: Sequence[int], n: int) -> list[int]:
    """The `n` tokens that follow `prompt` when the likeliest is always taken."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(forward(c, tensors, tokens)["result_output"][-1].argmax()))
    return tokens[len(prompt) :]
