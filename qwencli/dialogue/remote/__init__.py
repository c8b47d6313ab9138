"""A chat with a server over HTTP, in one of several protocols."""

from .address import parse_address
from .chat import RemoteChat

__all__ = ["RemoteChat", "parse_address"]
