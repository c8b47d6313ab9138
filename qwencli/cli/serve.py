"""`qwencli serve`"""

from __future__ import annotations

import os
from typing import Any

import click

from ..errors import QwenError
from ._addresses import AddressOptions, address_options
from ._buffers import table
from ._chats import ChatOptions, chat_options
from ._llama.command import LlamaCommand, llama_option
from ._loading import Loader, loading_options
from ._options import example
from ._sampling import sampling_options
from ._serving import ServingOptions, serving_options
from ._streams import say, unescape, warn

N_SLOTS = 4
N_BATCH = 2048


@click.command(
    cls=LlamaCommand,
    epilog=example(
        "qwencli serve",
        "qwencli serve -m model.gguf --host 0.0.0.0 --port 8080 -n 512 --api-key-file keys.txt",
        'curl http://127.0.0.1:8080/completion -d \'{"prompt": "Once upon a time"}\'',
    ),
)
@loading_options
@address_options
@serving_options
@llama_option(
    "-n",
    "max_tokens",
    type=click.IntRange(-1, 2**31 - 1),
    metavar="N",
    help="The most tokens of an answer where the request doesn't say. Default, and -1: until the context is full.",
)
@llama_option(
    "-r", "stop", metavar="TEXT", multiple=True, help="End answers at this text where the request names none."
)
@llama_option("--ignore-eos", is_flag=True, help="Go on where the model would end an answer.")
@llama_option(
    "--escape", default=True, help="Whether backslashes in -r stand for characters. Default: they do."
)
@chat_options
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="The form of the log's line for each request.",
)
@click.option("--log-prompts", is_flag=True, help="Write prompts and answers to the log.")
@llama_option("-v", is_flag=True, help="Show how the model is divided, and what is in memory.")
@sampling_options
def serve(
    loader: Loader,
    addresses: AddressOptions,
    serving: ServingOptions,
    max_tokens: int | None,
    stop: tuple[str, ...],
    ignore_eos: bool,
    escape: bool,
    chats: ChatOptions,
    log_format: str,
    log_prompts: bool,
    verbose: bool,
    sampling: dict[str, Any],
) -> int:
    """Answer HTTP requests, of OpenAI's API, llama.cpp's and others, and show a page for chats.

    The options are llama-server's. They hold for what a request leaves open, the sampling options too. What becomes of those that aren't
    shown here is in docs/server.md.
    """
    try:
        from ..server import run
        from ..server.options import ServerOptions
        from ..server.service.service import Service
        from ..server.vertex import variables
    except ModuleNotFoundError as error:
        if (error.name or "qwencli").startswith("qwencli"):
            raise
        raise QwenError(f'the server needs the package {error.name}: pip install "qwencli[server]"') from None
    keys = addresses.keys()
    tls = run.certificate(addresses.ssl_key_file, addresses.ssl_cert_file)
    hosts = addresses.host
    # before loading the model, which may take a while
    told = variables.read(os.environ)
    if told and told.port != addresses.port:
        warn(f"AIP_HTTP_PORT says port {told.port}, which comes before --port")
    sockets = run.listen(hosts, told.port if told else addresses.port, addresses.reuse_port)
    template = chats.templates.template()
    loader.n_ctx = serving.context(loader.n_ctx)
    llm = loader.load(chat=template is None, generates=False)
    n_slots = serving.n_slots or N_SLOTS
    service = Service(llm, n_slots, serving.n_queue, "rank" if serving.reranking else serving.pooling)
    if not keys and (open_hosts := [host for host in hosts if not run.is_loopback(host)]):
        warn(f"anyone who can reach {', '.join(open_hosts)} can use this server: --api-key asks for a key")
    options = ServerOptions(
        **serving.settings(llm.file.path.name),
        **chats.settings(),
        sampling=llm.sampling(**sampling),
        max_tokens=None if max_tokens == -1 else max_tokens,
        ignore_eos=ignore_eos,
        n_batch=loader.n_batch or N_BATCH,
        stop=tuple(map(unescape, stop)) if escape else stop,
        template=template or llm.chat_template,
        api_keys=keys,
        cors_origins=addresses.origins(),
        api_prefix=addresses.api_prefix,
        timeout=addresses.timeout,
        sse_ping=None if addresses.sse_ping_interval <= 0 else addresses.sse_ping_interval,
        hosts=hosts,
        predict_path=told.predict_path if told else None,
        health_path=told.health_path if told else None,
        log_format="none" if loader.quiet else log_format,
        log_prompts=log_prompts,
        verbose=verbose,
    )
    if verbose:
        from ..machine.buffers import memory_report

        for line in [*llm.splits(), *table(memory_report(llm))]:
            say(line)

    positions = llm.fit.positions(n_slots)
    limited = positions is not None and positions < n_slots * llm.engine.n_ctx
    about = (
        f"{n_slots} at once, context {llm.engine.n_ctx}" + f", memory for {positions} tokens in all" * limited
    )

    def ready() -> None:
        if not loader.quiet:
            say(f"listening on {run.url(sockets, hosts, tls is not None)} ({about}); Ctrl-C ends")

    run.serve(service, options, sockets, addresses.grace, ready, tls)
    return 0
