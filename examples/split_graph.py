#!/usr/bin/env python3
"""A net of two linear layers with biases, computed on one device and divided between two.

python examples/split_graph.py
python examples/split_graph.py --first cpus:0 --second numpy
"""

from __future__ import annotations

import click
import numpy as np

from qwencli import Graph, QwenError
from qwencli.network.graph import Tensor
from qwencli.system.host import Host

N_IN, N_HIDDEN, N_OUT = 400, 128, 10
N_ROWS = 32


def build_net() -> Graph:
    """The net, with random weights: rows x [n, 400] -> fc1 [n, 128] -> fc2 [n, 10]."""
    rng = np.random.default_rng(0)
    g = Graph()

    def linear(name: str, x: Tensor, n_out: int, n_in: int) -> Tensor:
        weight = g.constant(rng.standard_normal((n_out, n_in), np.float32) / n_in**0.5, f"{name}.weight")
        bias = g.constant(rng.standard_normal(n_out, np.float32), f"{name}.bias")
        return g.mul_mat(weight, x, bias, name)

    linear("fc2", linear("fc1", g.input("x", N_IN), N_HIDDEN, N_IN), N_OUT, N_HIDDEN)
    return g


def two_devices() -> tuple[str, str]:
    """A device for each half of the CPUs; with only one CPU, NumPy is the other."""
    cpus = sorted(Host().allowed())
    half = len(cpus) // 2
    if not half:
        return "cpu", "numpy"
    first, second = ("+".join(map(str, part)) for part in (cpus[:half], cpus[half:]))
    return f"cpus:{first}", f"cpus:{second}"


@click.command(epilog="Example: split_graph.py --first cpus:0 --second numpy")
@click.option("--first", default=two_devices()[0], show_default=True, help="The device of the first layer.")
@click.option("--second", default=two_devices()[1], show_default=True, help="The device of the second layer.")
def main(first: str, second: str) -> None:
    """Divide a net of two linear layers between two devices, show the splits, and compare with one device."""
    g = build_net()
    x = np.random.default_rng(1).standard_normal((N_ROWS, N_IN), np.float32)
    try:
        alone = g.compute({"x": x}, first, "fc2")
        devices = {"fc1": first, "fc2": second}
        divided = g.compute({"x": x}, devices, "fc2")
        print("\n".join(g.splits(devices, N_ROWS)) or f"no splits: everything runs on {first}")
    except QwenError as error:
        raise click.ClickException(str(error)) from None
    difference = np.abs(divided - alone).max()
    print(f"{N_ROWS} x {N_OUT} results, largest difference from one device: {difference:.1g}")


if __name__ == "__main__":
    main()
