"""The models on this machine by name: $QWENCLI_MODEL, in ./models, in the hub's cache, in Ollama's store, and the embedded one.

Only file names and Ollama's manifests are read here. The hub's cache is searched without huggingface_hub, whose import takes 0.3 s.
Its layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .names import HubName, choose, models_among, names_of
from .places import EMBEDDED, MODELS, VARIABLE, hub_cache

OLLAMA_MODEL = "application/vnd.ollama.image.model"


class Installed(NamedTuple):
    """A model: the name that `-m` takes, its files (several if it is split), and its owner: qwencli, folder, hub or ollama.

    A model of the hub also has its repository and the path of its first file there.
    """

    name: str
    paths: tuple[Path, ...]
    owner: str
    repo: str = ""
    file: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths if path.is_file())


def installed() -> list[Installed]:
    """All models on this machine that are complete, each name once."""
    found: dict[str, Installed] = {}
    for source in (
        in_variable(),
        in_folder(MODELS),
        in_hub_cache(),
        in_ollama(),
        [Installed("demo", (EMBEDDED,), "qwencli")],
    ):
        for model in source:
            found.setdefault(model.name, model)
    return list(found.values())


def find(name: str, first: bool = False, hub: bool = False) -> Installed | None:
    """The model of that name; for `user/repo` the one that names.choose takes. With `hub`, only models of the hub count.

    Raises InputError if only a repository is named and several of its models are here.
    """
    models = {model.name: model for model in installed() if model.repo or not hub}
    if exact := models.get(name) or models.get(f"{name}:latest"):
        return exact
    wanted = HubName.parse(name)
    sizes: dict[str, int | None] = {}
    if wanted:
        repo = {model.file: model for model in models.values() if model.repo.lower() == wanted.repo.lower()}
        sizes = dict.fromkeys(repo)
    if not wanted or not sizes:
        return None
    try:
        return repo[choose(wanted, sizes, first)]
    except InputError:
        if wanted.tag or wanted.file:
            return None  # what is here is not what was asked for
        raise


def near(name: str, models: list[str] | None = None) -> list[str]:
    """Up to three names similar to this one, among the installed models or the given names."""
    names = [model.name for model in installed()] if models is None else models
    by_key: dict[str, list[str]] = {}
    for full in names:  # names are similar as a whole, without the user, or without the tag too
        last = full.rpartition("/")[2]
        for key in {full.lower(), last.lower(), last.partition(":")[0].lower()}:
            by_key.setdefault(key, []).append(full)
    keys = [
        key
        for text in (name.lower(), name.rpartition("/")[2].lower())
        for key in difflib.get_close_matches(text, by_key, 4)
    ]
    return list(dict.fromkeys(full for key in keys for full in by_key[key]))[:3]


# -- Where models are ---------------------------------------------------------------------------------------------------


def in_variable() -> Iterator[Installed]:
    value = os.environ.get(VARIABLE, "")
    if os.path.isdir(value):
        yield from in_folder(Path(value))
    elif os.path.isfile(value):
        yield Installed(value, (Path(value),), "folder")


def in_folder(folder: Path) -> Iterator[Installed]:
    for first, files in models_among(_listing(folder)).items():
        yield Installed(str(folder / first), tuple(folder / file for file in files), "folder")


def in_hub_cache() -> Iterator[Installed]:
    """If several revisions have a file, the main branch's counts, or else the newest."""
    for name in _listing(hub_cache()):
        folder = hub_cache() / name
        if not re.fullmatch(r"models--.+?--.+", name):
            continue
        repo = name.removeprefix("models--").replace("--", "/", 1)
        found: dict[str, tuple[Path, ...]] = {}
        for snapshot in _snapshots(folder):
            files = [
                path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf") if path.is_file()
            ]
            for first, parts in models_among(files).items():
                found.setdefault(first, tuple(snapshot / part for part in parts))
        names = names_of(repo, found)
        yield from (Installed(names[first], paths, "hub", repo, first) for first, paths in found.items())


def _snapshots(folder: Path) -> list[Path]:
    try:
        main = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = ""
    snapshots = [folder / "snapshots" / name for name in _listing(folder / "snapshots")]
    return sorted(snapshots, key=lambda path: (path.name == main, path.stat().st_mtime), reverse=True)


def in_ollama() -> Iterator[Installed]:
    """By Ollama's names, with the tag, but without its own registry's host and library."""
    own = (
        [os.environ["OLLAMA_MODELS"]]
        if os.environ.get("OLLAMA_MODELS")
        else ["~/.ollama/models", "/usr/share/ollama/.ollama/models"]
    )
    for folder in (Path(os.path.expanduser(name)) for name in own):
        for manifest in sorted((folder / "manifests").glob("*/*/*/*")):
            blob = _ollama_blob(folder, manifest)
            if blob:
                *place, model, tag = manifest.relative_to(folder / "manifests").parts
                name = "/".join([*place, model]).removeprefix("registry.ollama.ai/").removeprefix("library/")
                yield Installed(f"{name}:{tag}", (blob,), "ollama")


def _ollama_blob(folder: Path, manifest: Path) -> Path | None:
    try:
        layers = json.loads(manifest.read_bytes())["layers"]
        digest = next(layer["digest"] for layer in layers if layer["mediaType"] == OLLAMA_MODEL)
        blob = folder / "blobs" / digest.replace(":", "-")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, StopIteration):
        return None  # not a manifest, or one of something else
    return blob if blob.parent == folder / "blobs" and blob.is_file() else None


def _listing(folder: Path) -> list[str]:
    """The names in a folder; none if it is missing or can't be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
