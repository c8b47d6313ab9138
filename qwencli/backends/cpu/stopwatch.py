"""Measure how long each row of a program takes, with all threads and without leaving machine code."""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...kernels.arguments import CLOCK, ROW
from ...kernels.jit import Kernels
from .memory import address_of

SPECS = (CLOCK.name,)
RESULT = None
"""Stands for the argument of a clock function that is the address of its result."""


class Stopwatch:
    """A program's rows, one after the other. The clock is read before the first row and after each."""

    def __init__(self, kernels: Kernels, rows: NDArray[Any]) -> None:
        n = len(rows) + 1
        self._readings = np.zeros((n, 2), np.int64)
        function, arguments, self._unit = _clock()
        self._args = CLOCK.zeros(n)
        self._args["one"] = 1
        self._args["function"] = function
        for name, value in arguments.items():
            places = address_of(self._readings) + self._readings.strides[0] * np.arange(n)
            self._args[name] = places if value is RESULT else value
        args = address_of(self._args) + CLOCK.n_bytes * np.arange(n)
        self.rows = ROW.zeros(2 * n - 1)
        readings = self.rows[0::2]
        readings["kernel"] = kernels.load([CLOCK.name])[CLOCK.name]
        readings["args"] = args
        readings["count"] = args + CLOCK.offset("one")
        readings["divisor"] = 1
        self.rows[1::2] = rows
        self.rows["first"] = np.arange(2 * n - 1)  # each row is a group
        self.rows["last"] = 1
        following = rows["following"]
        self.rows["following"][1::2] = np.where(following, 2 * following + 1, 0)

    def seconds(self) -> NDArray[np.float64]:
        """Return how long each row took when the program last ran, including the claims and the wait for the last thread."""
        found: NDArray[np.float64] = np.diff(self._readings, axis=0) @ np.array(self._unit)
        return found


def _clock() -> tuple[int, dict[str, int | None], list[float]]:
    """Return the address of a clock function, its arguments, and the seconds for which each of the two words of its result counts."""
    if sys.platform == "win32":
        kernel32, frequency = ctypes.WinDLL("kernel32"), ctypes.c_int64()
        kernel32.QueryPerformanceFrequency(ctypes.byref(frequency))
        counter = _address(kernel32.QueryPerformanceCounter)
        return counter, {"first": RESULT, "second": 0}, [1 / frequency.value, 0.0]
    clock = _address(ctypes.CDLL(None).clock_gettime)
    return clock, {"first": time.CLOCK_MONOTONIC, "second": RESULT}, [1.0, 1e-9]


def _address(function: object) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert address
    return address
