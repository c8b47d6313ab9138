"""`qwencli serve`"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..errors import InputError, QwenError
from ._answers import named_template, template_option
from ._loading import Loader, loading_options
from ._options import example
from ._sampling import sampling_options
from ._streams import say, warn

KEY_VARIABLES = ["QWENCLI_API_KEY", "LLAMA_API_KEY"]


def always_so(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option of llama-server's for what is always done here."""
    return click.option(*names, is_flag=True, hidden=True, expose_value=False)


@click.command(
    epilog=example(
        "qwencli serve",
        "qwencli serve -m model.gguf --host 0.0.0.0 --port 8080 -n 512 --api-key-file keys.txt",
        'curl http://127.0.0.1:8080/completion -d \'{"prompt": "Once upon a time"}\'',
    )
)
@loading_options
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Where to listen; 0.0.0.0 is every network.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes any that is free."
)
@click.option(
    "-np",
    "--parallel",
    "n_slots",
    type=click.IntRange(1, 256),
    default=4,
    show_default=True,
    metavar="N",
    help="Requests that are answered at once, each with the whole context.",
)
@click.option(
    "--queue",
    "n_queue",
    type=click.IntRange(0, 100_000),
    default=64,
    show_default=True,
    metavar="N",
    help="Requests that may wait; more are told to come again.",
)
@click.option(
    "-n",
    "--predict",
    "--n-predict",
    "max_tokens",
    type=click.IntRange(-1, 2**31 - 1),
    metavar="N",
    help="The most tokens of an answer where the request doesn't say. Default, and -1: until the context is full.",
)
@click.option(
    "--api-key",
    metavar="KEY",
    envvar=KEY_VARIABLES,
    help="Ask for this key, or one of several with commas between them. Default: $QWENCLI_API_KEY, $LLAMA_API_KEY.",
)
@click.option("--api-key-file", metavar="FILE", help="Ask for one of the keys in this file, one a line.")
@click.option("--ssl-key-file", metavar="FILE", help="Speak HTTPS with this private key, PEM.")
@click.option("--ssl-cert-file", metavar="FILE", help="Speak HTTPS with this certificate, PEM.")
@click.option(
    "--cors-origins",
    metavar="ORIGINS",
    help="Sites whose pages may use the server, with commas between them; * means all.",
)
@click.option("-a", "--alias", metavar="NAME", help="The model's name in answers. Default: the file's.")
@click.option(
    "-to",
    "--timeout",
    type=click.FloatRange(0.1, 86400),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="How long a client may take to send a request, and to accept what it is sent.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 86400),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How long requests may go on after SIGTERM or Ctrl-C.",
)
@template_option
@click.option(
    "--think/--no-think", default=None, help="Whether the model thinks first where the request doesn't say."
)
@click.option(
    "--reasoning-budget",
    type=click.IntRange(-1, 2**31 - 1),
    metavar="N",
    help="End thinking after N tokens where the request doesn't say; -1 = never.",
)
@click.option(
    "--pooling",
    type=click.Choice(["none", "mean", "cls", "last", "rank"]),
    help="What an embedding is: the mean of all tokens' states, that of the first (cls) or the last one, or all of them (none); rank serves"
    " /rerank. Default: as the file says, else last.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="The form of the log's line for each request.",
)
@click.option("--log-prompts", is_flag=True, help="Write prompts and answers to the log.")
@click.option("--no-ui", "--no-webui", is_flag=True, help="Serve no page at /.")
@always_so("-cb", "--cont-batching")
@always_so("--jinja")
@always_so("--metrics")
@always_so("--slots")
@sampling_options
def serve(
    loader: Loader,
    host: str,
    port: int,
    n_slots: int,
    n_queue: int,
    max_tokens: int | None,
    api_key: str | None,
    api_key_file: str | None,
    ssl_key_file: str | None,
    ssl_cert_file: str | None,
    cors_origins: str | None,
    alias: str | None,
    timeout: float,
    grace: float,
    chat_template: str | None,
    think: bool | None,
    reasoning_budget: int | None,
    pooling: str | None,
    log_format: str,
    log_prompts: bool,
    no_ui: bool,
    sampling: dict[str, Any],
) -> int:
    """Answer HTTP requests, of OpenAI's API and of llama.cpp's, and show a page for chats.

    The options are llama-server's. They hold for what a request leaves open, the sampling options too.
    """
    try:
        from ..server import run
        from ..server.options import ServerOptions
        from ..server.service.service import Service
    except ModuleNotFoundError as error:
        if (error.name or "qwencli").startswith("qwencli"):
            raise
        raise QwenError(f'the server needs the package {error.name}: pip install "qwencli[server]"') from None
    keys = api_keys(api_key, api_key_file)
    tls = run.certificate(ssl_key_file, ssl_cert_file)
    sockets = run.listen(host, port)  # before loading the model, which may take a while
    template = named_template(chat_template)
    llm = loader.load(chat=template is None, generates=False)
    service = Service(llm, n_slots, n_queue, pooling)
    if not keys and not run.is_loopback(host):
        warn(f"anyone who can reach {host} can use this server: --api-key asks for a key")
    options = ServerOptions(
        name=alias or llm.file.path.name,
        sampling=llm.sampling(**sampling),
        max_tokens=None if max_tokens == -1 else max_tokens,
        template=template or llm.chat_template,
        think=think,
        reasoning_budget=None if reasoning_budget == -1 else reasoning_budget,
        api_keys=keys,
        cors_origins=tuple(origin.lower().rstrip("/") for origin in items(cors_origins or "")),
        timeout=timeout,
        hosts=(host,),
        ui=not no_ui,
        log_format="none" if loader.quiet else log_format,
        log_prompts=log_prompts,
    )

    positions = llm.fit.positions(n_slots)
    limited = positions is not None and positions < n_slots * llm.engine.n_ctx
    about = (
        f"{n_slots} at once, context {llm.engine.n_ctx}" + f", memory for {positions} tokens in all" * limited
    )

    def ready() -> None:
        if not loader.quiet:
            say(f"listening on {run.url(sockets, host, tls is not None)} ({about}); Ctrl-C ends")

    run.serve(service, options, sockets, grace, ready, tls)
    return 0


def api_keys(value: str | None, file: str | None) -> tuple[str, ...]:
    """The keys of both options. Raises InputError where an option gives no key, or one that a header cannot hold."""
    texts = {"--api-key": items(value)} if value is not None else {}
    if file is not None:
        try:
            texts[file] = Path(file).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InputError(f"{file}: not a UTF-8 text, expected one key a line") from None
    keys: list[str] = []
    for where, text in texts.items():
        found = [key.strip() for key in text if key.strip()]
        if not found or not all(key.isprintable() and key.isascii() for key in found):
            raise InputError(f"{where}: expected at least one key, of printable ASCII characters")
        keys += found
    return tuple(keys)


def items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
