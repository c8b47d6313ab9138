"""Removing installed models: only what is in the hub's cache or in ./models, and only what nothing else there refers to."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import InputError
from .installed import Installed, installed, near
from .places import MODELS, hub_cache


def removable(name: str) -> Installed:
    """The installed model of exactly that name. Raises InputError if there is none, or if it isn't ours to remove."""
    models = {model.name: model for model in installed()}
    model = models.get(name) or models.get(str(Path(name)))
    if model is None:
        of_repo = [
            other.name for other in models.values() if other.repo and other.repo.lower() == name.lower()
        ]
        if len(of_repo) != 1:
            names = of_repo or near(name)
            raise InputError(
                f"{name}: no model of that name, see `qwencli list`{'; similar names: ' + ', '.join(names) if names else ''}"
            )
        model = models[of_repo[0]]
    if model.owner == "ollama":
        raise InputError(f"{name}: belongs to Ollama, remove it with `ollama rm {name}`")
    if model.owner == "qwencli":
        raise InputError(f"{name}: comes with qwencli and is removed with it")
    if model.owner == "folder" and model.paths[0].parent != MODELS:
        raise InputError(f"{name}: is neither in the hub's cache nor in ./models, remove the file itself")
    return model


def remove(model: Installed) -> int:
    """Remove a model's files, in the hub's cache those of all revisions. Returns how many bytes that freed."""
    if model.owner == "folder":
        return sum(_unlink(path) for path in model.paths)
    folder = hub_cache() / ("models--" + model.repo.replace("/", "--"))
    snapshots, n_bytes = folder / "snapshots", 0
    files = [
        path.relative_to(snapshot)
        for path in model.paths
        for snapshot in snapshots.iterdir()
        if path.is_relative_to(snapshot)
    ]
    blobs = set()
    for path in (snapshot / file for snapshot in snapshots.iterdir() for file in files):
        if path.is_symlink():
            blobs.add(path.parent / path.readlink())
        if path.is_symlink() or path.is_file():
            n_bytes += _unlink(path)
    left = [path for path in snapshots.rglob("*") if path.is_symlink() or path.is_file()]
    used = {path.resolve() for path in left}
    for blob in {blob.resolve() for blob in blobs} - used:
        if blob.parent == (folder / "blobs").resolve() and blob.is_file():
            n_bytes += _unlink(blob)
    if not left:
        n_bytes += sum(path.stat().st_size for path in (folder / "blobs").glob("*.incomplete"))
        shutil.rmtree(folder)
    return n_bytes


def _unlink(path: Path) -> int:
    """Remove a file or a link. Returns the bytes that this frees: none for a link."""
    n_bytes = 0 if path.is_symlink() or path.stat().st_nlink > 1 else path.stat().st_size
    path.unlink()
    return n_bytes
