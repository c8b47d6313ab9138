"""The hidden states that transformers computes for a tiny model of each architecture, after each layer, in float32.

The weights of a file are turned back into those that llama.cpp's converter (conversion/qwen*.py) would make it from.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from shapes import RECURRENT, Shape

F32 = NDArray[np.float32]
CLASSES = {
    "qwen2": "qwen2.Qwen2",
    "qwen2moe": "qwen2_moe.Qwen2Moe",
    "qwen2vl": "qwen2_vl.Qwen2VLText",
    "qwen3": "qwen3.Qwen3",
    "qwen3moe": "qwen3_moe.Qwen3Moe",
    "qwen3vl": "qwen3_vl.Qwen3VLText",
    "qwen3vlmoe": "qwen3_vl_moe.Qwen3VLMoeText",
    "qwen3next": "qwen3_next.Qwen3Next",
    "qwen35": "qwen3_5.Qwen3_5Text",
    "qwen35moe": "qwen3_5_moe.Qwen3_5MoeText",
}
"""Where transformers has the model; it doesn't have `qwen`."""
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    **{f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")},
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_down_exps": "mlp.experts.down_proj",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_ba": "linear_attn.in_proj_ba",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
    "ssm_dt": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
}


def states(path: Path, s: Shape, tokens: list[int]) -> dict[str, F32]:
    """The hidden states after each layer (`l_out-0` ...) and after the last norm, each float32 [n_tokens, n_embd]."""
    import torch

    module, name = CLASSES[s.arch].split(".")
    models, configs = (
        importlib.import_module(f"transformers.models.{module}.{kind}_{module}")
        for kind in ("modeling", "configuration")
    )
    model = getattr(models, f"{name}Model")(
        getattr(configs, f"{name}Config")(**config(s), attn_implementation="eager")
    )
    model.load_state_dict(
        {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in weights(path, s).items()}
    )
    model.float().eval()
    found: dict[str, F32] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            found[name] = (out[0] if isinstance(out, tuple) else out).reshape(len(tokens), -1).numpy()

        return hook

    for i, layer in enumerate(model.layers):
        layer.register_forward_hook(keep(f"l_out-{i}"))
    model.norm.register_forward_hook(keep("result_norm"))
    with torch.no_grad():
        model(torch.tensor([tokens]))
    return found


def config(s: Shape) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": s.rope_theta}
    if s.n_rot:
        rope["partial_rotary_factor"] = s.n_rot / s.head_dim
    if s.rope_sections:
        rope |= {"mrope_section": list(s.rope_sections[:3]), "mrope_interleaved": s.arch != "qwen2vl"}
    found = {
        "vocab_size": s.n_vocab,
        "hidden_size": s.n_embd,
        "intermediate_size": s.n_ff,
        "num_hidden_layers": s.n_layer,
        "num_attention_heads": s.n_head,
        "num_key_value_heads": s.n_head_kv,
        "head_dim": s.head_dim,
        "rms_norm_eps": s.rms_eps,
        "max_position_embeddings": s.n_ctx,
        "rope_parameters": rope,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if s.n_expert:
        found |= {
            "num_experts": s.n_expert,
            "num_experts_per_tok": s.n_expert_used,
            "moe_intermediate_size": s.n_ff_exp,
            "shared_expert_intermediate_size": s.n_ff_shexp,
            "norm_topk_prob": s.arch != "qwen2moe",
        }
    if s.arch in RECURRENT:
        found |= {
            "linear_num_key_heads": s.n_k_heads,
            "linear_num_value_heads": s.n_v_heads,
            "linear_key_head_dim": s.d_state,
            "linear_value_head_dim": s.d_state,
        }
    return found


def weights(path: Path, s: Shape) -> dict[str, F32]:
    read = {t.name: t.data.astype(np.float32) for t in gguf.GGUFReader(path).tensors}
    found = {
        "embed_tokens.weight": read["token_embd.weight"],
        "norm.weight": read["output_norm.weight"] - (s.arch in RECURRENT),
    }
    for i in range(s.n_layer):
        layer = {
            name.removeprefix(f"blk.{i}."): value
            for name, value in read.items()
            if name.startswith(f"blk.{i}.")
        }
        found |= {f"layers.{i}.{name}": value for name, value in converted(layer, s).items()}
    return found


def converted(layer: dict[str, F32], s: Shape) -> dict[str, F32]:
    """The weights of a layer, with transformers' names and layout."""
    found: dict[str, F32] = {}
    if s.n_expert:
        found["mlp.experts.gate_up_proj"] = np.concatenate(
            [layer.pop(f"ffn_{part}_exps.weight") for part in ("gate", "up")], 1
        )
        found["mlp.experts.down_proj"] = layer.pop("ffn_down_exps.weight")
    if s.arch == "qwen3next" and "ssm_a" in layer:
        found["linear_attn.in_proj_qkvz.weight"] = by_key_head(
            layer.pop("attn_qkv.weight"), layer.pop("attn_gate.weight"), s
        )
    for name, value in layer.items():
        part, _, kind = name.partition(".")
        plain = part in ("ssm_a", "ssm_dt")
        found[NAMES[part] + ("" if plain else f".{kind}")] = (
            grouped(part, value, s) if s.arch.startswith("qwen35") else value
        )
    for name in found:
        if name.endswith("A_log"):
            found[name] = np.log(-found[name])
        elif name.endswith("conv1d.weight"):
            found[name] = found[name][:, None]
        elif name.endswith("norm.weight") and s.arch in RECURRENT and not name.startswith("linear_attn"):
            found[name] = found[name] - 1
        elif name.endswith("shared_expert_gate.weight"):
            found[name] = found[name][None]
    return found


def by_key_head(qkv: F32, z: F32, s: Shape) -> F32:
    """Rows of queries, keys, values and gates, grouped by key head."""
    n_k = s.n_k_heads * s.d_state
    parts = [qkv[:n_k], qkv[n_k : 2 * n_k], qkv[2 * n_k :], z]
    return np.concatenate([part.reshape(s.n_k_heads, -1, s.n_embd) for part in parts], 1).reshape(
        -1, s.n_embd
    )


def grouped(part: str, value: F32, s: Shape) -> F32:
    """Value heads, grouped by the key head that they share; in files they are assigned to key heads in turn."""

    def group(rows: F32) -> F32:
        return rows.reshape(s.n_v_heads // s.n_k_heads, s.n_k_heads, -1).swapaxes(0, 1).reshape(rows.shape)

    if part == "ssm_out":
        return group(np.ascontiguousarray(value.T)).T
    if part in ("attn_qkv", "ssm_conv1d"):
        n_k = 2 * s.n_k_heads * s.d_state
        return np.concatenate([value[:n_k], group(value[n_k:])])
    return group(value) if part in ("attn_gate", "ssm_beta", "ssm_alpha", "ssm_a", "ssm_dt") else value
