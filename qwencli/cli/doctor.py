"""`qwencli doctor`"""

from __future__ import annotations

import json
from typing import Any

import click

from ..units import size
from ._models import Wanted, fetched, model_option
from ._options import example, json_option
from ._streams import printable, say, write_text


@click.command(epilog=example("qwencli doctor", "qwencli doctor -m model.gguf --json"))
@model_option
@json_option
@click.option(
    "--clear-cache",
    is_flag=True,
    help="Delete all compiled kernels, those of other versions too, and do nothing else.",
)
def doctor(model: Wanted | None, as_json: bool, clear_cache: bool) -> None:
    """Show what was found on this machine, how much of it is used, and what would make it faster.

    The kernels are checked in a process of their own, and the speed of memory and cores is measured; the first call compiles kernels.
    """
    from ..machine.doctor import examine
    from ..machine.kernel_cache import clear_cache as clear

    if clear_cache:
        n_files, n_bytes = clear()
        facts: dict[str, Any] = {"deleted": n_files, "bytes": n_bytes}
        write_text(json.dumps(facts) + "\n" if as_json else f"deleted {n_files} files, {size(n_bytes)}\n")
        return
    facts = examine(fetched(model), say)
    write_text(json.dumps(facts) + "\n" if as_json else as_text(facts))


def as_text(facts: dict[str, Any]) -> str:
    def row(name: str, *values: object) -> str:
        return f"  {name:<13} {printable(', '.join(str(v) for v in values if v not in (None, '')))}"

    v, cpu, isa, threads, memory, cache, model, limits = (
        facts[key] for key in ("versions", "cpu", "isa", "threads", "memory", "cache", "model", "limits")
    )
    check = {None: None, "ok": "checked"}.get(isa["self_check"], f"check failed: {isa['self_check']}")
    lines = [
        row(
            "version",
            f"qwencli {v['qwencli']}",
            f"Python {v['python']}",
            f"NumPy {v['numpy']}",
            f"Numba {v['numba']}",
            f"llvmlite {v['llvmlite']}",
            f"LLVM {v['llvm']}",
        ),
        row("system", v["system"]),
        row(
            "CPU",
            cpu["name"],
            cpu["machine"],
            f"{cpu['llvm_name']} to LLVM",
            "virtual machine" if cpu["virtual"] else None,
            f"{100 * cpu['steal']:.1f} % of its time taken by others" if cpu["steal"] else None,
        ),
        row("features", " ".join(cpu["features"])),
        row(
            "kernels for",
            isa["chosen"] or "none",
            f"$QWENCLI_ISA asks for {isa['variable']}" if isa["variable"] else None,
            check,
            f"available: {' '.join(isa['available'])}",
        ),
        row(
            "CPUs",
            f"{threads['cpus']} on {threads['cores']} cores",
            f"{threads['allowed']} allowed on {threads['allowed_cores']} cores",
            f"quota {threads['quota']:g} ({threads['quota_file']})"
            if threads["quota"] is not None
            else "no quota",
        ),
        row("threads", threads["chosen"]),
    ]
    for node in facts["numa"]:
        lines.append(
            row(
                f"NUMA node {node['number']}",
                f"CPUs {node['cpus']}",
                node["n_bytes"] and size(node["n_bytes"]),
            )
        )
    lines += [
        row(
            "memory",
            memory["total"] and size(memory["total"]),
            memory["free"] and f"{size(memory['free'])} free",
            f"limit {size(memory['limit'])} ({memory['limit_file']})"
            if memory["limit"] is not None
            else "no limit",
        ),
        row("huge pages", memory["huge_pages"] or "unknown"),
    ]
    if limits:
        lines.append(
            row(
                "measured",
                f"{limits['bandwidth'] / 1e9:.1f} GB/s from memory",
                f"{limits['products'] / 1e9:.0f} GOP/s int8",
                f"{limits['flops'] / 1e9:.0f} GFLOP/s float32",
            )
        )
    lines.append(
        row(
            "cache",
            cache["folder"],
            f"can't be written: {cache['why_not']}" if cache["why_not"] else "can be written",
        )
    )
    lines += [
        row("", f["name"], f"{f['kernels']} kernels", size(f["bytes"]))
        for f in cache["folders"]
        if f["current"]
    ]
    if stale := [folder for folder in cache["folders"] if not folder["current"]]:
        lines.append(
            row(
                "",
                f"{len(stale)} of other versions or CPUs",
                f"{sum(f['kernels'] for f in stale)} kernels",
                size(sum(f["bytes"] for f in stale)),
            )
        )
    lines.append(
        row("model", model["path"], model["reason"], model["size"] and size(model["size"]), model["error"])
    )
    lines += [
        "",
        "advice" if facts["advice"] else "no advice",
        *(f"  - {printable(line)}" for line in facts["advice"]),
    ]
    return "\n".join(lines) + "\n"
