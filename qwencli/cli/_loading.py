"""The options that say how a model is opened, gathered in one object that opens it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from ._bar import Bar
from ._devices import DeviceOptions, device_options
from ._models import Wanted, choose_model, model_option
from ._options import (
    backend_option,
    cache_type_k_option,
    cache_type_v_option,
    fit_option,
    mmap_option,
    threads_option,
)
from ._streams import say, warn

if TYPE_CHECKING:
    from ..llm import LLM


@dataclass
class Loader:
    """The model that was chosen and how to run it."""

    model: Wanted | None
    n_ctx: int | None
    fit: bool | None
    threads: int | None
    backend: str
    cache_type_k: str | None
    cache_type_v: str | None
    no_mmap: bool
    quiet: bool
    devices: DeviceOptions

    def load(self, chat: bool = False, generates: bool = True) -> LLM:
        """Open the model, and say which it is unless `quiet`. `chat` and `generates` as in LLM. Raises QwenError."""
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
            devices=self.devices.wishes(),
            generates=generates,
        )
        if not self.quiet:
            check_context(llm.engine.n_ctx, llm.model.config.n_ctx)
        return llm


def loading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which model, and how it runs: passed on to the command as one Loader, `loader`."""

    @wraps(command)
    def wrapper(**kwargs: Any) -> Any:
        loader = Loader(**{name: kwargs.pop(name) for name in Loader.__dataclass_fields__})
        return command(loader=loader, **kwargs)

    options: list[Callable[..., Any]] = [
        model_option,
        click.option(
            "-c",
            "--ctx-size",
            "n_ctx",
            type=click.IntRange(1, 2**30),
            help="Context size in tokens, prompt and answer together. Default: the model's own, or what fits into memory.",
        ),
        fit_option,
        threads_option,
        backend_option,
        cache_type_k_option,
        cache_type_v_option,
        device_options,
        mmap_option,
        click.option("-q", "--quiet", is_flag=True, help="Write nothing but errors to stderr."),
    ]
    for option in reversed(options):
        wrapper = option(wrapper)
    return wrapper


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
