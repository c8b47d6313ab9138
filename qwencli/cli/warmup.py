"""`qwencli warmup`"""

from __future__ import annotations

import json

import click

from ._bar import Bar
from ._models import Wanted, choose_model, models_option
from ._options import cache_type_k_option, cache_type_v_option, example, json_option
from ._streams import say, write_text


@click.command(
    epilog=example(
        "qwencli warmup",
        "qwencli warmup -m model.gguf",
        "qwencli warmup -m model.gguf --all --isa avx2 --json",
    )
)
@models_option
@click.option(
    "--isa",
    "isas",
    metavar="NAME",
    multiple=True,
    help="Compile for this instruction set; may be given several times. Default: the one used on this machine, see `qwencli doctor`.",
)
@click.option(
    "--all",
    "all_formats",
    is_flag=True,
    help="Compile for every format that the models may come in, not only their own.",
)
@click.option(
    "--tune/--no-tune",
    default=True,
    show_default=True,
    help="Find out which tiles and prefetches of matrix products are fastest on this CPU.",
)
@cache_type_k_option
@cache_type_v_option
@json_option
def warmup(
    models: list[Wanted | None],
    isas: tuple[str, ...],
    all_formats: bool,
    tune: bool,
    cache_type_k: str | None,
    cache_type_v: str | None,
    as_json: bool,
) -> None:
    """Compile what a model needs before its first run.

    That is for container images, and for whoever doesn't want to wait. Kernels are kept in the user's cache folder, or in $QWENCLI_CACHE.
    They are used by everyone with the same cache folder, on a CPU of the same kind; those for avx2, avxvnni, neon and generic on any CPU
    with these instructions.
    """
    paths = [choose_model(wanted).path for wanted in models]
    from ..backends.kv_cache import CacheTypes
    from ..gguf.file import GGUFFile
    from ..machine.warmup import warm_up
    from ..network.load import load_model

    done = []
    loaded = [load_model(GGUFFile(path)) for path in paths]
    types = CacheTypes(cache_type_k, cache_type_v)
    for found in warm_up(loaded, isas, all_formats, say, Bar(unit="kernel"), tune, types):
        done.append(found)
        if not as_json:
            counts = f"{found.compiled} kernels compiled in {found.seconds:.1f} s, {found.present} were there"
            write_text(f"{found.isa}: {counts}; {found.folder}\n")
    if as_json:
        write_text(
            json.dumps({"isas": [found._asdict() | {"folder": str(found.folder)} for found in done]}) + "\n"
        )
