"""Which metadata keys count, and what becomes of the others: no key that changes results is ignored in silence.

The names are llama.cpp's (LLM_KV_NAMES in llama-arch.cpp), and some of Ollama's converter. `{arch}` is the file's architecture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import ModelError, shown
from ..gguf.file import GGUFFile
from ..gguf.metadata import LazyArray, Metadata

READ = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "nextn_predict_layers",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.causal",
    "attention.recurrent_layers",
    "full_attention_interval",
    "pooling_type",
    "classifier.output_labels",
    "classifier.pooling_type",
    "rope.dimension_count",
    "rope.dimension_sections",
    "rope.mrope_section",
    "mrope_sections",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "norm_top_k_prob",
    "ssm.conv_kernel",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
    "ssm.group_count",
    "ssm.v_head_reordered",
]
"""Of `{arch}.`: read by config.py, rope.py and the architectures, which refuse values that they can't follow."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "router_logit_softcapping": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attention.output_scale": (0, 1),
    "attention.value_scale": (0, 1),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "attention.shared_kv_layers": (0,),
    "attention.q_lora_rank": (0,),
    "attention.kv_lora_rank": (0,),
    "embedding_length_out": (0,),
    "use_parallel_residual": (False,),
    "expert_weights_scale": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_gating_func": (0, 1),
    "leading_dense_block_count": (0,),
    "moe_every_n_layers": (0, 1),
    "interleave_moe_layer_step": (0, 1),
    "swiglu_clamp_exp": (0,),
    "swiglu_clamp_shexp": (0,),
    "hidden_activation": ("silu", "swiglu"),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.yarn_attn_factor": (0, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "rope.freq_base_swa": (),
    "num_loops": (0, 1),
}
"""Of `{arch}.`: what these networks don't compute. Any other value than these, which change nothing, is refused."""

WARNED = {
    "attention.sliding_window": "attention sees the whole context instead, as in llama.cpp",
    "attention.sliding_window_pattern": "attention sees the whole context instead, as in llama.cpp",
    "expert_weights_norm": "the architecture decides, as in llama.cpp",
}
"""Of `{arch}.`: not followed, with a warning that says what is done. Keys that no list names are warned about, too."""

HARMLESS = [
    "vocab_size",
    "rope.scaling.finetuned",
    "rope.mrope_interleaved",
    "n_deepstack_layers",
    "deepstack_mapping",
    "expert_shared_count",
    "tensor_data_layout",
    "attention.layer_norm_epsilon",
    "attention.group_norm_epsilon",
    "decoder_start_token_id",
    "image_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
]
"""Of `{arch}.`: known, and without effect on text."""
HARMLESS_PARTS = "vision.", "audio.", "projector.", "split."
"""Of `{arch}.`: what these begin is about other parts of a file."""

TOKENIZER_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_space_prefix": (False,),
    "remove_extra_whitespaces": (False,),
    "normalizer.lowercase": (False,),
    "normalizer.strip_accents": (False,),
    "precompiled_charsmap": (),
    "suppress_tokens": (),
}
"""Of `tokenizer.ggml.`: what byte-level BPE doesn't do, in llama.cpp either. Any other value is warned about."""


def check_keys(file: GGUFFile, arch: str) -> list[str]:
    """What a user should know of a file's keys, a line each. Raises ModelError for a key that asks for something that isn't computed."""
    return [*_network_keys(file, arch), *_tokenizer_keys(file.metadata)]


def _network_keys(file: GGUFFile, arch: str) -> Iterator[str]:
    unknown = []
    for key in file.metadata:
        name = key.removeprefix(f"{arch}.")
        if name == key or name in READ or name in HARMLESS or name.startswith(HARMLESS_PARTS):
            continue
        value = file.metadata[key]
        if name in NEUTRAL:
            if not is_neutral(value, NEUTRAL[name]) and not is_width(name, value, file, arch):
                raise ModelError(
                    f"{file.path}: metadata key '{key}' is {text_of(value)}, which isn't supported"
                )
        elif name in WARNED:
            if not is_neutral(value, (0,)):
                yield f"metadata key '{key}' is not followed: {WARNED[name]}"
        else:
            unknown.append(shown(key))
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        yield f"the file has keys that are not known and not followed: {', '.join(unknown[:3])}{more}"


def _tokenizer_keys(metadata: Metadata) -> Iterator[str]:
    for name, neutral in TOKENIZER_NEUTRAL.items():
        key = f"tokenizer.ggml.{name}"
        if key in metadata and not is_neutral(metadata[key], neutral):
            yield f"metadata key '{key}' is not followed: byte-level BPE knows no such step"


def is_width(name: str, value: Any, file: GGUFFile, arch: str) -> bool:
    """Whether an output width is that of the hidden states, so that nothing has to be done for it."""
    return name == "embedding_length_out" and value == file.metadata.get(f"{arch}.embedding_length")


def is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether a value, or each element of an array, is one of those."""
    if isinstance(value, LazyArray):
        return all(each in neutral for each in value.read())
    return value in neutral


def text_of(value: Any) -> str:
    return "an array" if isinstance(value, LazyArray) else shown(value)
