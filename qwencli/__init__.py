"""qwencli runs Qwen models from GGUF files on the CPU, from the command line and as a library.

`LLM`, `Graph`, `GGUFFile`, `Tokenizer` and `SamplingParams` are imported when they are first asked for, so that a command pays only for
what it uses.
"""

from importlib import import_module
from typing import Any

from .errors import QwenError

__version__ = "0.1.0"
__all__ = ["LLM", "GGUFFile", "Graph", "QwenError", "SamplingParams", "Tokenizer"]
_HOMES = {
    "LLM": "llm",
    "Graph": "tensors.graph",
    "GGUFFile": "gguf.file",
    "SamplingParams": "sampling",
    "Tokenizer": "text.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
