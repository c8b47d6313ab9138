"""Keeping memory from being swapped out, and pages of a mapped file from being dropped: mlock(2)."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

from ..units import size

PIECE = 2**26
"""Bytes that are locked at once: locking reads them, and Ctrl-C is heeded between pieces."""


def lock(buffers: Sequence[memoryview]) -> str | None:
    """Keep buffers in memory until they are freed. If that isn't possible for all of them, return why, and what to do, in one line."""
    try:
        mlock = ctypes.CDLL(None, use_errno=True).mlock
    except (OSError, AttributeError, TypeError):  # Windows
        return "the weights aren't kept in memory: this system has no mlock"
    mlock.argtypes = ctypes.c_void_p, ctypes.c_size_t
    total, done = sum(map(len, buffers)), 0
    for buffer in buffers:
        for start in range(0, len(buffer), PIECE):
            piece = buffer[start : start + PIECE]
            if mlock(_address(piece), len(piece)):
                return _why_not(ctypes.get_errno(), done, total)
            done += len(piece)
    return None


def _address(buffer: memoryview) -> int:
    """A read-only buffer has an address too, but only NumPy tells it."""
    import numpy as np

    return np.frombuffer(buffer, np.uint8).ctypes.data


def _why_not(code: int, done: int, total: int) -> str:
    what = (
        f"only {size(done)} of the file's {size(total)} are kept in memory"
        if done
        else "the weights aren't kept in memory"
    )
    limit = _limit()
    if code in (errno.ENOMEM, errno.EPERM, errno.EAGAIN) and limit is not None and limit < total:
        return f"{what}: a process may lock {size(limit)}, raise that with `ulimit -l`"
    return f"{what}: {os.strerror(code)}"


def _limit() -> int | None:
    """How many bytes this process may lock; None if there is no limit."""
    try:
        import resource

        limit: int = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    except (ImportError, AttributeError, OSError, ValueError):
        return None
    return None if limit == resource.RLIM_INFINITY else limit
