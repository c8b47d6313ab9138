"""The folders of compiled kernels: what is in them, whether they can be kept, and deleting them."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..kernels import isa, jit

FOLDER_NAME = re.compile(r"([a-z0-9_]+)-[0-9a-f]{20}")
"""Folders of compiled kernels, see Kernels.folder."""


def kernel_cache() -> dict[str, Any]:
    """The folders of compiled kernels. `current` are those that this version uses on this machine."""
    folder = jit.cache_folder()
    current = {jit.Kernels(each).folder.name for each in isa.available()}
    folders = []
    for path in kernel_folders():
        files = kernel_files(path)
        folders.append(
            {
                "name": path.name,
                "isa": path.name.rpartition("-")[0],
                "kernels": sum(file.suffix == ".o" for file in files),
                "bytes": sum(file.stat().st_size for file in files),
                "current": path.name in current,
            }
        )
    return {"folder": str(folder), "why_not": why_not_kept(folder), "folders": folders}


def kernel_folders() -> list[Path]:
    try:
        return sorted(
            path
            for path in jit.cache_folder().iterdir()
            if FOLDER_NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        )
    except OSError:
        return []


def kernel_files(folder: Path) -> list[Path]:
    """The kernels in a folder, the notes on them, and what killed processes left behind."""
    try:
        return [
            path
            for path in folder.iterdir()
            if (path.suffix in (".o", ".json") or path.name.startswith("tmp")) and path.is_file()
        ]
    except OSError:
        return []


def why_not_kept(folder: Path) -> str | None:
    """Why compiled kernels can't be kept in the cache's folder, None if they can."""
    place = folder
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return f"{place}: {error.strerror or error}"
    untrusted = [each for each in kernel_folders() if not jit.trusted(each.stat())]
    return f"{untrusted[0]}: others can write to it" if untrusted else None


def clear_cache() -> tuple[int, int]:
    """Delete all compiled kernels, those of other versions too, and return how many files and bytes. Files of other kinds stay."""
    n_files = n_bytes = 0
    for folder in kernel_folders():
        for file in kernel_files(folder):
            with suppress(OSError):
                size = file.stat().st_size
                file.unlink()
                n_files, n_bytes = n_files + 1, n_bytes + size
        with suppress(OSError):  # something else is in it
            folder.rmdir()
    return n_files, n_bytes
