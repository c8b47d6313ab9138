"""Which server an address means, and which protocol it speaks there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from ...errors import InputError
from . import anthropic, ollama, openai, responses
from .protocol import Protocol

IN_PATHS = "/%:@!$&'()*+,;=?"
PROTOCOLS = {p.chats: p for p in (openai.PROTOCOL, responses.PROTOCOL, anthropic.PROTOCOL, ollama.PROTOCOL)}
"""By the path that ends an address of theirs."""


@dataclass(frozen=True)
class Address:
    """A server's API. `origin` is scheme, host and port as in the address; `base` is the path before those of the protocol."""

    origin: str
    host: str
    port: int
    base: str
    protocol: Protocol


def parse_address(url: str) -> Address:
    """The API at an address: the one whose path ends it, else OpenAI's chat completions. Raises InputError."""
    try:
        parts = urlsplit(url.strip())
        default = {"http": 80, "https": 443}[parts.scheme]
        host, port = parts.hostname or "", parts.port or default
    except (ValueError, KeyError):
        host = ""
    if (
        not re.fullmatch(r"[^\s\x00-\x1f\x7f]+", host)
        or parts.username is not None
        or parts.query
        or parts.fragment
    ):
        shown = url.rpartition("@")[2][:100]  # before it there may be a password
        raise InputError(f"{shown} isn't the address of a server, expected http://host:port or https://host")
    path = quote(parts.path.rstrip("/"), safe=IN_PATHS)
    ending = next((ending for ending in PROTOCOLS if path.endswith(ending)), None)
    base = path.removesuffix(ending or "")
    if ending is None and not re.search(r"/v\d\w*$", path):
        base += "/v1"
    protocol = PROTOCOLS[ending] if ending else openai.PROTOCOL
    return Address(f"{parts.scheme}://{parts.netloc}", host, port, base, protocol)
