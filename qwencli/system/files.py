"""Files that are read whole, and written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError, QwenError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block is done; if the block raises, nothing has changed.

    It is written next to `path` and renamed, so that readers and other writers see the old file or the new one, never a part. A symbolic
    link stays, and what it points to is replaced; permissions stay too, and a new file is the user's alone. It isn't synced to disk.
    Raises InputError if there can't be a file at `path`, QwenError if it can't be written.
    """
    target = _target(path)
    try:
        handle, part = tempfile.mkstemp(dir=target.parent, prefix=".qwencli-")
        try:
            with os.fdopen(handle, "wb") as f:
                yield f
            if target.exists():
                shutil.copymode(target, part)
            os.replace(part, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
    except OSError as error:
        raise QwenError(f"{path}: cannot be written: {error.strerror or error}") from None


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raises now what `replacing` would raise after long work: InputError, or QwenError if the folder or the file can't be written to."""
    target = _target(path)
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise QwenError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_file(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The bytes of a file, or the first `max_bytes` + 1 of a larger one.

    Raises QwenError if it can't be read, InputError if it isn't a regular file: opening a pipe waits for somebody to write to it.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: cannot be read: not a regular file")
    try:
        with open(path, "rb") as f:
            return f.read(max_bytes + 1)
    except OSError as error:
        raise QwenError(f"{path}: cannot be read: {error.strerror or error}") from None


def _target(path: str | os.PathLike[str]) -> Path:
    """The file that `path` leads to. Raises InputError if it isn't a file or is read-only: renaming needs only the folder's permission."""
    target = Path(os.path.realpath(path))
    if os.path.exists(target):
        if not target.is_file():
            raise InputError(f"{path}: not a regular file, so it is not written")
        if not os.access(target, os.W_OK):
            raise InputError(f"{path}: cannot be written: it is read-only")
    return target
