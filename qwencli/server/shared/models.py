"""What several APIs tell of the model."""

from __future__ import annotations

from typing import Any

from ...gguf.types import FILE_TYPES
from ...llm import LLM
from ..options import ServerOptions


def file_type(llm: LLM) -> str:
    """The type of most weights, as the file says."""
    return FILE_TYPES.get(llm.file.metadata.integer("general.file_type", -1, -(2**31)), "unknown")


def figures(llm: LLM) -> dict[str, Any]:
    """What llama-server calls a model's `meta`: `vocab_type` 2 is BPE, `size` the bytes of all weights."""
    c, tensors = llm.model.config, llm.file.tensors.values()
    return {
        "vocab_type": 2,
        "n_vocab": c.n_vocab,
        "n_ctx": llm.engine.n_ctx,
        "n_ctx_train": c.n_ctx,
        "n_embd": c.n_embd,
        "n_params": sum(t.n_weights for t in tensors),
        "size": sum(t.n_bytes for t in tensors),
        "ftype": file_type(llm),
    }


def listed(options: ServerOptions) -> dict[str, Any]:
    """The model in the list `models`, which llama-server has next to OpenAI's `data`."""
    empty = dict.fromkeys(("parent_model", "family", "parameter_size", "quantization_level"), "")
    return {
        "name": options.name,
        "model": options.name,
        **dict.fromkeys(("modified_at", "size", "digest"), ""),
        "type": "model",
        "description": "",
        "tags": [""],
        "capabilities": ["embedding"] if options.only else ["completion"],
        "parameters": "",
        "details": empty | {"format": "gguf", "families": [""]},
    }
