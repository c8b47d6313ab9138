"""Files that are read as a whole, and written as a whole or not at all."""

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
def replacing(path: str | os.PathLike[str], private: bool = True) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block is done; if the block raises, nothing has changed.

    It is written next to `path` and then renamed, so that readers and other writers see the old file or the new one, never a part of
    one. If `path` is a symbolic link, the link stays and its target is replaced. Permissions stay too; a file that didn't exist gets
    permissions for its user only, or the usual ones if it isn't `private`. It isn't synced to the disk. Raises InputError if `path` can't
    be a file, QwenError if it can't be written.
    """
    target = _target(path)
    try:
        handle, part = tempfile.mkstemp(dir=target.parent, prefix=".qwencli-")
        try:
            with os.fdopen(handle, "wb") as f:
                yield f
            if target.exists():
                shutil.copymode(target, part)
            elif not private:
                os.chmod(part, 0o666 & ~_umask())
            os.replace(part, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
    except OSError as error:
        raise QwenError(f"{path}: cannot be written: {error.strerror or error}") from None


def _umask() -> int:
    """The permissions that new files don't get. It can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raise now what `replacing` would raise after long work: the folder doesn't exist, or the folder or the file isn't writable.

    Raises InputError and QwenError as `replacing` does.
    """
    target = _target(path)
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise QwenError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_file(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The contents of a file; if it is larger than `max_bytes`, one byte more than that.

    Raises QwenError if it cannot be read, InputError if it isn't a regular file: opening a pipe would wait for somebody to write to it.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: cannot be read: not a regular file")
    try:
        with open(path, "rb") as f:
            return f.read(max_bytes + 1)
    except OSError as error:
        raise QwenError(f"{path}: cannot be read: {error.strerror or error}") from None


def _target(path: str | os.PathLike[str]) -> Path:
    """The file that `path` leads to. Raises InputError if it isn't a regular file, or if it is read-only.

    Renaming alone would not notice the latter: it only needs permission to write to the folder.
    """
    target = Path(os.path.realpath(path))
    if os.path.exists(target):
        if not target.is_file():
            raise InputError(f"{path}: not a regular file, so it is not written")
        if not os.access(target, os.W_OK):
            raise InputError(f"{path}: cannot be written: it is read-only")
    return target
