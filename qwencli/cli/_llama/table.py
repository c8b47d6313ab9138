"""The table of llama-server's options: what each is called, and what becomes of it here.

The commands take their spellings and variables from it, command.py reads start lines by it, and docs/server.md shows it, written by
scripts/document_options.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from .bench import BENCH, LIKE_OTHERS
from .chat import CHAT, CHAT_IN_SERVERS
from .drafts import DRAFT_CACHES, DRAFTS
from .entries import Entry
from .logs import LOGS
from .machine import MACHINE
from .model import MODEL
from .older import OLDER
from .sampling import GRAMMARS, GRAMMARS_OF_SERVERS, SAMPLING
from .serving import CACHES, SERVING

COMMON = [*MODEL, *MACHINE, *DRAFT_CACHES, *LOGS, *SAMPLING]
"""What all of llama.cpp's programs have that read a model and LLAMA_ARG_*."""
ANSWERS = [*CHAT, *DRAFTS, *CACHES]
"""What those have that answer."""
TABLE = [*COMMON, *ANSWERS, *GRAMMARS_OF_SERVERS, *CHAT_IN_SERVERS, *SERVING]
"""All of llama-server's."""
PROGRAMS = {
    "serve": [*TABLE, *OLDER],
    "run": [*COMMON, *ANSWERS, *GRAMMARS, *OLDER],
    "chat": [*COMMON, *ANSWERS, *GRAMMARS, *OLDER],
    "perplexity": [*COMMON, *OLDER],
    "bench": BENCH,
}
"""By command, what llama.cpp's program for it has."""


def entries(program: str) -> Iterator[Entry]:
    """The options of llama.cpp's program that a command stands for."""
    yield from PROGRAMS[program]
    if program == "bench":
        yield from (entry for entry in TABLE if entry.name in LIKE_OTHERS)


def with_variables(program: str) -> list[Entry]:
    """Those whose variables the program reads; llama-bench reads none."""
    return [] if program == "bench" else [entry for entry in PROGRAMS[program] if entry.variable]


@lru_cache(None)
def spellings(program: str) -> dict[str, Entry]:
    """The same by each spelling."""
    return {name: entry for entry in entries(program) for name in (*entry.names, *entry.negations)}


def find(spelling: str) -> Entry:
    """The option of llama-server's with this spelling. Raises KeyError."""
    return spellings("serve")[spelling]
