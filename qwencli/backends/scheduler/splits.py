"""Cut a graph into splits: nodes that run on one device, one after the other, and the values that go in and out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ...network.graph import Attention, Conv, DeltaNet, Input, KVStore, Rows, Tensor, Weight


class Split(NamedTuple):
    """`nodes` that run on the device with the number `device`. `feed` are the tensors that they need from other splits, or that the caller
    gives; `fetch` are those that other splits or the caller need from them."""

    device: int
    nodes: tuple[str, ...]
    feed: tuple[str, ...]
    fetch: tuple[str, ...]


def cut(nodes: Sequence[Tensor], device_of: Mapping[str, int], fetch: Iterable[str]) -> list[Split]:
    """Cut `nodes`, which come after their sources, into splits, few of them.

    Nodes that `nodes` lacks are given. The nodes of a split keep their order. Each device has the inputs and its weights: they are only in
    a split if they are fetched.
    """
    wanted = set(fetch)
    runs = list(
        _runs(
            [node for node in nodes if not isinstance(node.op, (Input, Weight)) or node.name in wanted],
            device_of,
        )
    )
    place = {node.name: i for i, run in enumerate(runs) for node in run}
    feeds: list[dict[str, None]] = [{} for _ in runs]
    for i, run in enumerate(runs):
        for node in run:
            for source in node.src:
                is_there = isinstance(source.op, (Input, Weight)) and not isinstance(source.op, Rows)
                if not is_there and place.get(source.name) != i:
                    feeds[i][source.name] = None
                    wanted.add(source.name)
    return [
        Split(
            device_of[run[0].name],
            tuple(node.name for node in run),
            tuple(feed),
            tuple(node.name for node in run if node.name in wanted),
        )
        for run, feed in zip(runs, feeds)
    ]


def _runs(nodes: Sequence[Tensor], device_of: Mapping[str, int]) -> Iterator[list[Tensor]]:
    """Yield the nodes of one device at a time: all that can run there before something else has to run on another device."""
    waits_for = _waits(nodes)
    left = list(nodes)
    while left:
        missing = {node.name for node in left}
        device = next(device_of[node.name] for node in left if missing.isdisjoint(waits_for[node.name]))
        run: list[Tensor] = []
        rest: list[Tensor] = []
        for node in left:
            if device_of[node.name] == device and missing.isdisjoint(waits_for[node.name]):
                run.append(node)
                missing.remove(node.name)
            else:
                rest.append(node)
        left = rest
        yield run


def _waits(nodes: Iterable[Tensor]) -> dict[str, set[str]]:
    """Return the names of the nodes that each node has to wait for: its sources, and whatever the node that it can't be cut from needs."""
    found = {node.name: {source.name for source in node.src} for node in nodes}
    for node in nodes:
        for source in node.src:
            if isinstance(node.op, (Attention, DeltaNet)) and isinstance(source.op, (KVStore, Conv)):
                found[source.name] |= found[node.name] - {source.name}
    return found
