"""The tables of `qwencli bench`: llama-bench's with columns of ours, and where the time went."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._streams import printable, write_text

if TYPE_CHECKING:
    from ..measure.figures import Result

COLUMNS = {
    "model": -30,
    "size": 10,
    "params": 10,
    "backend": -10,
    "threads": 7,
    "type_k": 6,
    "type_v": 6,
    "test": 15,
    "t/s": 20,
    "GB/s": 13,
    "GFLOP/s": 13,
}
"""The columns of the table, llama-bench's and then ours, and their widths; a negative one means that the text is on the left."""


def print_table(results: Iterable[Result], with_types: bool = False) -> None:
    """llama-bench's table with two more columns, then the machine's peak, then the profiles."""
    columns = {
        name: width for name, width in COLUMNS.items() if with_types or name not in ("type_k", "type_v")
    }
    limits: dict[int, str] = {}
    profiles: list[str] = []
    for result in results:
        if not limits:
            columns["backend"] = min(columns["backend"], -len(result.devices or ""))
            write_text(row(columns, columns.values()) + rule(columns.values()))
        f = result.as_dict()
        n_bytes, n_params = f["model_size"], f["model_n_params"]
        write_text(
            row(
                [
                    printable(f["model_type"]),
                    f"{n_bytes / 2**20:.2f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:.2f} GiB",
                    f"{n_params / 1e6:.2f} M" if n_params < 1e9 else f"{n_params / 1e9:.2f} B",
                    f["devices"] or f["backends"],
                    str(f["n_threads"]),
                    *([f["type_k"], f["type_v"]] if with_types else []),
                    result.test.name,
                    f"{f['avg_ts']:.2f} ± {f['stddev_ts']:.2f}",
                    f"{f['bandwidth'] / 1e9:.1f} ({f['bandwidth_share']:.0%})",
                    f"{f['ops'] / 1e9:.1f} ({f['ops_share']:.0%})",
                ],
                columns.values(),
            )
        )
        limits[f["n_threads"]] = (
            f"{f['cpu_info']}, {f['isa'] or 'no compiled kernels'}, threads: {f['n_threads']}. Limits in this run:"
            f" reading {f['machine_bandwidth'] / 1e9:.1f} GB/s, int8 {f['machine_products'] / 1e9:.0f}"
            f" and float32 {f['machine_flops'] / 1e9:.0f} GFLOP/s"
        )
        profiles += [profile_table(result)] if result.profile else []
    write_text(
        "".join(
            [
                "\n",
                *(printable(line) + "\n" for line in limits.values()),
                f"build: qwencli {f['build_commit']}\n",
                *profiles,
            ]
        )
    )


def row(cells: Iterable[str], widths: Iterable[int]) -> str:
    return (
        "|"
        + "".join(
            f" {cell:<{-width}} |" if width < 0 else f" {cell:>{width}} |"
            for cell, width in zip(cells, widths)
        )
        + "\n"
    )


def rule(widths: Iterable[int]) -> str:
    return row(("-" * (abs(width) - 1) + ("-" if width < 0 else ":") for width in widths), widths)


def profile_table(result: Result) -> str:
    """Where a test's time went. The last line is the test itself, where rows overlap and nothing stops to look at the clock."""
    head = ("operation", "calls", "ms", "GB/s", "GFLOP/s", "of the limit")
    widths = (-24, 8, 10, 8, 9, 12)
    text = f"\n{result.test.name}, threads: {result.n_threads}\n\n" + row(head, widths) + rule(widths)
    for kind in result.profile:
        n_bytes = kind.cost.n_bytes / kind.seconds / 1e9
        ops = kind.cost.ops / kind.seconds / 1e9
        rates = (f"{n_bytes:.1f}", f"{ops:.1f}", f"{kind.share(result.peak):.0%}") if ops else ("", "", "")
        text += row((kind.name, str(kind.calls), f"{1e3 * kind.seconds:.2f}", *rates), widths)
    for name, seconds in ("all", sum(kind.seconds for kind in result.profile)), ("the test", result.seconds):
        text += row((name, "", f"{1e3 * seconds:.2f}", "", "", ""), widths)
    return text
