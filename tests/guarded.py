"""Arrays that lie against pages which may be neither read nor written: a kernel that goes one byte beyond its tensor ends the process."""

import ctypes
import mmap
import sys

import numpy as np
import pytest

PAGE = mmap.PAGESIZE


def guarded(array: np.ndarray, side: str) -> np.ndarray:
    """A copy of `array` whose end ("after") or start ("before") touches a protected page."""
    if sys.platform == "win32":
        pytest.skip("needs mprotect")
    n_pages = -(-array.nbytes // PAGE)
    region = mmap.mmap(-1, (n_pages + 2) * PAGE)
    base = np.frombuffer(region, np.uint8)
    start = PAGE if side == "before" else (n_pages + 1) * PAGE - array.nbytes
    memory = base[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    memory[...] = array
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for address in (base.ctypes.data, base.ctypes.data + (n_pages + 1) * PAGE):
        assert libc.mprotect(address, PAGE, 0) == 0
    return memory
