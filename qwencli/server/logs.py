"""One line in the log for each request."""
from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, cast

from .service import Generation

KEY = "qwencli.record"


@dataclass
class Record:
    """A request, from its first byte to its last."""
    id: str
    method: str
    path: str
    created: float = field(default_factory=time.monotonic)
    status: int = 0
    """0 where the client left before an answer."""
    generations: list[Generation] = field(default_factory=list)


def record_of(scope: Mapping[str, Any] | MutableMapping[str, Any]) -> Record:
    return cast(Record, scope[KEY])
