"""Where models are: the embedded one, ./models, and the cache of the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

EMBEDDED = Path(__file__).parents[1] / "data" / "demo-q4_k_m.gguf"
MODELS = Path("models")
VARIABLE = "QWENCLI_MODEL"
"""The environment variable that names the model to run."""


def hub_cache() -> Path:
    """The cache of huggingface_hub, from the variables that it reads."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    folder = (
        os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    )
    return Path(os.path.expandvars(os.path.expanduser(folder)))
