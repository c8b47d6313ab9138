"""The options that say how a model is opened, gathered in one object that opens it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ._bar import Bar
from ._devices import DeviceOptions, device_options
from ._llama.command import llama_option
from ._machine import MachineOptions, batch_options, machine_options
from ._models import Wanted, choose_model, model_option
from ._options import (
    Gathered,
    backend_option,
    cache_type_k_option,
    cache_type_v_option,
    fit_option,
    gathered,
    mmap_option,
    threads_option,
)
from ._streams import log_to, say, warn

if TYPE_CHECKING:
    from ..llm import LLM


class Loader(Gathered):
    """The model that was chosen and how to run it."""

    model: Wanted | None
    n_ctx: int | None
    fit: bool | None
    threads: int | None
    n_batch: int | None
    n_ubatch: int | None
    backend: str
    cache_type_k: str | None
    cache_type_v: str | None
    no_mmap: bool
    quiet: bool
    log_file: str | None
    devices: DeviceOptions
    machine: MachineOptions

    def load(self, chat: bool = False, generates: bool = True) -> LLM:
        """Open the model, and say which it is unless `quiet`. `chat` and `generates` as in LLM. Raises QwenError."""
        if self.log_file is not None:
            log_to(self.log_file)
        chosen = choose_model(self.model, self.quiet)
        from ..llm import LLM

        report, progress = (None, None) if self.quiet else (say, Bar(unit="kernel"))
        llm = LLM(
            chosen.path,
            self.n_ctx,
            self.threads,
            not self.no_mmap,
            self.backend,
            report,
            progress,
            chat,
            self.cache_type_k,
            self.cache_type_v,
            self.fit,
            self.n_batch,
            self.devices.wishes(),
            self.n_ubatch,
            generates=generates,
            **self.machine.arguments(),
        )
        if not self.quiet:
            check_context(llm.engine.n_ctx, llm.model.config.n_ctx)
        return llm

    @property
    def asked(self) -> bool:
        """Whether anything was asked for that needs a model on this machine, other than its name."""
        local = (
            self.n_ctx,
            self.fit,
            self.threads,
            self.n_batch,
            self.n_ubatch,
            self.cache_type_k,
            self.cache_type_v,
        )
        return any(value is not None for value in local) or self.backend != "auto" or self.machine.asked


loading_options = gathered(
    Loader,
    "loader",
    model_option,
    llama_option(
        "-c",
        "n_ctx",
        type=click.IntRange(1, 2**30),
        help="Context size in tokens, prompt and answer together. Default: the model's own, or what fits into memory.",
    ),
    fit_option,
    threads_option,
    *batch_options,
    backend_option,
    cache_type_k_option,
    cache_type_v_option,
    device_options,
    mmap_option,
    click.option("-q", "--quiet", is_flag=True, help="Write nothing but errors to stderr."),
    llama_option("--log-file", metavar="FILE", help="Write what goes to stderr to this file, too."),
    machine_options,
)
"""Which model, and how it runs: passed on to the command as one Loader, `loader`."""


def check_context(n_ctx: int, trained: int) -> None:
    """Warn about a context longer than the model was trained for; it is used all the same."""
    if n_ctx > trained:
        warn(
            f"a context of {n_ctx} is longer than the {trained} that the model was trained for; answers may get worse beyond that"
        )


session_option = click.option(
    "--session",
    metavar="FILE",
    help="Save the model's state to this file at the end, and start from what it already holds of the prompt.",
)


@contextmanager
def kept_session(llm: LLM, path: str | None) -> Iterator[None]:
    """Start from the session in a file, if there is one, and save it at the end, with a bar if that takes long. Raises QwenError."""
    if path is None:
        yield
        return
    from ..system.files import check_replaceable

    check_replaceable(path)
    if os.path.exists(path):
        llm.load_session(path, Bar(delay=1, desc="loading", unit="page"))
    yield
    llm.save_session(path, Bar(delay=1, desc="saving", unit="page"))
