"""Models by scripts/make_model.py, with random weights of every type that has kernels."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shapes import PRESETS, Shape

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.gguf.file import GGUFFile
from qwencli.network.load import load_model
from qwencli.network.model import Model

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "make_model.py"


def load_script() -> Any:
    if "make_model" not in sys.modules:
        spec = importlib.util.spec_from_file_location("make_model", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["make_model"] = module = importlib.util.module_from_spec(
            spec
        )  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules["make_model"]


def random_model(folder: Path, mix: str, seed: int = 0, **changed: Any) -> Model:
    """The preset "tiny" of scripts/shapes.py in one of its mixes of types, with another shape where asked for."""
    path = folder / f"{mix}.gguf"
    write_random_model(path, replace(PRESETS["tiny"], **changed), mix, seed)
    return load_model(GGUFFile(path))


def write_random_model(path: Path, shape: Shape, mix: str, seed: int = 0) -> None:
    """A file of this shape, with a made-up vocabulary."""
    mm = load_script()
    mm.write_model(path, "random", shape, mix, mm.make_up_vocabulary(shape.n_vocab).pad(shape.n_vocab), seed)


def compile_together(models: Sequence[Model], fetch: Callable[[Model], Sequence[str]]) -> None:
    """Compile together what steps of one and of many tokens need: model by model, each would wait for processes of its own."""
    specs = set()
    for model in models:
        backend = CPUBackend(model, 1)
        for room in 1, 8:
            specs.update(backend.kernels_for(fetch(model), (), room, room, "choose"))
    backend._kernels.load(sorted(specs))
