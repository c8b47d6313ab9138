"""`qwencli rm`"""

from __future__ import annotations

import sys

import click

from ..errors import QwenError
from ..units import size
from ._options import example
from ._streams import say


@click.command(
    epilog=example("qwencli rm bartowski/Qwen_Qwen3-0.6B-GGUF:Q4_K_M", "qwencli rm -y models/old.gguf")
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Remove without asking.")
def rm(names: tuple[str, ...], yes: bool) -> None:
    """Remove models by the names that `qwencli list` shows.

    Only models in the Hugging Face hub's cache and in ./models can be removed. If a repository has several models, only the named one is
    removed. Nothing else is ever touched.
    """
    from ..hub.removal import removable, remove

    models = [removable(name) for name in dict.fromkeys(names)]
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise QwenError("there is nobody to ask, add -y to remove without asking")
        what = ", ".join(f"{model.name} ({size(model.size)})" for model in models)
        if not click.confirm(f"Remove {what}?", err=True):
            raise QwenError("nothing removed")
    for model in models:
        say(f"removed {model.name}, {size(remove(model))} freed")
