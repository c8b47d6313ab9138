"""Estimate how much memory a model takes, and how long a context fits into the free memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from ..backends.kv_cache import MOST_BORDERS, PAGE, CacheTypes, Layers, n_pages_for
from ..errors import InputError, NoMemory
from ..gguf.file import TensorInfo
from ..network.graph import N_TOKENS, Graph, Input, Tensor, Weight
from ..network.model import Model
from ..system.host import Host
from ..units import size

if TYPE_CHECKING:
    from ..backends.devices import Device
    from ..backends.scheduler.placement import Placement

PROCESS_BYTES = 96 * 2**20
"""What a process takes in addition to the model, including libraries. Measured: 80 MB with a vocabulary of 512 tokens, 110 MB with Qwen's
151,936; 10 MB of that is taken already when this is used."""
COPIES = 4
"""By how much the float32 values between a step's operations are multiplied: they are in memory in quantized form too, not all of that
memory can be reused, and the programs for fewer tokens (256, 128 and so on) together take the same again."""
UNPACKED_BYTES = 4 * 2**30
"""The most bytes of unpacked weights that the NumPy backend keeps."""
STATES = MOST_BORDERS + 3
"""The most states that a sequence has: those at borders, the last one, and two that a step writes."""
UNIT = 256
"""A context that is chosen here is a multiple of this."""


@dataclass(frozen=True)
class Fit:
    """The bytes that a model takes: `weights`, a `page` for every PAGE positions of context, a `state` for each sequence, `work` for the
    rest.

    `free` is the memory available for all of them; if it is None (unknown), everything fits. `n_ctx` is the model's own context.
    """

    path: str
    n_ctx: int
    weights: int
    page: int
    state: int
    work: int
    free: int | None

    def needed(self, n_ctx: int, n_seq: int = 1) -> int:
        """Return the bytes that the model and `n_seq` sequences of `n_ctx` positions take."""
        return self.weights + self.work + n_seq * (self.state + n_pages_for(n_ctx) * self.page)

    def fits(self, n_ctx: int, n_seq: int = 1) -> bool:
        """Whether `n_seq` sequences of `n_ctx` positions fit into the free memory."""
        return self.free is None or self.needed(n_ctx, n_seq) <= self.free

    @property
    def for_sequences(self) -> int | None:
        """The bytes that are left for sequences; None for no limit."""
        return None if self.free is None else max(0, self.free - self.weights - self.work)

    def positions(self, n_seq: int = 1) -> int | None:
        """Return the number of positions that fit in all for `n_seq` sequences; None for no limit."""
        if self.for_sequences is None or not self.page:
            return None
        return max(0, self.for_sequences - n_seq * self.state) // self.page * PAGE

    def longest(self, n_ctx: int) -> int:
        """Return the longest context that fits: `n_ctx`, or a multiple of UNIT below it, or 0 if none does."""
        return n_ctx if self.fits(n_ctx) else min(n_ctx, self.positions() or 0) // UNIT * UNIT

    def choose(self, asked: int | None, fit: bool | None, report: Callable[[str], None] | None) -> int:
        """Return the context to use: `asked`, or the model's own if that is None.

        If it doesn't fit, the longest context that does is returned, and `report` is called. But if it was asked for and `fit` isn't set,
        InputError is raised, and says what would fit. With `fit` False nothing is checked. Raises NoMemory if not even the weights fit.
        """
        wanted = asked or self.n_ctx
        if fit is False or self.fits(wanted):
            return wanted
        longest = self.longest(wanted)
        if not longest:
            shortest = min(wanted, UNIT)
            shortage = self.shortage(f"even a context of {shortest}", shortest)
            raise NoMemory(
                f"{self.path}: {shortage}: take a smaller model or quantization;"
                " --no-fit tries anyway, and reads what doesn't fit from the disk again and again"
            )
        shortage = self.shortage(f"a context of {wanted}", wanted)
        if asked and not fit:
            raise InputError(
                f"{self.path}: {shortage}: -c {longest} would fit, --fit takes it; --no-fit tries anyway"
            )
        if report:
            report(f"the context is {longest} tokens: {shortage}")
        return longest

    def check(self, what: str, n_ctx: int, n_seq: int = 1) -> None:
        """Raise InputError if `what`, which needs `n_seq` sequences of `n_ctx` positions, doesn't fit."""
        if not self.fits(n_ctx, n_seq):
            raise InputError(f"{self.path}: {self.shortage(what, n_ctx, n_seq)}; --no-fit tries anyway")

    def shortage(self, what: str, n_ctx: int, n_seq: int = 1) -> str:
        """Say how much is needed and how much is free, for a message."""
        parts = {
            "of weights": self.weights,
            "for keys and values": n_seq * n_pages_for(n_ctx) * self.page,
            "for other data": self.work + n_seq * self.state,
        }
        listed = ", ".join(f"{size(n)} {name}" for name, n in parts.items())
        return f"{what} needs {size(self.needed(n_ctx, n_seq))} ({listed}), {size(self.free or 0)} are free"


def measure(
    model: Model, types: CacheTypes, backend: str = "cpu", n_batch: int = 512, host: Host | None = None
) -> Fit:
    """Return the memory that a model takes on a backend, with cache types `types` and steps of `n_batch` tokens, and what is free now.

    Raises InputError for cache types that don't suit the model.
    """
    tensors = model.file.tensors.values()
    free = (host or Host()).free()
    return _fit(
        str(model.file.path), model, [*model.graph.nodes.values()], tensors, backend, types, n_batch, free
    )


def measure_devices(
    model: Model, placement: Placement, types: CacheTypes, n_batch: int = 512, host: Host | None = None
) -> tuple[Fit, list[Fit]]:
    """Return the memory that a divided model takes in all, and on each NUMA node that has devices, whose memory they share.

    Raises what `measure` does.
    """
    host = host or Host()
    path = str(model.file.path)
    parts = []
    for number, device in enumerate(placement.devices):
        nodes = [node for name, node in model.graph.nodes.items() if placement.of[name] == number]
        if not nodes:
            continue
        weights = [source.op for node in nodes for source in node.src if isinstance(source.op, Weight)]
        tensors = {weight.info.name: weight.info for weight in weights}
        fit = _fit(path, model, nodes, tensors.values(), device.backend, types, n_batch, None)
        parts.append(_Part(device, fit, tensors))
    own = []
    for node in sorted({part.device.node for part in parts if part.device.node is not None}):
        there = [part for part in parts if part.device.node == node]
        free = host.node_free(node)
        if free is not None:
            names = " and ".join(part.device.name for part in there)
            tensors = {name: tensor for part in there for name, tensor in part.tensors.items()}
            own.append(_together(f"{path} on {names}", there, tensors.values(), free))
    return _together(path, parts, model.file.tensors.values(), host.free()), own


class _Part(NamedTuple):
    """What a device of a divided model takes, and its tensors by name, of which others may have some too."""

    device: Device
    fit: Fit
    tensors: dict[str, TensorInfo]


def _together(path: str, parts: Sequence[_Part], tensors: Collection[TensorInfo], free: int | None) -> Fit:
    """Return what several devices of a process take that have these tensors in all."""
    fits = [part.fit for part in parts]
    return Fit(
        path=path,
        n_ctx=fits[0].n_ctx,
        weights=sum(tensor.n_bytes for tensor in tensors),
        page=sum(fit.page for fit in fits),
        state=sum(fit.state for fit in fits),
        work=sum(fit.work for fit in fits) - (len(fits) - 1) * PROCESS_BYTES,
        free=free,
    )


def _fit(
    path: str,
    model: Model,
    nodes: Sequence[Tensor],
    tensors: Collection[TensorInfo],
    backend: str,
    types: CacheTypes,
    n_batch: int,
    free: int | None,
) -> Fit:
    """Return the memory that some nodes and their tensors take on a backend."""
    c, layers = model.config, Layers.of(nodes)
    work = PROCESS_BYTES + COPIES * 4 * n_batch * values_of_a_token(model)
    types = types.chosen("f16", c.head_dim)
    if backend == "numpy":
        types = CacheTypes("f32", "f32")
        work += min(4 * sum(t.n_weights for t in tensors), UNPACKED_BYTES)
    n_state = sum(c.delta_nets.n_state) if c.delta_nets else 0
    return Fit(
        path=path,
        n_ctx=c.n_ctx,
        weights=sum(t.n_bytes for t in tensors),
        page=types.n_bytes(PAGE * len(layers.attention) * c.n_head_kv * c.head_dim),
        state=STATES * 4 * len(layers.recurrent) * n_state,
        work=work,
        free=free,
    )


def values_of_a_token(model: Model) -> int:
    """Return the most numbers per token that a step has in memory at once, between its operations."""
    nodes = [node for node in model.graph.nodes.values() if not isinstance(node.op, (Weight, Input))]
    last_use = Graph.last_uses(nodes)
    held: dict[str, int] = {}
    most = 0
    for i, node in enumerate(nodes):
        if node.shape[0] == N_TOKENS:
            held[node.name] = prod(n for n in node.shape if isinstance(n, int))
        most = max(most, sum(held.values()))
        for source in node.src:
            if last_use[source.name] == i:
                held.pop(source.name, None)
    return most
