"""What Vertex AI tells a container by variables of its environment, as llama-server reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ...errors import InputError

DEFAULT_PORT = "8080"
MAX_SHOWN = 60
"""Characters of a value in a message."""


class Variables(NamedTuple):
    """Where predictions are asked for."""

    port: int
    predict_path: str
    health_path: str | None
    """Another path of /health."""


def read(environment: Mapping[str, str]) -> Variables | None:
    """The variables, None where AIP_MODE doesn't say PREDICTION. Raises InputError."""
    if environment.get("AIP_MODE") != "PREDICTION":
        return None
    port = environment.get("AIP_HTTP_PORT") or DEFAULT_PORT
    if not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 1 << 16):
        raise InputError(f"AIP_HTTP_PORT is {port[:MAX_SHOWN]!r}, expected a port of 0 to 65535")
    return Variables(
        int(port),
        _path(environment, "AIP_PREDICT_ROUTE") or "/predict",
        _path(environment, "AIP_HEALTH_ROUTE"),
    )


def _path(environment: Mapping[str, str], name: str) -> str | None:
    """A path, with the slash before it that may be left out. Raises InputError."""
    path = environment.get(name)
    if not path:
        return None
    if not path.isprintable() or any(character in path for character in " ?#{}"):
        raise InputError(f"{name} is {path[:MAX_SHOWN]!r}, expected a path such as /predict")
    return "/" + path.removeprefix("/")
