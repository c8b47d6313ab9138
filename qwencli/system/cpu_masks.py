"""CPUs as llama.cpp's options name them: `--cpu-mask`, hexadecimal digits, and `--cpu-range`, a first and a last one."""

from __future__ import annotations

import re

from ..errors import InputError

MOST = 512
"""As many CPUs as llama.cpp knows (GGML_MAX_N_THREADS in ggml.h)."""


def chosen_cpus(mask: str | None, cpu_range: str | None) -> frozenset[int] | None:
    """The CPUs of a mask and of a range together; None if they name none. Raises InputError."""
    found = cpus_of_mask(mask or "") | (frozenset() if cpu_range is None else cpus_of_range(cpu_range))
    return found or None


def cpus_of_mask(text: str) -> frozenset[int]:
    """The CPUs of a mask such as "0xf0": the last digit's lowest bit is CPU 0. Raises InputError."""
    digits = text.removeprefix("0x")
    if not re.fullmatch(f"[0-9a-fA-F]{{0,{MOST // 4}}}", digits, re.ASCII):
        raise InputError(f"the CPU mask is {text[:40]!r}, expected up to {MOST // 4} hexadecimal digits")
    bits = int(digits or "0", 16)
    return frozenset(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)


def cpus_of_range(text: str) -> frozenset[int]:
    """The CPUs of a range such as "2-5"; without a first one from CPU 0 on, without a last one all that follow. Raises InputError."""
    ends = re.fullmatch(r"([0-9]{0,9})-([0-9]{0,9})", text, re.ASCII)
    first, last = (int(ends[1] or 0), int(ends[2] or MOST - 1)) if ends else (0, -1)
    if not first <= last < MOST:
        raise InputError(
            f"the CPU range is {text[:40]!r}, expected the first and the last CPU, such as 0-3, up to {MOST - 1}"
        )
    return frozenset(range(first, last + 1))
