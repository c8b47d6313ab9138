"""Options that several commands share, and the form of their examples."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from ._llama.command import LlamaOption, llama_option
from ._llama.table import find

CACHE_TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0"]
"""The KV cache's (backends/kv_cache.py), which --help doesn't import."""

mmap_option = click.option(
    "--no-mmap",
    is_flag=True,
    help="Read the file instead of mapping it: it may change while in use, and tokens may come faster; needs memory of its size.",
)
threads_option = llama_option(
    "-t", type=click.IntRange(1, 1024), help="Threads to use. Default: one per core."
)
backend_option = click.option(
    "--backend",
    type=click.Choice(["auto", "cpu", "numpy"]),
    default="auto",
    help="cpu: compiled kernels; numpy: the slow float32 reference. Default: cpu, if it supports the file's types.",
)
cache_type_k_option, cache_type_v_option = (
    llama_option(
        f"-ct{letter}",
        type=click.Choice(CACHE_TYPES),
        help=f"The type of the {what} in the KV cache. Default: f16; q8_0 takes half the memory, q4_0 a quarter.",
    )
    for letter, what in (("k", "keys"), ("v", "values"))
)
fit_option = click.option(
    "--fit/--no-fit",
    cls=LlamaOption,
    variable=find("--fit").variable,
    default=None,
    help="Use the longest context up to -c that fits into free memory; --no-fit doesn't check whether it fits.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


class Gathered:
    """Values of a command's options as one object. The annotations of a subclass are their names."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def gathered(
    kind: type[Gathered], passed_as: str, *options: Callable[..., Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the values of these options, by the names that `kind` has, come to the command as one object."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def wrapper(**kwargs: Any) -> Any:
            found = kind(**{name: kwargs.pop(name) for name in kind.__annotations__})
            return command(**{passed_as: found}, **kwargs)

        for option in reversed(options):
            wrapper = option(wrapper)
        return wrapper

    return decorate


def example(*lines: str) -> str:
    """An epilog that shows example calls, one per line."""
    return "\b\nExamples:\n" + "\n".join("  " + line for line in lines)
