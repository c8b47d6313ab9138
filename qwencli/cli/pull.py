"""`qwencli pull`"""

from __future__ import annotations

import json

import click

from ..errors import InputError
from ._models import fetch
from ._options import example, json_option
from ._streams import write_text


@click.command(
    epilog=example(
        "qwencli pull bartowski/Qwen_Qwen3-0.6B-GGUF",
        "qwencli pull bartowski/Qwen_Qwen3-0.6B-GGUF:Q8_0",
        'qwencli run -m "$(qwencli pull user/repo:Q4_K_M)" -p hello',
    )
)
@click.argument("name", metavar="USER/REPO[:QUANT]")
@json_option
def pull(name: str, as_json: bool) -> None:
    """Fetch a model from the Hugging Face hub.

    It goes into the hub's cache, where other programs find it too, and its path is printed. Without QUANT, that is Q4_K_M or the
    repository's only model; USER/REPO/FILE.gguf names a file. An interrupted download is resumed by the next call. HF_ENDPOINT, HF_TOKEN,
    HF_HOME and HF_HUB_CACHE are respected.
    """
    from ..hub.names import HubName

    wanted = HubName.parse(name)
    if wanted is None:
        raise InputError(
            f"{name}: not a name on the hub, expected user/repo, user/repo:QUANT or user/repo/file.gguf"
        )
    from ..hub.downloads import look_up

    model = look_up(wanted)
    path = fetch(model)
    facts = {
        "name": model.name,
        "path": str(path),
        "files": [file.path for file in model.files],
        "size_bytes": model.n_bytes,
    }
    write_text(json.dumps(facts) + "\n" if as_json else f"{path}\n")
