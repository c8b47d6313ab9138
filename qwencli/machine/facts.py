"""Facts about this machine that several commands tell. None of them needs a compiler, but for those that are measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Set
from typing import Any

from ..errors import QwenError
from ..kernels import isa
from ..system.host import Host


def instruction_set() -> dict[str, Any]:
    try:
        chosen, why_not = isa.choose().name, None
    except isa.ISAError as error:
        chosen, why_not = None, str(error)
    return {
        "chosen": chosen,
        "why_not": why_not,
        "available": [each.name for each in isa.available()],
        "variable": os.environ.get(isa.VARIABLE) or None,
    }


def memory(host: Host) -> dict[str, Any]:
    (total, available), limit = host.memory(), host.memory_limit()
    return {
        "total": total,
        "available": available,
        "free": host.free(),
        "limit": limit and limit[0],
        "limit_file": limit and limit[1],
        "huge_pages": host.huge_pages(),
    }


def measured(
    report: Callable[[str], None] | None = None, cpus: Set[int] | None = None
) -> dict[str, float] | None:
    """Bytes per second from memory, operations per second on int8 and on float32, with as many threads as commands use, on all CPUs or on
    `cpus`. None if the kernels can't be used."""
    from .peak import measure_peak

    try:
        peak = measure_peak(None, report, cpus)
    except QwenError:
        return None
    return {"bandwidth": peak.bandwidth, "products": peak.products, "flops": peak.flops}
