"""What a test of speed is, and what comes out: times, costs, and their shares of what the machine can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from statistics import fmean, stdev
from typing import Any, NamedTuple

from .. import __version__
from ..backends.kv_cache import HALVES, CacheTypes
from ..machine.peak import Peak
from ..network.model import Model
from ..system.host import Host
from .costs import Cost
from .model_names import describe


class Test(NamedTuple):
    """What is timed: `n_prompt` tokens of a prompt, then `n_gen` one by one, after `n_depth` others; for `n_seq` sequences at once."""

    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0
    n_seq: int = 1

    @property
    def name(self) -> str:
        """llama-bench's name, with the number of sequences if there are several."""
        parts = [f"pp{self.n_prompt}"] * bool(self.n_prompt) + [f"tg{self.n_gen}"] * bool(self.n_gen)
        return (
            "+".join(parts)
            + f" b{self.n_seq}" * (self.n_seq > 1)
            + f" @ d{self.n_depth}" * bool(self.n_depth)
        )

    @property
    def n_tokens(self) -> int:
        return (self.n_prompt + self.n_gen) * self.n_seq


@dataclass(frozen=True)
class Kind:
    """A line of a profile: the cost of the kernels of one kind and the time that they took, over the whole test."""

    name: str
    calls: int
    seconds: float
    cost: Cost

    def share(self, peak: Peak) -> float:
        """The least time that the machine needs, for reading or for computing, as a share of the time that was taken."""
        return max(self.cost.read_seconds(peak), self.cost.compute_seconds(peak)) / self.seconds

    def as_dict(self, peak: Peak) -> dict[str, Any]:
        facts: dict[str, Any] = {"kind": self.name, "calls": self.calls, "ns": round(1e9 * self.seconds)}
        if self.cost.ops and self.seconds:
            rates = {
                "bandwidth": self.cost.n_bytes / self.seconds,
                "ops": self.cost.ops / self.seconds,
                "share": self.share(peak),
            }
            return facts | rates
        return facts


@dataclass(frozen=True)
class Result:
    """A test's times, each of the whole test, its cost, and the machine's peak, measured before and after it.

    `isa` is what the kernels are compiled for, None if the NumPy backend ran. `devices` is how the model was divided, None if it wasn't.
    """

    test: Test
    model: Model
    isa: str | None
    n_threads: int
    n_batch: int
    samples_ns: list[int]
    cost: Cost
    peak: Peak
    profile: list[Kind] = field(default_factory=list)
    cache_types: CacheTypes = HALVES
    devices: str | None = None
    test_time: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each repetition, all sequences together."""
        return [1e9 * self.test.n_tokens / ns for ns in self.samples_ns]

    @property
    def seconds(self) -> float:
        return fmean(self.samples_ns) / 1e9

    @property
    def model_size(self) -> int:
        """Bytes of all tensors."""
        return sum(info.n_bytes for info in self.model.file.tensors.values())

    def as_dict(self) -> dict[str, Any]:
        """The keys of llama-bench's JSON that mean something here, and ours; times in ns, rates in bytes, operations, tokens per second."""
        test, peak, cost = self.test, self.peak, self.cost
        bandwidth_share = cost.read_seconds(peak) / self.seconds
        ops_share = cost.compute_seconds(peak) / self.seconds
        facts: dict[str, Any] = {
            "build_commit": __version__,
            "cpu_info": Host().cpu_name(),
            "backends": "CPU" if self.isa else "NumPy",
            "isa": self.isa,
            "model_filename": str(self.model.file.path),
            "model_type": describe(self.model),
            "model_size": self.model_size,
            "model_n_params": sum(info.n_weights for info in self.model.file.tensors.values()),
            "n_batch": self.n_batch,
            "n_threads": self.n_threads,
            "type_k": self.cache_types.k,
            "type_v": self.cache_types.v,
            "devices": self.devices,
            "n_prompt": test.n_prompt,
            "n_gen": test.n_gen,
            "n_depth": test.n_depth,
            "n_seq": test.n_seq,
            "test_time": self.test_time,
            "avg_ns": round(fmean(self.samples_ns)),
            "stddev_ns": round(deviation(self.samples_ns)),
            "avg_ts": fmean(self.samples_ts),
            "stddev_ts": deviation(self.samples_ts),
            "samples_ns": self.samples_ns,
            "samples_ts": self.samples_ts,
            "bandwidth": cost.n_bytes / self.seconds,
            "bandwidth_share": bandwidth_share,
            "machine_bandwidth": peak.bandwidth,
            "ops": cost.ops / self.seconds,
            "ops_share": ops_share,
            "machine_ops": cost.ops / self.seconds / ops_share,
            "machine_products": peak.products,
            "machine_flops": peak.flops,
        }
        if self.profile:
            facts["profile"] = [kind.as_dict(peak) for kind in self.profile]
        return facts


def deviation(samples: Sequence[float]) -> float:
    """The standard deviation of a sample, as in llama-bench: 0 for a single value."""
    return stdev(samples) if len(samples) > 1 else 0.0
