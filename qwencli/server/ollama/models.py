"""What Ollama's API tells of the model."""

from __future__ import annotations

import hashlib
import math
from datetime import datetime, timezone
from typing import Any

from ...gguf.metadata import LazyArray
from ...llm import LLM
from ..options import ServerOptions
from ..shared.models import file_type

Object = dict[str, Any]
FOREVER = "2318-12-31T23:59:59Z"
"""When a model expires that stays loaded."""
UNITS = (10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)
"""With the decimal places of what isn't a whole number of them."""


def about(llm: LLM, options: ServerOptions) -> Object:
    """The model in a list."""
    status = llm.file.path.stat()
    stamp = f"{options.name}\0{status.st_size}\0{status.st_mtime_ns}"
    return {
        "name": options.name,
        "model": options.name,
        "modified_at": datetime.fromtimestamp(status.st_mtime, timezone.utc).isoformat(),
        "size": sum(t.n_bytes for t in llm.file.tensors.values()),
        # of the name, the size and the time: reading gigabytes for it would take seconds
        "digest": hashlib.sha256(stamp.encode()).hexdigest(),
        "details": details(llm),
    }


def details(llm: LLM) -> Object:
    c = llm.model.config
    n_weights = sum(t.n_weights for t in llm.file.tensors.values())
    return {
        "parent_model": "",
        "format": "gguf",
        "family": c.architecture,
        "families": [c.architecture],
        "parameter_size": parameter_size(n_weights),
        "quantization_level": file_type(llm),
        "context_length": c.n_ctx,
        "embedding_length": c.n_embd,
    }


def parameter_size(n: int) -> str:
    """A number of weights in Ollama's form, such as 596.05M."""
    for unit, letter, digits in UNITS:
        if n >= unit:
            return f"{n / unit:.{digits if n % unit else 0}f}{letter}"
    return str(n)


def running(llm: LLM, options: ServerOptions) -> Object:
    """The model in the list of those that are loaded."""
    known = about(llm, options)
    del known["modified_at"]
    return known | {"expires_at": FOREVER, "size_vram": 0, "context_length": llm.engine.n_ctx}


def shown(llm: LLM, options: ServerOptions, verbose: bool) -> Object:
    """All that is known of it. Long lists of the file, such as its vocabulary, only where they are asked for."""
    template = llm.file.metadata.string("tokenizer.chat_template", "")
    listed = about(llm, options)
    return {
        "license": llm.file.metadata.string("general.license", ""),
        "modelfile": f"FROM {options.name}\n",
        "parameters": parameters(options),
        "template": template,
        "details": listed["details"],
        "model_info": {key: shown_value(value, verbose) for key, value in llm.file.metadata.items()},
        "capabilities": capabilities(llm, options),
        "modified_at": listed["modified_at"],
    }


def shown_value(value: Any, verbose: bool) -> Any:
    """A value of the file as JSON knows it."""
    if isinstance(value, LazyArray):
        return shown_value(value.read(), verbose) if verbose else None
    if isinstance(value, list):
        return [shown_value(each, verbose) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parameters(options: ServerOptions) -> str:
    """The sampling settings that apply where a request has none, one a line."""
    p = options.sampling
    names = {"temperature": p.temp, "top_k": p.top_k, "top_p": p.top_p, "min_p": p.min_p}
    return "\n".join(f"{name:<30} {value:g}" for name, value in names.items())


def capabilities(llm: LLM, options: ServerOptions) -> list[str]:
    """What clients may ask of the model."""
    template = options.template
    return [
        "completion",
        *(["tools"] if template and "tools" in template.source else []),
        *(["thinking"] if template and template.knows_thinking else []),
        *([] if llm.tokenizer.fim.missing else ["insert"]),
        "embedding",
    ]
