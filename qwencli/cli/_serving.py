"""Options that say what a server offers, gathered in one object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from ._addresses import items
from ._llama.command import llama_option
from ._options import Gathered, gathered
from ._streams import read_text

CONTEXT_STEP = 256
"""llama.cpp rounds contexts up to multiples of this (llama-context.cpp)."""


class ServingOptions(Gathered):
    """What was asked for; None where it wasn't."""

    n_slots: int | None
    n_queue: int
    kv_unified: bool | None
    kv_unified_per_slot: int | None
    alias: str | None
    tags: str | None
    embeddings: bool
    reranking: bool
    pooling: str | None
    embd_normalize: int
    cache_prompt: bool
    context_shift: bool
    keep: int
    spm_infill: bool
    metrics: bool
    slots: bool
    props: bool
    slot_save_path: Path | None
    sleep_idle_seconds: int
    ui: bool
    ui_config: dict[str, Any] | None
    ui_config_file: str | None
    static_path: Path | None

    def context(self, asked: int | None) -> int | None:
        """The context of each slot where -c asks for `asked` tokens. As in llama-server, slots whose number is given divide them."""
        n_ctx = asked
        if n_ctx is not None and self.n_slots is not None and not self.kv_unified:
            n_ctx = rounded(rounded(n_ctx) // self.n_slots)
        if (most := self.kv_unified_per_slot) is not None:
            n_ctx = most if n_ctx is None else min(n_ctx, most)
        return n_ctx

    def settings(self, file_name: str) -> dict[str, Any]:
        """Fields of ServerOptions. Raises QwenError."""
        aliases = tuple(sorted(set(items(self.alias or ""))))
        config = self.ui_config
        if self.ui_config_file is not None:
            config = read_object(read_text(self.ui_config_file), self.ui_config_file)
        return {
            "name": aliases[0] if aliases else file_name,
            "aliases": aliases,
            "tags": tuple(sorted(set(items(self.tags or "")))),
            "only": "rerank" if self.reranking else "embeddings" if self.embeddings else None,
            "embd_normalize": self.embd_normalize,
            "cache_prompt": self.cache_prompt,
            "context_shift": self.context_shift,
            "n_keep": self.keep,
            "suffix_first": self.spm_infill,
            "metrics": self.metrics,
            "slots": self.slots,
            "props": self.props,
            "slot_save_path": self.slot_save_path,
            "sleep_idle_seconds": None if self.sleep_idle_seconds == -1 else self.sleep_idle_seconds,
            "ui": self.ui,
            "ui_config": config or {},
            "static_path": self.static_path,
        }


def rounded(n_ctx: int) -> int:
    return -(-n_ctx // CONTEXT_STEP) * CONTEXT_STEP


def read_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises InputError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected a JSON object")
    return found


def json_object(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, Any] | None:
    """A callback for options whose value is a JSON object."""
    try:
        return None if value is None else read_object(value, "the value")
    except InputError as error:
        raise click.BadParameter(f"{error}.", ctx, param) from None


def read_sleep(ctx: click.Context, param: click.Parameter, value: int) -> int:
    if value == 0:
        raise click.BadParameter("0 is neither a number of seconds nor -1, which is never.", ctx, param)
    return value


folder = click.Path(exists=True, file_okay=False, path_type=Path)
serving_options = gathered(
    ServingOptions,
    "serving",
    llama_option(
        "-np",
        "n_slots",
        type=click.IntRange(1, 256),
        metavar="N",
        help="Requests that are answered at once. If it is given, they divide -c, unless there is -kvu. Default: 4, each with all of -c.",
    ),
    click.option(
        "--queue",
        "n_queue",
        type=click.IntRange(0, 100_000),
        default=64,
        show_default=True,
        metavar="N",
        help="Requests that may wait; more are told to come again.",
    ),
    llama_option("-kvu", default=None, help="Whether each of the -np requests may use all of -c."),
    llama_option(
        "--kv-unified-per-slot",
        type=click.IntRange(1, 2**30),
        metavar="N",
        help="The most that a request may use of -c.",
    ),
    llama_option("-a", metavar="NAME,...", help="The model's names in answers. Default: the file's."),
    llama_option("--tags", metavar="TAG,...", help="Words that clients are shown with the model."),
    llama_option("--embeddings", "embeddings", is_flag=True, help="Serve embeddings only."),
    llama_option("--reranking", "reranking", is_flag=True, help="Serve rankings only."),
    llama_option(
        "--pooling",
        type=click.Choice(["none", "mean", "cls", "last", "rank"]),
        help="What an embedding is: the mean of all tokens' states, that of the first (cls) or the last one, or all of them (none); rank"
        " serves /rerank. Default: as the file says, else last.",
    ),
    llama_option(
        "--embd-normalize",
        type=click.IntRange(-1, 2**31 - 1),
        default=2,
        show_default=True,
        metavar="N",
        help="How /embedding normalises: -1 not at all, 0 to a largest value of 32760, 1 sum, 2 length, else the p-norm.",
    ),
    llama_option(
        "--cache-prompt", default=True, help="Whether prompts use what earlier ones have in common with them."
    ),
    llama_option(
        "--context-shift",
        default=False,
        help="Whether an answer goes on where the context is full, without the oldest part of it.",
    ),
    llama_option(
        "--keep",
        type=click.IntRange(-1, 2**31 - 1),
        default=0,
        metavar="N",
        help="How many tokens of the prompt --context-shift keeps; -1 = all.",
    ),
    llama_option(
        "--spm-infill", is_flag=True, help="For /infill: the text after the gap comes before that before it."
    ),
    llama_option("--metrics", is_flag=True, help="Serve /metrics."),
    llama_option("--slots", default=True, help="Whether /slots is served. Default: it is."),
    llama_option("--props", is_flag=True, help="Serve POST /props."),
    llama_option(
        "--slot-save-path",
        type=folder,
        metavar="FOLDER",
        help="Let clients save and restore slots in this folder.",
    ),
    llama_option(
        "--sleep-idle-seconds",
        type=click.IntRange(-1, 2**31 - 1),
        default=-1,
        callback=read_sleep,
        metavar="SECONDS",
        help="Unload the model after so long without requests; -1 = never.",
    ),
    llama_option("--ui", "ui", default=True, help="Whether there is a page at /. Default: there is."),
    llama_option(
        "--ui-config",
        "ui_config",
        metavar="JSON",
        callback=json_object,
        help="Settings of the page, a JSON object.",
    ),
    llama_option("--ui-config-file", "ui_config_file", metavar="FILE", help="The same in a file."),
    llama_option(
        "--path",
        "static_path",
        type=folder,
        metavar="FOLDER",
        help="Serve the files of this folder in place of the page.",
    ),
)
