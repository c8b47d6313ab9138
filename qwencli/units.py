"""Numbers for people."""

from collections.abc import Set


def size(n_bytes: float) -> str:
    """A number of bytes, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def ranges(numbers: Set[int]) -> str:
    """The shortest list of these numbers, such as "0-3,8"."""
    starts = sorted(n for n in numbers if n - 1 not in numbers)
    ends = sorted(n for n in numbers if n + 1 not in numbers)
    return ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in zip(starts, ends))
