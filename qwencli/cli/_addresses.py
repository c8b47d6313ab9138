"""Options that say where a server listens and who may use it, gathered in one object."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from ._llama.command import llama_option
from ._options import Gathered, gathered

KEY_VARIABLES = ["QWENCLI_API_KEY", "LLAMA_API_KEY"]


class AddressOptions(Gathered):
    """What was asked for; None where it wasn't."""

    host: tuple[str, ...]
    port: int
    reuse_port: bool
    api_prefix: str
    api_key: str | None
    api_key_file: str | None
    ssl_key_file: str | None
    ssl_cert_file: str | None
    cors_origins: str | None
    timeout: float
    grace: float
    sse_ping_interval: int

    def keys(self) -> tuple[str, ...]:
        """The keys of both options. Raises InputError where an option gives no key, or one that a header cannot hold."""
        texts = {"--api-key": items(self.api_key)} if self.api_key is not None else {}
        if (file := self.api_key_file) is not None:
            try:
                texts[file] = Path(file).read_text(encoding="utf-8").splitlines()
            except OSError as error:
                raise InputError(f"{file}: cannot be read: {error.strerror}") from None
            except UnicodeDecodeError:
                raise InputError(f"{file}: not a UTF-8 text, expected one key a line") from None
        keys: list[str] = []
        for where, text in texts.items():
            found = [key.strip() for key in text if key.strip() and not key.startswith("#")]
            if not found or not all(key.isprintable() and key.isascii() for key in found):
                raise InputError(f"{where}: expected at least one key, of printable ASCII characters")
            keys += found
        return tuple(keys)

    def origins(self) -> tuple[str, ...]:
        return tuple(origin.lower().rstrip("/") for origin in items(self.cors_origins or ""))


def items(text: str) -> list[str]:
    """The items of a list with commas."""
    return [item.strip() for item in text.split(",") if item.strip()]


def read_hosts(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    if not (hosts := tuple(items(value))):
        raise click.BadParameter("it names no address.", ctx, param)
    return hosts


def read_prefix(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A path without its last slash; "" for none."""
    prefix = value.rstrip("/")
    if prefix and (
        not prefix.startswith("/") or "//" in prefix or not prefix.isprintable() or set("?#{} ") & set(prefix)
    ):
        raise click.BadParameter(f"{value[:60]!r} is no path such as /models/qwen.", ctx, param)
    return prefix


address_options = gathered(
    AddressOptions,
    "addresses",
    llama_option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        metavar="ADDRESS,...",
        callback=read_hosts,
        help="Where to listen: addresses, or paths of unix sockets, which end in .sock; 0.0.0.0 is every network.",
    ),
    llama_option(
        "--port",
        type=click.IntRange(0, 65535),
        default=8080,
        show_default=True,
        help="0 takes any that is free.",
    ),
    llama_option("--reuse-port", is_flag=True, help="Let several servers share the port."),
    llama_option(
        "--api-prefix",
        metavar="PATH",
        default="",
        callback=read_prefix,
        help="A path that stands before those of all endpoints, such as /models/qwen.",
    ),
    llama_option(
        "--api-key",
        metavar="KEY",
        envvar=KEY_VARIABLES,
        help="Ask for this key, or one of several with commas between them. Default: $QWENCLI_API_KEY, $LLAMA_API_KEY.",
    ),
    llama_option(
        "--api-key-file",
        metavar="FILE",
        help="Ask for one of the keys in this file, one a line; # begins a comment.",
    ),
    llama_option("--ssl-key-file", metavar="FILE", help="Speak HTTPS with this private key, PEM."),
    llama_option("--ssl-cert-file", metavar="FILE", help="Speak HTTPS with this certificate, PEM."),
    llama_option(
        "--cors-origins",
        metavar="ORIGINS",
        help="Sites whose pages may use the server, with commas between them; * means all, localhost those of this machine.",
    ),
    llama_option(
        "--timeout",
        type=click.FloatRange(0.1, 86400),
        default=60,
        show_default=True,
        metavar="SECONDS",
        help="How long a client may take to send a request, and to accept what it is sent.",
    ),
    click.option(
        "--grace",
        type=click.FloatRange(0, 86400),
        default=30,
        show_default=True,
        metavar="SECONDS",
        help="How long requests may go on after SIGTERM or Ctrl-C.",
    ),
    llama_option(
        "--sse-ping-interval",
        type=click.IntRange(-1, 86400),
        default=30,
        show_default=True,
        metavar="SECONDS",
        help="Send a comment in a stream that has been silent for so long; -1 = never.",
    ),
)
