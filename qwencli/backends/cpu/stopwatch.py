"""How long each row of a program takes, on all threads together and without leaving machine code."""

from __future__ import annotations

import ctypes
import sys
import time

import numpy as np
from numpy.typing import NDArray

from ...kernels import layout
from ...kernels.jit import Kernels
from .memory import I64, address_of

SPECS = ("clock:read",)


class Stopwatch:
    """A program's rows, one after the other, with a reading of the clock before the first and behind each."""

    def __init__(self, kernels: Kernels, rows: I64) -> None:
        n = len(rows) + 1
        self._readings = np.zeros((n, 2), np.int64)
        function, before, behind, self._unit = _clock()
        places = address_of(self._readings) + 16 * np.arange(n)
        self._args = np.array([[1, function, *before, place, *behind] for place in places], np.int64)
        args = address_of(self._args) + self._args.strides[0] * np.arange(n)
        self.rows = np.zeros((2 * n - 1, layout.ROW_WORDS), np.int64)
        self.rows[0::2, :4] = np.stack(
            [np.full(n, kernels.load(SPECS)[SPECS[0]]), args, args, np.ones(n, np.int64)], axis=1
        )
        self.rows[1::2] = rows
        self.rows[:, 4], self.rows[:, 5] = np.arange(2 * n - 1), 1  # a group each

    def seconds(self) -> NDArray[np.float64]:
        """What each row took when the program last ran, its hand-out and the wait for its last thread included."""
        found: NDArray[np.float64] = np.diff(self._readings, axis=0) @ np.array(self._unit)
        return found


def _clock() -> tuple[int, list[int], list[int], list[float]]:
    """The address of a clock function, its arguments before and behind the result's address, and the seconds of the result's two words."""
    if sys.platform == "win32":
        kernel32, frequency = ctypes.WinDLL("kernel32"), ctypes.c_int64()
        kernel32.QueryPerformanceFrequency(ctypes.byref(frequency))
        return _address(kernel32.QueryPerformanceCounter), [], [0], [1 / frequency.value, 0.0]
    return _address(ctypes.CDLL(None).clock_gettime), [time.CLOCK_MONOTONIC], [], [1.0, 1e-9]


def _address(function: object) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert address
    return address
