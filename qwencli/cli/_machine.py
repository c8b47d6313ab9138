"""Options about threads, memory and the model's metadata, gathered in one object: what LLM takes of llama.cpp's options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ._llama.command import llama_option
from ._options import Gathered, gathered

if TYPE_CHECKING:
    from ..backends.threads import Threads

MOST_THREADS = 1024
NUMA = ["distribute", "isolate", "numactl"]
SCALINGS = ["none", "linear", "yarn"]


class ThreadOptions(Gathered):
    """How threads run; None where nothing was asked for."""

    threads_batch: int | None
    cpu_mask: str | None
    cpu_range: str | None
    cpu_strict: str | None
    prio: int | None
    poll: int | None
    numa: str | None

    def threads(self) -> Threads:
        """Raises InputError."""
        from ..backends.threads import Threads
        from ..system.cpu_masks import chosen_cpus

        return Threads(
            self.threads_batch,
            chosen_cpus(self.cpu_mask, self.cpu_range),
            self.cpu_strict == "1",
            self.prio or 0,
            self.poll,
            self.numa,
        )


class MachineOptions(Gathered):
    """What was asked for; None or False where it wasn't."""

    cpus: ThreadOptions
    mlock: bool
    override_kv: tuple[str, ...]
    check_tensors: bool
    rope_scaling: str | None
    rope_scale: float | None
    rope_freq_base: float | None
    rope_freq_scale: float | None
    yarn_orig_ctx: int | None
    yarn_ext_factor: float | None
    yarn_attn_factor: float | None
    yarn_beta_slow: float | None
    yarn_beta_fast: float | None

    @property
    def asked(self) -> bool:
        own = {**vars(self), **vars(self.cpus), "cpus": None}
        return any(value not in (None, False, ()) for value in own.values())

    def arguments(self) -> dict[str, Any]:
        """The arguments of LLM that say so. Raises InputError."""
        if not self.asked:
            return {}
        from ..gguf.overrides import read_overrides
        from ..network.rope_options import RopeOptions

        rope = {
            name.removeprefix("rope_"): value
            for name, value in vars(self).items()
            if name.startswith(("rope_", "yarn_"))
        }
        return {
            "threads": self.cpus.threads(),
            "mlock": self.mlock,
            "overrides": read_overrides(",".join(self.override_kv)) if self.override_kv else None,
            "rope": RopeOptions(**rope),
            "check_tensors": self.check_tensors,
        }


def rope(spelling: str, help: str, whole: bool = False) -> Any:
    return llama_option(spelling, type=int if whole else float, metavar="N", hidden=True, help=help)


thread_options = gathered(
    ThreadOptions,
    "cpus",
    llama_option(
        "-tb",
        type=click.IntRange(1, MOST_THREADS),
        metavar="N",
        help="Threads that read prompts. Default: as many as -t.",
    ),
    llama_option(
        "-C", metavar="MASK", help="The CPUs to use, as hexadecimal digits: 0x0f is the first four."
    ),
    llama_option("-Cr", metavar="LO-HI", help="The CPUs to use, from the first to the last one."),
    llama_option("--cpu-strict", type=click.Choice(["0", "1"]), help="1: each thread has a CPU of its own."),
    llama_option(
        "--prio",
        type=click.IntRange(-1, 3),
        metavar="N",
        help="The threads' priority: -1 low, 0 usual, 1 to 3 medium, high and real-time.",
    ),
    llama_option(
        "--poll",
        type=click.IntRange(0, 100),
        metavar="N",
        help="How long threads stay awake for more work: 0 not at all, 50 is usual, 100 longest.",
    ),
    llama_option(
        "--numa", type=click.Choice(NUMA), help="Where threads run if there are several NUMA nodes."
    ),
)
machine_options = gathered(
    MachineOptions,
    "machine",
    thread_options,
    llama_option("--mlock", is_flag=True, help="Keep the weights in memory: the system must not swap them."),
    llama_option(
        "--override-kv", metavar="KEY=TYPE:VALUE,...", multiple=True, help="Other metadata than the file's."
    ),
    llama_option("--check-tensors", is_flag=True, help="Look for NaN and infinity in all weights first."),
    llama_option(
        "--rope-scaling", type=click.Choice(SCALINGS), hidden=True, help="How the context is stretched."
    ),
    rope("--rope-scale", "Stretch the context by this factor."),
    rope("--rope-freq-base", "The base of RoPE's frequencies."),
    rope("--rope-freq-scale", "The inverse of --rope-scale."),
    rope("--yarn-orig-ctx", "The context that the model was trained for.", whole=True),
    rope("--yarn-ext-factor", "How much YaRN extrapolates."),
    rope("--yarn-attn-factor", "A factor of attention's scale."),
    rope("--yarn-beta-slow", "YaRN's lower border."),
    rope("--yarn-beta-fast", "YaRN's upper border."),
)
"""Passed on to the command as MachineOptions, `machine`."""
ubatch_option = llama_option(
    "-ub",
    "n_ubatch",
    type=click.IntRange(1, 2**20),
    metavar="N",
    help="The most tokens of a step. Default: 512.",
)
batch_options = (
    llama_option(
        "-b",
        "n_batch",
        type=click.IntRange(1, 2**20),
        metavar="N",
        help="The most tokens of a step, if that is less than -ub.",
    ),
    ubatch_option,
)
