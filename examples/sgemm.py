#!/usr/bin/env python3
"""Multiply two matrices and add a third, D = A B^T + C, as GGML's sample "simple-backend" does; or large ones with blocks of any type.

    python examples/sgemm.py
    python examples/sgemm.py --type q4_k --m 4096 --n 4096 --k 4096

It prints how fast that is, and for large matrices how fast it could be and how exact it is.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import numpy as np

from qwencli import Graph, QwenError
from qwencli.tensors.devices import Usage
from qwencli.units import size

A = [[2, 8], [5, 1], [4, 2], [8, 6]]
B = [[10, 5], [9, 9], [5, 4]]
RUNS = 5
"""The fastest of these counts: others on the machine only make one slower."""


def small(device: str) -> None:
    """Multiply A and B, and print what GGML's sample prints."""
    g = Graph()
    product = g.mul_mat(g.constant(A), g.input("B", 2))  # B A^T, [3, 4]: a row for each row of B
    d = g.add(product, g.input("C", 4), "D")
    inputs = {"B": B, "C": np.ones((3, 4))}
    g.compute(inputs, device)  # the first time kernels are loaded and memory is planned
    start = time.perf_counter()
    result = g.compute(inputs, device, d)
    print_usage(g, device, time.perf_counter() - start)
    rows = "\n  ".join(" ".join(f"{value:.2f}" for value in row) for row in result)
    print(f"D = A B^T + C, transposed, {result.shape[0]} x {result.shape[1]}:\n[ {rows} ]")


def large(kind: str, m: int, n: int, k: int, device: str) -> None:
    """Multiply random blocks [m, k] with random rows [n, k], and print how fast that is, and how exact."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
    from random_blocks import random_blocks

    from qwencli.backends.numpy.dequantize import to_float32
    from qwencli.gguf.types import WEIGHT_TYPES
    from qwencli.machine.peak import measure_peak

    if kind.upper() not in WEIGHT_TYPES:
        raise click.BadParameter(f"there is no type '{kind}', known are {', '.join(WEIGHT_TYPES)}".lower())
    t = WEIGHT_TYPES[kind.upper()]
    if k % t.block_size:
        raise click.BadParameter(f"k is {k}, expected a multiple of {t.name}'s block of {t.block_size}")
    rng = np.random.default_rng(0)
    blocks = random_blocks(rng, t, m * k // t.block_size).reshape(m, -1)
    b = rng.standard_normal((n, k), np.float32)
    g = Graph()
    d = g.mul_mat(g.constant(blocks, "A", kind, scale=1.0 if t.scaled else None), g.input("B", k), name="D")
    result = g.compute({"B": b}, device, d)
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        g.compute({"B": b}, device, d)
        seconds.append(time.perf_counter() - start)
    usage = print_usage(g, device, min(seconds))
    speed = 2 * m * n * k / min(seconds)
    print(f"A: {m} x {k} {t.name}, {size(blocks.nbytes)}; B: {n} x {k}; {speed / 1e9:.1f} GOP/s", end="")
    if usage.n_threads:  # compiled kernels multiply bytes, or floats if the blocks are floats
        peak = measure_peak(usage.n_threads)
        limit, what = (peak.products, "int8") if t.block_size > 1 else (peak.flops, "float32")
        print(f", {speed / limit:.0%} of this machine's {limit / 1e9:.0f} in {what}", end="")
    expected = b.astype(np.float64) @ to_float32(blocks, t).astype(np.float64).T
    error = np.sqrt(np.mean((result - expected) ** 2) / np.mean(expected**2))
    print(f"\nerror against float64: {error:.1e} of the result (root mean square)")


def print_usage(g: Graph, device: str, seconds: float) -> Usage:
    """Print what the graph runs on, and how long it took."""
    usage = g.usage(device)
    print(f"device: {usage.device} ({usage.description})")
    print(
        f"buffer size: {size(usage.buffer_bytes) if usage.buffer_bytes is not None else 'not planned ahead'}"
    )
    print(f"threads: {usage.n_threads or 'as many as NumPy takes'}")
    print(f"time: {1000 * seconds:.2f} ms")
    return usage


@click.command(epilog="Example: sgemm.py --type q4_k --m 4096 --n 4096 --k 4096")
@click.option("--type", "kind", help="The type of the blocks of A, such as q4_k: multiply large matrices.")
@click.option("--m", default=1024, show_default=True, type=click.IntRange(1), help="Rows of A.")
@click.option("--n", default=1024, show_default=True, type=click.IntRange(1), help="Rows of B.")
@click.option("--k", default=1024, show_default=True, type=click.IntRange(1), help="Columns of A and of B.")
@click.option("--device", default="cpu", show_default=True, help="The device, such as cpus:0 or numpy.")
def main(kind: str | None, m: int, n: int, k: int, device: str) -> None:
    """Compute D = A B^T + C for the small matrices of GGML's sample, or with --type A B^T for large random ones."""
    try:
        if kind is None:
            small(device)
        else:
            large(kind, m, n, k, device)
    except QwenError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
