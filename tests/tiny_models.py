"""Tiny models for the tests: weights drawn from a seed, and the GGUF file of a model in transformers' own terms.

A config is a dict of the values that transformers' Qwen2Config and Qwen3Config take, `model_type` included. Weights go by their names in
the file, and are float32 in NumPy's order, [n_out, n_in].
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Config = Mapping[str, Any]


def config(model_type: str = "qwen3", **changed: Any) -> dict[str, Any]:
    """A tiny config in which no shape equals another that it could be mistaken for."""
    base: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": 72,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-3,
        "rope_theta": 10000.0,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    return base | ({"head_dim": 16} if model_type == "qwen3" else {}) | changed


def head_dim(c: Config) -> int:
    return int(c.get("head_dim", c["hidden_size"] // c["num_attention_heads"]))


def weights(c: Config, seed: int) -> dict[str, F32]:
    """Random weights that keep the hidden states near 1. The stream of a RandomState's uniform numbers never changes (NEP 19)."""
    rs = np.random.RandomState(seed)

    def draw(*shape: int, around: float = 0.0, width: float = 1.0) -> F32:
        return (around + width * (2 * rs.random_sample(shape) - 1)).astype(np.float32)

    def matrix(n_out: int, n_in: int) -> F32:
        return draw(n_out, n_in, width=(3 / n_in) ** 0.5)

    d, n_embd, n_ff = head_dim(c), c["hidden_size"], c["intermediate_size"]
    tensors = {"token_embd.weight": draw(c["vocab_size"], n_embd)}
    for i in range(c["num_hidden_layers"]):
        layer = {"attn_norm.weight": draw(n_embd, around=1, width=0.3)}
        for which, n_head in (
            ("q", c["num_attention_heads"]),
            ("k", c["num_key_value_heads"]),
            ("v", c["num_key_value_heads"]),
        ):
            layer[f"attn_{which}.weight"] = matrix(n_head * d, n_embd)
            if c["model_type"] == "qwen2":
                layer[f"attn_{which}.bias"] = draw(n_head * d)
            elif which != "v":
                layer[f"attn_{which}_norm.weight"] = draw(d, around=1, width=0.3)
        layer |= {
            "attn_output.weight": matrix(n_embd, c["num_attention_heads"] * d),
            "ffn_norm.weight": draw(n_embd, around=1, width=0.3),
            "ffn_gate.weight": matrix(n_ff, n_embd),
            "ffn_up.weight": matrix(n_ff, n_embd),
            "ffn_down.weight": matrix(n_embd, n_ff),
        }
        tensors |= {f"blk.{i}.{name}": tensor for name, tensor in layer.items()}
    tensors["output_norm.weight"] = draw(n_embd, around=1, width=0.3)
    if not c["tie_word_embeddings"]:
        tensors["output.weight"] = matrix(c["vocab_size"], n_embd)
    return tensors


def write_gguf(
    path: str | PathLike[str], c: Config, tensors: Mapping[str, F32], architecture: str | None = None
) -> None:
    """The file that llama.cpp's converter makes of such a model, without a vocabulary."""
    w = gguf.GGUFWriter(path, architecture or c["model_type"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_rope_freq_base(c["rope_theta"])
    if "head_dim" in c:
        w.add_key_length(c["head_dim"])
        w.add_value_length(c["head_dim"])
    if scaling := c.get("rope_scaling"):
        w.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
        w.add_rope_scaling_factor(scaling["factor"])
        if scaling["rope_type"] == "yarn":
            w.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        if "beta_fast" in scaling:
            for name in "beta_fast", "beta_slow":
                w.add_float32(f"{w.arch}.rope.scaling.yarn_{name}", scaling[name])
    for name, tensor in tensors.items():
        w.add_tensor(name, tensor)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
