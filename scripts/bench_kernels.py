#!/usr/bin/env python3
"""Time the kernels of products by themselves, and compare them with those of another version.

    python scripts/bench_kernels.py --keep before            # in the other version: keep its machine code in the folder "before"
    python scripts/bench_kernels.py --against before         # here: both in turn, in one process

Weights are read from memory (form "one", a single token) or stay in the cache (form "many"). The threads share the work evenly, without a
program around it. Figures are medians; "ratio" is the median of the ratios of neighbouring runs, above 1 if the kernel here is faster.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import llvmlite.binding as llvm

from qwencli.backends.cpu.memory import address_of, aligned_zeros
from qwencli.backends.cpu.team import Kernel
from qwencli.backends.cpu.tuning import Product
from qwencli.kernels import layout
from qwencli.kernels.compiler import compile_kernel
from qwencli.kernels.formats import FORMATS, sizes
from qwencli.kernels.isa import choose
from qwencli.kernels.jit import Kernels
from qwencli.kernels.specs import symbol
from qwencli.kernels.tiles import Tiles

N_COLS = 1024
CHUNK_BYTES = 262144
IN_MEMORY, IN_CACHE = 256 << 20, 256 << 10
SECONDS = 0.03
"""A run takes at least that long."""


class Work(NamedTuple):
    """A product: its arguments, the number of chunks, the bytes of weights, and what has to stay alive."""

    args: Any
    n_chunks: int
    n_bytes: int
    keep: Sequence[Any]


def work_for(name: str, n_tokens: int, n_bytes: int) -> Work:
    """Return a product with about `n_bytes` of weights of the format `name`."""
    block, block_bytes, _ = sizes(name)
    row_bytes = N_COLS // block * block_bytes
    chunk_rows = max(1, CHUNK_BYTES // row_bytes // layout.PANEL_ROWS) * layout.PANEL_ROWS
    if n_bytes < CHUNK_BYTES:
        chunk_rows = layout.PANEL_ROWS
    n_chunks = max(2, n_bytes // row_bytes // chunk_rows // 2 * 2)
    n_rows = n_chunks * chunk_rows
    weights = aligned_zeros(n_rows * row_bytes)
    weights[:] = 1  # otherwise all pages would be the same page of zeros
    product = Product(name, address_of(weights), n_rows, N_COLS, n_tokens, chunk_rows)
    return Work(product.args, n_chunks, n_rows * row_bytes, (weights, product))


def seconds_of(kernel: Any, work: Work, n_threads: int, passes: int) -> float:
    """Run a kernel `passes` times over the weights, each thread its share of the chunks."""
    share = work.n_chunks // n_threads
    barrier = threading.Barrier(n_threads + 1)

    def run(first: int, last: int) -> None:
        scratch = aligned_zeros(layout.panel_bytes("q8_0", N_COLS) + layout.panel_bytes("q8k", N_COLS))
        address, place = address_of(work.args), address_of(scratch)
        barrier.wait()
        for _ in range(passes):
            for chunk in range(first, last):
                kernel(address, chunk, place)

    threads = [threading.Thread(target=run, args=(i * share, (i + 1) * share)) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def kept(folder: Path, spec: str) -> int | None:
    """Load the kernel for the same format and form from a folder, into an engine of its own, and return its address. None if there is
    none."""
    found = list(folder.glob("-".join(spec.split(":")[:3]) + "*.o"))
    if not found:
        return None
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine, use_lmm=True)
    ENGINES.append(engine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(found[0].read_bytes()))
    engine.finalize_object()
    return int(engine.get_function_address(symbol(found[0].stem.replace("-", ":"))))


ENGINES: list[Any] = []


def path_of(folder: Path, spec: str) -> Path:
    return folder / (spec.replace(":", "-") + ".o")


def compare(
    sets: Mapping[str, int], work: Work, n_threads: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """Return, by name, the median seconds of a pass, and the median ratio of the first kernel's time to this one's."""
    functions = {name: Kernel(address) for name, address in sets.items()}
    first = next(iter(functions))
    once = seconds_of(functions[first], work, n_threads, 1)
    passes = max(1, round(SECONDS / once))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds_of(function, work, n_threads, passes) / passes)
    return {
        name: (
            statistics.median(each),
            statistics.median(mine / other for mine, other in zip(times[first], each)),
        )
        for name, each in times.items()
    }


@click.command()
@click.option(
    "--formats", default=",".join(FORMATS), help="Formats, separated by commas.", show_default=False
)
@click.option("--tokens", default="1", show_default=True, help="Numbers of tokens, separated by commas.")
@click.option("-t", "--threads", default=2, show_default=True)
@click.option("--rounds", default=9, show_default=True)
@click.option("--cached", is_flag=True, help="Weights stay in the cache also for one token.")
@click.option("--isa", default=None, help="The instruction set; by default the best one.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Only compile, and keep the kernels in a folder."
)
@click.option("--against", type=click.Path(path_type=Path, exists=True), help="Kernels of another version.")
def main(
    formats: str,
    tokens: str,
    threads: int,
    rounds: int,
    cached: bool,
    isa: str | None,
    keep: Path | None,
    against: Path | None,
) -> None:
    """Time the kernels of products by themselves."""
    names = formats.split(",")
    kernels = Kernels(choose(isa))
    kernels.report = lambda text: click.echo(text, err=True)
    tiles = Tiles(kernels.isa.name)
    specs = {
        (name, n): tiles.one(name, N_COLS) if n == 1 else tiles.many(name)
        for name in names
        for n in map(int, tokens.split(","))
    }
    here = kernels.load(specs.values())
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        for spec in specs.values():
            path_of(keep, spec).write_bytes(compile_kernel(kernels.isa, spec))
        return
    click.echo(f"{'format':9}{'tokens':>7}{'GB/s':>8}{'GOP/s':>8}" + ("   before   ratio" if against else ""))
    for (name, n), spec in specs.items():
        work = work_for(name, n, IN_CACHE if n > 1 or cached else IN_MEMORY)
        before = kept(against, spec) if against else None
        sets = {"here": here[spec]} | ({"before": before} if before else {})
        found = compare(sets, work, threads, rounds)
        seconds, _ = found["here"]
        n_rows = int(work.args["n_rows"][0])
        line = (
            f"{name:9}{n:7}{work.n_bytes / seconds / 1e9:8.1f}{2 * n * n_rows * N_COLS / seconds / 1e9:8.1f}"
        )
        if "before" in found:
            line += f"{work.n_bytes / found['before'][0] / 1e9:9.1f}{1 / found['before'][1]:8.3f}"
        click.echo(line)


if __name__ == "__main__":
    main()
