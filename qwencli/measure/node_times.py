"""How long each node of a model's graph takes, and how far from the machine's limit that is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from ..backends.choose import make_backend, make_devices
from ..backends.cpu.backend import CPUBackend
from ..backends.cpu.fuse import fuse
from ..backends.kv_cache import KVSequence
from ..backends.protocol import LOGITS, Batch, Segment
from ..backends.scheduler.placement import Placement
from ..backends.scheduler.scheduler import Scheduler
from ..errors import InputError
from ..machine.peak import Peak, measure_peak
from ..network.graph import Tensor
from ..network.model import Model
from .costs import Cost, Costs, Extent

REPEATS = 3
"""Steps that are measured, after one that isn't. A node's time is the median."""


class NodeTime(NamedTuple):
    """The seconds that a node takes, and the least that the machine needs for what costs most: reading or computing. 0 for what takes no
    time of its own: a view, or a node that is computed together with another one, `within`."""

    seconds: float = 0.0
    least: float = 0.0
    within: str = ""


def node_times(
    model: Model,
    n_tokens: int,
    n_threads: int | None = None,
    report: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    stepped: Callable[[int, int], None] | None = None,
    placement: Placement | None = None,
) -> dict[str, NodeTime]:
    """Run steps with `n_tokens` random tokens at the beginning of a sequence, row by row, and return the time of each node by its name.

    `placement` divides the model among devices. Weights and inputs aren't in what is returned. `progress` is called with the kernels
    compiled and to compile, `stepped` with the steps done and to do. Raises InputError if the model can't run that many tokens, or not on
    the CPU backend; QwenError.
    """
    n_ctx = model.config.n_ctx
    if n_tokens > n_ctx:
        raise InputError(f"a step of {n_tokens} tokens is longer than the model's context of {n_ctx}")
    backend = (
        make_devices(placement, model, n_threads, report, progress)
        if placement
        else make_backend("auto", model, n_threads, report, progress)
    )
    if not isinstance(backend, (CPUBackend, Scheduler)):
        raise InputError(f"{model.file.path}: only the CPU backend has a profile, but it can't run this file")
    seconds = measure(backend, n_tokens, stepped or (lambda done, total: None))
    peak = measure_peak(n_threads, report)
    nodes = model.graph.subgraph([LOGITS])
    within: dict[str, str] = {}
    for part, fetch in parts_of(backend, nodes):
        within |= computed_within(part, fetch)
    costs = Costs(model, backend.cache_types)
    total: dict[str, Cost] = defaultdict(Cost)
    for node in nodes:
        cost = costs.of_node(node, [Extent(n_tokens, 0)], 1)
        name = within.get(node.name, node.name)
        total[name] = total[name].plus(cost)
    return {
        node.name: NodeTime(within=within[node.name])
        if node.name in within
        else NodeTime(seconds[node.name], least(total[node.name], peak))
        for node in nodes
        if node.src
    }


def measure(
    backend: CPUBackend | Scheduler, n_tokens: int, stepped: Callable[[int, int], None]
) -> Mapping[str, float]:
    """The seconds of the rows of each node."""
    tokens = np.random.default_rng(0).integers(0, backend.model.config.n_vocab, n_tokens, np.int32)
    sequence = KVSequence()
    steps: list[dict[str, float]] = []
    for _ in range(1 + REPEATS):
        backend.cache.rewind(sequence, 0)
        taken: dict[str, float] = defaultdict(float)
        for row in backend.profile([LOGITS], Batch([Segment(sequence, tokens, 1)])):
            taken[row.node] += row.seconds
        steps.append(taken)
        stepped(len(steps), 1 + REPEATS)
    backend.cache.release(sequence)
    return defaultdict(float, {name: median(step[name] for step in steps[1:]) for name in steps[0]})


def least(cost: Cost, peak: Peak) -> float:
    return max(cost.read_seconds(peak), cost.compute_seconds(peak))


def parts_of(
    backend: CPUBackend | Scheduler, nodes: Sequence[Tensor]
) -> list[tuple[Sequence[Tensor], Sequence[str]]]:
    """The nodes that a program runs, and what it computes: one for all, or one for each split."""
    if isinstance(backend, CPUBackend):
        return [(nodes, [LOGITS])]
    by_name = backend.model.graph.nodes
    splits = backend.plan((LOGITS,), ())
    return [([by_name[name] for name in split.nodes], split.fetch) for split in splits]


def computed_within(nodes: Sequence[Tensor], fetch: Sequence[str]) -> dict[str, str]:
    """For each node that is computed together with a later one, the name of that one: the first that isn't fused away and reads it."""
    names = {node.name for node in nodes}
    kept = {node.name for node in fuse(nodes, fetch)}
    found: dict[str, str] = {}
    for node in reversed(nodes):
        for source in node.src:
            if source.name in names - kept and source.src:
                found[source.name] = found.get(node.name, node.name)
    return found
