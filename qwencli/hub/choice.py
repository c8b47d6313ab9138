"""The model file that a command means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..errors import QwenError
from ..gguf.file import SPLIT_NAME
from .places import EMBEDDED, MODELS, VARIABLE


class ModelPath(NamedTuple):
    """A file, and in words why it was chosen."""

    path: Path
    reason: str


def find_model(chosen: str | None = None) -> ModelPath:
    """The file to run: `chosen`, else $QWENCLI_MODEL, else the one GGUF in ./models, else the embedded model.

    The first two may be a file, a folder that holds one GGUF, or the name of an installed model. Raises QwenError if there is none, or
    more than one to choose from.
    """
    if chosen == "":
        raise QwenError("the model's path is empty, expected a GGUF file or a folder with one")
    for value, reason in (chosen, "-m"), (os.environ.get(VARIABLE), f"${VARIABLE}"):
        if value and os.path.isdir(value):
            return ModelPath(_in_folder(Path(value)), reason)
        if value:
            return ModelPath(Path(value), reason) if os.path.lexists(value) else _by_name(value, reason)
    if candidates := _models_of(MODELS):
        return ModelPath(_only(MODELS, candidates), "the one in ./models")
    return ModelPath(EMBEDDED, "embedded: a tiny demo model, choose another with -m")


def _by_name(name: str, reason: str) -> ModelPath:
    from .installed import find, near  # looks through folders: only where no path is given

    if model := find(name):
        return ModelPath(model.paths[0], f"{reason} {name}")
    if not os.path.isabs(name) and (names := near(name)):
        raise QwenError(f"{name}: no such file and no model of that name; similar names: {', '.join(names)}")
    if os.path.isabs(name) or name.endswith(".gguf"):
        return ModelPath(Path(name), reason)  # opening it says what is wrong
    raise QwenError(f"{name}: no such file and no model of that name; see `qwencli list`")


def _models_of(folder: Path) -> list[Path]:
    """The GGUF files of a folder; of a split one only the first part."""
    try:
        files = sorted(p for p in folder.iterdir() if p.suffix == ".gguf")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise QwenError(f"{folder}: cannot be listed: {error.strerror}") from None
    splits = ((p, SPLIT_NAME.fullmatch(p.name)) for p in files)
    return [p for p, split in splits if not split or int(split["number"]) == 1]


def _in_folder(folder: Path) -> Path:
    candidates = _models_of(folder)
    if not candidates:
        raise QwenError(f"{folder}: the folder holds no .gguf file, expected one")
    return _only(folder, candidates)


def _only(folder: Path, candidates: list[Path]) -> Path:
    if len(candidates) > 1:
        raise QwenError(
            f"{folder}: the folder holds {len(candidates)} models, choose one with -m: {', '.join(p.name for p in candidates)}"
        )
    return candidates[0]
