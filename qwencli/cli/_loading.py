"""The options by which a model is opened to generate, as one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from ._bar import Bar
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
    """What was chosen of a model and how to run it."""

    model: Wanted | None
    n_ctx: int | None
    fit: bool | None
    threads: int | None
    backend: str
    cache_type_k: str | None
    cache_type_v: str | None
    no_mmap: bool
    quiet: bool

    def load(self, chat: bool = False) -> LLM:
        """Open the model, and say which it is unless `quiet`. `chat` as in LLM."""
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

    options = [
        model_option,
        click.option(
            "-c",
            "--ctx-size",
            "n_ctx",
            type=click.IntRange(1, 2**30),
            help="Tokens of prompt and answer together. Default: the model's context, as far as it fits into memory.",
        ),
        fit_option,
        threads_option,
        backend_option,
        cache_type_k_option,
        cache_type_v_option,
        mmap_option,
        click.option("-q", "--quiet", is_flag=True, help="Write nothing to stderr but errors."),
    ]
    for option in reversed(options):
        wrapper = option(wrapper)
    return wrapper


def check_context(n_ctx: int, trained: int) -> None:
    """Warn of a context longer than the model was trained for; it is used all the same."""
    if n_ctx > trained:
        warn(
            f"a context of {n_ctx} is more than the {trained} that the model was trained for; answers may get worse beyond that"
        )


session_option = click.option(
    "--session",
    metavar="FILE",
    help="Save the model's state to this file in the end, and begin with what it holds of the prompt already.",
)


@contextmanager
def kept_session(llm: LLM, path: str | None) -> Iterator[None]:
    """Begin with the session in a file, if there is one, and save it in the end, with a bar where that takes long."""
    if path is None:
        yield
        return
    from ..system.files import check_replaceable

    check_replaceable(path)
    if os.path.exists(path):
        llm.load_session(path, Bar(delay=1, desc="loading", unit="page"))
    yield
    llm.save_session(path, Bar(delay=1, desc="saving", unit="page"))
