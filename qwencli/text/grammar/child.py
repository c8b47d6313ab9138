"""The process in which a grammar is tried: compiling it may take forever, fill the memory or overflow the stack, none of which llguidance
keeps in bounds. What passes here, on a small part of what the asking process has, does no harm there.

A request comes on stdin as JSON. The answer goes to stdout: what is wrong with the grammar, nothing if it can be used.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from ...system import confined

STACK = 512 * 1024
"""Bytes. The asking process's threads have at least twice as many, on Linux 16 times."""
EXTRA_MEMORY = 1 << 28
"""Bytes of address space for compiling."""
TRIAL = 16
"""Tokens that are tried: grammars that cannot be followed, or cost too much, mostly show it at once."""
FORCED = 100
"""Characters of a text that has to come which are cut into tokens at once; a mask needs only the first."""
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
"""What compiling and a step may cost at most (LLParserLimits)."""
MAX_ITEMS = {"JSON schema": 2000, "JSON schemas": 2000, "grammar": 500, "regular expression": 500}
"""`max_items_in_row`: a schema has four for each optional property. The time of a byte grows with the square where a grammar is
ambiguous, to 0.1 s with 500."""
CONVERTERS = {
    "JSON schema": "grammar_from_json_schema",
    "JSON schemas": "grammar_from_lark",
    "grammar": "grammar_from_lark",
    "regular expression": "grammar_from_regex",
}
"""What a text may be, and what LLMatcher has for it."""


def serve(cpu_seconds: float) -> None:
    """Answer the request on stdin."""
    confined.reset_signals()
    if sys.platform != "win32":
        os.nice(10)
    confined.limit_time(cpu_seconds)
    confined.limit_resources(EXTRA_MEMORY)
    request = json.loads(sys.stdin.buffer.read())
    answers: list[str] = []
    threading.stack_size(STACK)
    thread = threading.Thread(target=lambda: answers.append(trial(request)))
    thread.start()
    thread.join()
    sys.stdout.buffer.write(answers[0].encode("utf-8", "replace"))


def trial(request: dict[str, Any]) -> str:
    """What is wrong with a grammar."""
    import llguidance

    vocabulary: Any = Bytes(
        request["n_vocab"], {int(token): text for token, text in request["control"].items()}
    )
    tokenizer = llguidance.LLTokenizer(vocabulary, eos_token=request["ends"] or None, slices=[])
    return compiled(tokenizer, request["kind"], request["text"])[1]


def compiled(tokenizer: Any, kind: str, text: str) -> tuple[Any, str]:
    """An LLMatcher for the text, and what is wrong with it, "" for nothing."""
    import llguidance

    try:
        grammar = getattr(llguidance.LLMatcher, CONVERTERS[kind])(text)
        limits = llguidance.LLParserLimits(max_items_in_row=MAX_ITEMS[kind], **LIMITS)
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        walk = matcher.deep_copy()
        for _ in range(TRIAL):
            if walk.is_stopped():
                break
            allowed = int.from_bytes(walk.compute_bitmask(), "little")
            if walk.is_error():
                break
            walk.consume_token((allowed & -allowed).bit_length() - 1)  # the lowest that is allowed
    except (ValueError, UnicodeError) as error:
        return None, message(str(error))
    return matcher, message(walk.get_error()) if walk.is_error() else ""


def message(error: str) -> str:
    """An error of llguidance's in a line, without what it was reading."""
    line = next((line.strip() for line in error.splitlines() if line.strip()), "it cannot be used")[:300]
    return "no token can follow" if line.startswith("NoExtension") else line


class Bytes:
    """A vocabulary of single bytes, and control tokens with their true ids; all other tokens have no text."""

    def __init__(self, n_vocab: int, control: dict[int, str]) -> None:
        self.is_tokenizer_wrapper = True
        self.eos_token_id = self.bos_token_id = None
        self.tokens = [control.get(token, "").encode() for token in range(n_vocab)]
        self.special_token_ids = list(control)
        places = (token for token in range(n_vocab) if token not in control)
        # blanks last: a trial would write nothing else
        self._places = dict(zip([*range(33, 256), *range(33)], places))
        for byte, place in self._places.items():
            self.tokens[place] = bytes((byte,))

    def __call__(self, text: str) -> list[int]:
        return [self._places[byte] for byte in text[:FORCED].encode()]
