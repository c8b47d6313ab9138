#!/usr/bin/env python3
"""Write the fixtures in tests/oracles: what transformers and llama.cpp answer, so that the tests need neither.

    python scripts/make_oracles.py models [FOLDER SEED]     hidden states and logits of tiny Qwen2 and Qwen3 models, by transformers

Needs the extra `oracle`.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import tiny_models  # noqa: E402  (lies beside the tests, which share it)

ORACLES = ROOT / "tests" / "oracles"

FIRST = [*range(24)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
MODELS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "qwen3-gqa-tied": (tiny_models.config(tie_word_embeddings=True), FIRST),
    "qwen3-output": (tiny_models.config(
        num_attention_heads=6, num_key_value_heads=3, head_dim=10, rope_theta=1e6, rms_norm_eps=1e-6), FIRST),
    "qwen3-linear": (tiny_models.config(rope_scaling={"rope_type": "linear", "factor": 4.0}), [*range(0, 160, 9)]),
    "qwen3-yarn": (tiny_models.config(head_dim=32, max_position_embeddings=4096, rope_scaling=YARN),
                   [0, 1, 63, 500, 1023, 1024, 1025, 1099]),
    "qwen2-biases": (tiny_models.config("qwen2"), FIRST),
    "qwen2-tied-mqa": (tiny_models.config("qwen2", num_key_value_heads=1, tie_word_embeddings=True), FIRST),
    "qwen2-yarn-betas": (tiny_models.config("qwen2", hidden_size=128, rope_theta=1e6, max_position_embeddings=512, rope_scaling=YARN | {
        "original_max_position_embeddings": 256, "factor": 2.0, "beta_fast": 4.0, "beta_slow": 0.25}), [0, 1, 63, 255, 256, 300]),
}
"""Name: the config, and the positions whose states are kept, of a prompt that ends with the last of them."""


def run_transformers(c: tiny_models.Config, tensors: dict[str, tiny_models.F32], tokens: list[int]) -> dict[str, tiny_models.F32]:
    """The states behind each layer (`l_out-0` ...) and the last norm, and the logits, each [n_tokens, ...], in float32."""
    import torch
    import transformers
    kind = {"qwen2": "Qwen2", "qwen3": "Qwen3"}[c["model_type"]]
    values = {key: value for key, value in c.items() if key != "model_type"}
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**values, attn_implementation="eager"))
    state = {hf_name(name): torch.from_numpy(tensor) for name, tensor in tensors.items()}
    model.load_state_dict(state, strict=not c["tie_word_embeddings"])
    model.tie_weights()
    model.float().eval()
    found: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            found[name] = (out[0] if isinstance(out, tuple) else out).reshape(len(tokens), -1).numpy()
        return hook

    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(keep(f"l_out-{i}"))
    model.model.norm.register_forward_hook(keep("result_norm"))
    model.lm_head.register_forward_hook(keep("result_output"))
    with torch.no_grad():
        model(torch.tensor([tokens]))
    return found


def hf_name(name: str) -> str:
    """transformers' name of a tensor, as llama.cpp's converter maps them."""
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
    if name in whole:
        return whole[name]
    parts = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
             "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{parts[part]}.{kind}"


def make_models(folder: str | Path = ORACLES, first_seed: str | int = 1) -> None:
    for seed, (name, (c, rows)) in enumerate(MODELS.items(), int(first_seed)):
        tokens = np.random.RandomState(1000 + seed).randint(0, c["vocab_size"], rows[-1] + 1)
        found = run_transformers(c, tiny_models.weights(c, seed), tokens.tolist())
        np.savez_compressed(Path(folder) / f"{name}.npz", config=json.dumps(c), seed=seed, tokens=tokens, rows=rows,
                            **{key: value[rows] for key, value in found.items()})


if __name__ == "__main__":
    modes = {"models": make_models}
    if len(sys.argv) < 2 or sys.argv[1] not in modes:
        sys.exit(__doc__)
    modes[sys.argv[1]](*sys.argv[2:])
