"""The options that say which model is meant; finding, fetching and announcing it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..errors import QwenError
from ..hub.access import USUAL, Access
from ..hub.choice import ModelPath, find_model
from ..hub.places import VARIABLE
from ..units import size
from ._bar import Bar
from ._llama.command import llama_option
from ._streams import printable, say

if TYPE_CHECKING:
    from ..hub.downloads import RemoteModel
    from ..hub.names import HubName

Function = Callable[..., Any]
WHAT = "A GGUF file, a folder with one, or a name as in `qwencli list` and `qwencli pull`."


class Wanted(NamedTuple):
    """A model that was asked for: by -m, as a repository of the hub by -hf, or by neither (None), and whether it may be fetched."""

    name: str | None
    hub: bool = False
    file: str | None = None
    yes: bool = False
    access: Access = USUAL


def model_option(command: Function) -> Function:
    """-m, -hf, -hff and -y, passed on to the command as `model`: a Wanted, or None where none of them is given."""
    option = llama_option(
        "-m",
        metavar="PATH|NAME",
        help=f"{WHAT} Default: $QWENCLI_MODEL, else the one in ./models, else the embedded demo.",
    )
    return option(_hub_options(command, "model", several=False))


def model_argument(command: Function) -> Function:
    """As model_option, with an argument MODEL in place of -m."""
    return click.argument("model", required=False)(_hub_options(command, "model", several=False))


def models_option(command: Function) -> Function:
    """As model_option for any number of models, passed on as `models`: a list of Wanted, or [None]."""
    option = llama_option(
        "-m",
        "models",
        metavar="PATH|NAME",
        multiple=True,
        help=f"{WHAT} May be given several times. Default: as for `qwencli run`.",
    )
    return option(_hub_options(command, "models", several=True))


def _hub_options(command: Function, passed_as: str, several: bool) -> Function:
    @wraps(command)
    def wrapper(
        hf_repo: Any, hf_file: str | None, yes: bool, hf_token: str | None, offline: bool, **kwargs: Any
    ) -> Any:
        access = Access(hf_token, offline)
        given = kwargs.pop(passed_as)
        repos = hf_repo if several else [hf_repo] * (hf_repo is not None)
        named = given if several else [given] * (given is not None)
        if named and repos and not several:
            raise click.UsageError("give a model or -hf, not both")
        if hf_file is not None and len(repos) != 1:
            raise click.UsageError("-hff names a file of the one repository that -hf names")
        wanted: list[Wanted | None] = [Wanted(name, yes=yes, access=access) for name in named]
        wanted += [Wanted(repo, True, hf_file, True, access) for repo in repos]
        wanted = wanted or [Wanted(None, yes=yes, access=access) if yes or access != USUAL else None]
        return command(**{passed_as: wanted if several else wanted[0]}, **kwargs)

    for option in (
        llama_option("--offline", is_flag=True, help="Fetch nothing: the model has to be on this machine."),
        llama_option(
            "-hft", metavar="TOKEN", help="A token for private models on the hub. Default: $HF_TOKEN."
        ),
        click.option(
            "-y", "--yes", is_flag=True, help="Fetch a model that is not on this machine without asking."
        ),
        llama_option("-hff", metavar="FILE", help="A file in the repository that -hf names."),
        llama_option(
            "-hf",
            metavar="USER/REPO[:QUANT]",
            multiple=several,
            help="A model from the Hugging Face hub, named as in llama.cpp; fetched if it is not on this machine.",
        ),
    ):
        wrapper = option(wrapper)
    return wrapper


def choose_model(wanted: Wanted | None, quiet: bool = False) -> ModelPath:
    """Find the model, fetch it if need be, and say on stderr, in one line, which it is and why. Raises QwenError."""
    chosen = _from_hub(wanted) if wanted and wanted.hub else find_model(fetched(wanted))
    if not quiet:
        print(printable(f"model: {chosen.path} ({chosen.reason})"), file=sys.stderr, flush=True)
    return chosen


def _from_hub(wanted: Wanted) -> ModelPath:
    from ..hub.installed import find
    from ..hub.names import HubName

    name = HubName.parse(wanted.name or "")
    if name is None or name.file:
        raise QwenError(f"{wanted.name}: not a repository of the hub, expected user/repo or user/repo:QUANT")
    if wanted.file:
        name = HubName(name.repo, None, wanted.file)
    if model := find(str(name), first=True, hub=True):
        return ModelPath(model.paths[0], f"-hf {name}")
    from ..hub.downloads import look_up

    return ModelPath(fetch(look_up(name, True, wanted.access), wanted.access.token), f"-hf {name}")


def fetched(wanted: Wanted | None) -> str | None:
    """The path or name that was asked for. If it, or the variable, means a model of the hub that is not here, ask and fetch it.

    Raises QwenError.
    """
    if wanted and wanted.hub:
        return str(_from_hub(wanted).path)
    chosen = wanted.name if wanted else None
    value = os.environ.get(VARIABLE) if chosen is None else chosen
    if value and not os.path.lexists(value) and (name := hub_name(value)):
        from ..hub.installed import find

        if not find(value):
            ask_and_fetch(name, wanted is not None and wanted.yes, wanted.access if wanted else USUAL)
    return chosen


def hub_name(value: str) -> HubName | None:
    """The name on the hub that a value of -m stands for; None for what looks more like a path."""
    from ..hub.names import HubName

    name = HubName.parse(value)
    is_path = os.path.isdir(value.split("/")[0]) or (
        name is not None and name.tag is None and name.repo.endswith(".gguf")
    )
    return None if is_path else name


def ask_and_fetch(name: HubName, yes: bool, access: Access = USUAL) -> Path:
    """Fetch a model unless the user says no. Raises QwenError if there is nobody to ask or the answer is no."""
    if not yes and not access.offline and not (sys.stdin.isatty() and sys.stderr.isatty()):
        from ..hub.installed import near

        names = near(str(name))
        raise QwenError(
            f"{name}: not on this machine; fetch it with `qwencli pull {name}`, or add -y"
            + (f"; similar names here: {', '.join(names)}" if names else "")
        )
    from ..hub.downloads import look_up

    model = look_up(name, access=access)
    if not yes and not click.confirm(
        f"{model.name} is not on this machine. Fetch {size(model.n_bytes)}?", default=True, err=True
    ):
        raise QwenError(f"{name}: not fetched")
    return fetch(model, access.token)


def fetch(model: RemoteModel, token: str | None = None) -> Path:
    """Fetch a model with progress bars on stderr. Returns the path of its first file. Raises QwenError."""
    from ..hub.downloads import fetch as fetch_files

    def begins(file: str, here: int, whole: int | None) -> None:
        say(
            f"fetching {file}"
            + (f", {size(whole)}" if whole else "")
            + (f", of which {size(here)} is here already" if here else "")
        )

    try:
        return fetch_files(model, begins, Bar(desc="checking", unit="B", unit_scale=True), token)
    except KeyboardInterrupt:
        say(f"stopped; `qwencli pull {model.name}` resumes it")
        raise
