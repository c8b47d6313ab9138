"""From a file to its model: the architecture that its metadata names is a module of that name in `architectures/`."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace

from ..errors import ModelError, shown
from ..gguf.file import GGUFFile
from . import architectures
from .keys import check_keys
from .model import Model


def known_architectures() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(architectures.__path__))


def load_model(file: GGUFFile) -> Model:
    """Build the graph of the file's architecture. Raises ModelError if the file does not describe a model that can be run."""
    architecture = file.metadata.string("general.architecture")
    if architecture not in known_architectures():
        raise ModelError(
            f"{file.path}: the architecture '{shown(architecture)}' is not supported; known are {', '.join(known_architectures())};"
            " how to add one: CONTRIBUTING.md"
        )
    warnings = check_keys(file, architecture)
    model: Model = importlib.import_module(f"{architectures.__name__}.{architecture}").build(file)
    return replace(model, warnings=tuple(warnings))
