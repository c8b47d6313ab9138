"""The machine that a figure was measured on: its CPU, its cores, and what it can do at most."""

from __future__ import annotations

import os
import platform

from ..backends.cpu.team import physical_cores
from .limits import Limits, measure_limits

__all__ = ["Limits", "cpu_name", "logical_cores", "measure_limits", "physical_cores"]


def cpu_name() -> str:
    """What the CPU calls itself, or its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            for line in f:
                key, _, value = line.partition(":")
                if key.strip() == "model name" and value.strip():
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown CPU"


def logical_cores() -> int:
    """Hardware threads of the machine, used by this process or not."""
    return os.cpu_count() or 1
