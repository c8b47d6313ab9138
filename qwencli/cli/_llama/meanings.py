"""Options of llama.cpp's whose meaning is spelt otherwise here: what click is given in their place."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import click

from .entries import AUTO, NO, YES

Meaning = Callable[[str, Sequence[str]], list[str]]
"""From a spelling and its values to click's arguments. Raises ValueError for values that it doesn't have."""
HUB_FILE = r"https://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/(?:resolve|blob)/main/([^?#]+)(?:\?.*)?"


def switch(yes: str, no: str | None = None, auto: bool = False) -> Meaning:
    """An option with the values on and off, and perhaps auto."""

    def meaning(spelling: str, values: Sequence[str]) -> list[str]:
        value = values[0].strip().lower()
        if value in YES:
            return [yes]
        if value in NO:
            return [no] if no else []
        if auto and value in AUTO:
            return []
        raise ValueError(f"{value[:60]!r} is not one of on, off{', auto' * auto}")

    return meaning


def load_mode(spelling: str, values: Sequence[str]) -> list[str]:
    modes: dict[str, list[str]] = {
        "auto": [],
        "mmap": [],
        "none": ["--no-mmap"],
        "mlock": ["--no-mmap", "--mlock"],
        "mmap+mlock": ["--mlock"],
    }
    if values[0] == "dio":
        raise ValueError("direct I/O doesn't exist here: `none` reads the file into memory")
    if values[0] not in modes:
        raise ValueError(f"{values[0][:60]!r} is not one of {', '.join(modes)}")
    return modes[values[0]]


def model_url(spelling: str, values: Sequence[str]) -> list[str]:
    match = re.fullmatch(HUB_FILE, values[0].strip())
    if not match:
        raise ValueError(
            "models come from huggingface.co only: fetch the file yourself and name it with -m,"
            " or give https://huggingface.co/USER/REPO/resolve/main/FILE"
        )
    return ["--hf-repo", match[1], "--hf-file", match[2]]


def log_jsonl(spelling: str, values: Sequence[str]) -> list[str]:
    return ["--log-format", "text" if spelling.startswith("--no-") else "json"]


def verbosity(spelling: str, values: Sequence[str]) -> list[str]:
    try:
        level = int(values[0])
    except ValueError:
        raise ValueError(f"{values[0][:60]!r} is not a valid integer") from None
    return ["--quiet"] if level < 3 else ["--verbose"] if level > 3 else []


def instead(option: str) -> Meaning:
    """Another option with the same value."""
    return lambda spelling, values: [option, *values]


def default_for(*nothing: str) -> Meaning:
    """An option for which some values ask for the default."""

    def meaning(spelling: str, values: Sequence[str]) -> list[str]:
        return [] if values[0].strip() in nothing else [spelling, *values]

    return meaning


def mmap(spelling: str, values: Sequence[str]) -> list[str]:
    return [spelling] if spelling == "--no-mmap" else []


def override_tensor(spelling: str, values: Sequence[str]) -> list[str]:
    """What goes to the CPU is there already."""
    found = [item for item in values[0].split(",") if not item.upper().endswith("=CPU")]
    return [word for item in found for word in (spelling, item)]


MEANINGS: dict[str, Meaning] = {
    "--fit": switch("--fit", "--no-fit"),
    "--load-mode": load_mode,
    "--model-url": model_url,
    "--log-jsonl": log_jsonl,
    "--log-disable": lambda spelling, values: ["--quiet"],
    "--verbosity": verbosity,
    "--reasoning": switch("--think", "--no-think", auto=True),
    "--mmap": mmap,
    "--device": default_for("none"),
    "--override-tensor": override_tensor,
    "--grammar-file": instead("--grammar"),
    "--json-schema-file": instead("--json-schema"),
    "--threads": default_for("0", "-1"),
    "--threads-batch": default_for("0", "-1"),
    "--ctx-size": default_for("0"),
    "--parallel": default_for("-1"),
    "--seed": default_for("-1", "4294967295"),
}
"""By the option's first long spelling."""


def _invoke(name: str) -> Callable[[click.Context], None]:
    def show(ctx: click.Context) -> None:
        from .. import cli

        command = cli.get_command(ctx, name)
        assert command
        with command.make_context(name, [], parent=ctx.parent) as own:
            command.invoke(own)
        ctx.exit()

    return show


def _help(ctx: click.Context) -> None:
    click.echo(ctx.get_help())
    ctx.exit()


def _version(ctx: click.Context) -> None:
    from ... import __version__

    click.echo(f"qwencli, version {__version__}")
    ctx.exit()


def _completion(ctx: click.Context) -> None:
    from click.shell_completion import BashComplete

    from .. import cli

    click.echo(BashComplete(cli, {}, "qwencli", "_QWENCLI_COMPLETE").source())
    ctx.exit()


PRINTED: dict[str, Callable[[click.Context], None]] = {
    "--help": _help,
    "--version": _version,
    "--cache-list": _invoke("list"),
    "--list-devices": _invoke("devices"),
    "--completion-bash": _completion,
}
"""What options do that print something and exit."""
