"""Answers that follow a JSON schema, a grammar or a regular expression: which tokens may come next, by llguidance."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, QwenError
from ...sampling import Constraint as Constraint
from ...system import confined
from ..chat import after_thinking
from . import child as grammar_child
from .gbnf import gbnf_to_lark
from .schemas import meaningful

if TYPE_CHECKING:
    from subprocess import Popen

    from ..tokenizer import Tokenizer

Start = Callable[[], Constraint]
"""What an answer has to follow, compiled. Each call gives the Constraint of a new answer.

Answers from one Start share what the matchers find out about the grammar, which has a limit: each request compiles its own.
"""

MAX_TEXT = {
    "JSON schema": 256 * 1024,
    "JSON schemas": 256 * 1024,
    "grammar": 128 * 1024,
    "regular expression": 16 * 1024,
}
"""Characters."""
REMEMBERED = 16
"""Grammars that are remembered as harmless, or as refused."""
CPU_SECONDS = 1.0
"""Processor time for trying a grammar, including the start of the process. Usual ones need milliseconds."""
CLOCK_SECONDS = 10
"""Wall-clock time for trying one, for systems without limits on processor time and for busy machines."""
WHITESPACE = r"[ ]|\n{1,2}[ \t]{0,20}"
"""What may come between the parts of JSON, as in llama.cpp: without a limit, weak models write nothing else."""


def json_schema(vocabulary: Vocabulary, schema: Mapping[str, Any] | bool | str) -> Start:
    """Answers that are JSON of this schema (2020-12), with the properties in the schema's order.

    Raises InputError for a schema that is broken, that nothing can satisfy, or that asks for something that cannot be ensured while
    writing. Raises QwenError where the trial cannot be started; so do the other functions here.
    """
    return compiled(vocabulary, "JSON schema", schema_text(schema))


def call_or_json(
    vocabulary: Vocabulary, call: Mapping[str, Any], schema: Mapping[str, Any] | bool | str, several: bool
) -> Start:
    """Answers that are JSON of `schema`, or a call of a function, JSON of the schema `call` in Qwen's tags; `several`: or more than one.

    Raises InputError as `json_schema`.
    """
    rules = (
        "start: answer | calls",
        r'calls: call ("\n" call)*' if several else "calls: call",
        r'call: "<tool_call>\n" function "\n</tool_call>"',
        f"function: %json {schema_text(call)}",
        f"answer: %json {schema_text(schema)}",
    )
    return compiled(vocabulary, "JSON schemas", "\n".join(rules))


def schema_text(schema: Mapping[str, Any] | bool | str) -> str:
    """A schema as llguidance takes it. Raises InputError for what isn't JSON."""
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        if parsed is True:
            parsed = {}
        if not isinstance(parsed, Mapping):
            raise InputError(f"the JSON schema is {json.dumps(parsed)[:40]}, expected an object")
        asked = {**meaningful(parsed), "x-guidance": {"whitespace_pattern": WHITESPACE}}
        return json.dumps(asked, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the JSON schema isn't JSON: {error}") from None
    except RecursionError:
        raise InputError("the JSON schema is nested too deeply") from None


def json_object(vocabulary: Vocabulary) -> Start:
    """Answers that are any JSON object. Raises QwenError."""
    return json_schema(vocabulary, {"type": "object"})


def lark(vocabulary: Vocabulary, text: str) -> Start:
    """Answers that follow a grammar in llguidance's variant of Lark (docs/syntax.md in guidance-ai/llguidance). Raises InputError."""
    return compiled(vocabulary, "grammar", text)


def gbnf(vocabulary: Vocabulary, text: str) -> Start:
    """Answers that follow a grammar of llama.cpp's (grammars/README.md in ggml-org/llama.cpp). Raises InputError."""
    return compiled(vocabulary, "grammar", gbnf_to_lark(text))


def grammar(vocabulary: Vocabulary, text: str) -> Start:
    """Answers that follow a grammar in Lark, which has a rule `start`, or else in GBNF. Raises InputError."""
    return (lark if re.search(r"^\s*start\s*(\[[^\]]*\]\s*)?:(?!:)", text, re.M) else gbnf)(vocabulary, text)


def regex(vocabulary: Vocabulary, pattern: str) -> Start:
    """Answers that match a regular expression as a whole, in the syntax of Rust's `regex`. Raises InputError."""
    return compiled(vocabulary, "regular expression", pattern)


def compiled(vocabulary: Vocabulary, kind: str, text: str) -> Start:
    """Answers that follow a text of some `kind`, one of child.KINDS. Raises InputError."""
    if len(text) > MAX_TEXT[kind]:
        raise InputError(f"the {kind} has {len(text)} characters, expected {MAX_TEXT[kind]} at most")
    matcher = vocabulary.compiled(kind, text)
    return lambda: Guided(vocabulary, matcher)


class Vocabulary:
    """A model's tokens as llguidance takes them. Raises QwenError where that is not installed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        try:
            import llguidance
        except ImportError:
            raise QwenError(
                "JSON schemas and grammars need the package llguidance: pip install 'qwencli[grammar]'"
            ) from None
        self._llguidance, self._tokenizer = llguidance, tokenizer
        self.n_vocab = tokenizer.n_vocab
        self.ends = sorted(tokenizer.eog_ids)
        self._met = threading.local()
        self._tried = lru_cache(REMEMBERED)(self._try)

    def compiled(self, kind: str, text: str) -> Any:
        """A new LLMatcher. Raises InputError, QwenError."""
        error = self._tried(kind, text)
        if not error:
            matcher, error = grammar_child.compiled(self.tokenizer, kind, text)
            self.check()
        if error:
            raise InputError(f"the {kind} cannot be used: {error}")
        return matcher

    def _try(self, kind: str, text: str) -> str:
        """What is wrong with a text, "" for nothing: found out by child.py in a process of its own."""
        process = confined.start(grammar_child.__name__, CPU_SECONDS, "to try a grammar")
        try:
            _ = self.tokenizer  # built meanwhile
            control = {
                token: self._tokenizer.token_bytes(token).decode() for token in self._tokenizer.control_ids
            }
            request = {
                "kind": kind,
                "text": text,
                "n_vocab": self.n_vocab,
                "control": control,
                "ends": self.ends,
            }
            return asked(process, json.dumps(request).encode())
        finally:
            process.kill()
            process.communicate()

    @cached_property
    def tokenizer(self) -> Any:
        """An LLTokenizer. Building it takes about 0.3 s for Qwen's vocabulary."""
        # LLTokenizer looks for these names
        self.is_tokenizer_wrapper = True
        self.eos_token_id = self.bos_token_id = None
        self.tokens = self._tokenizer.all_bytes()
        self.special_token_ids = self._tokenizer.control_ids
        # the slices of strings; that of blanks isn't worth its time
        slices = self._llguidance.LLTokenizer.general_slices()[1:]
        found = self._llguidance.LLTokenizer(cast(Any, self), eos_token=self.ends or None, slices=slices)
        self.tokens = []
        after_thinking.masks(self._tokenizer)  # looked up here, not in a step, where everybody waits
        return found

    def __call__(self, text: str) -> Sequence[int]:
        """The tokens of a text that has to come. Called from machine code in a step, which no exception may cross."""
        try:
            return self._tokenizer.encode(text[: grammar_child.FORCED])
        except BaseException as error:
            self._met.error = error
            return []

    def check(self) -> None:
        """Raise the exception that a call in this thread met, such as Ctrl-C."""
        error, self._met.error = getattr(self._met, "error", None), None
        if error:
            raise error


def asked(process: Popen[bytes], request: bytes) -> str:
    """What is wrong with a grammar, "" for nothing."""
    import subprocess

    try:
        answer = process.communicate(request, CLOCK_SECONDS)[0]
    except subprocess.TimeoutExpired:
        return "it takes too long to compile"
    return (
        answer.decode() if process.returncode == 0 else "it takes too much time, memory or stack to compile"
    )


class Guided:
    """An answer that follows a grammar: a Constraint. `start` is an LLMatcher, which is copied."""

    def __init__(self, vocabulary: Vocabulary, start: Any) -> None:
        self._vocabulary, self._start = vocabulary, start
        self._matcher = start.deep_copy()
        self._n = 0
        """The matcher has taken the answer's first `_n` tokens; -1 where it was interrupted."""
        self._bits = np.zeros((vocabulary.tokenizer.vocab_size + 31) // 32, np.uint32)

    def mask(self, answer: Sequence[int]) -> NDArray[np.bool_]:
        """See Constraint."""
        self._follow(answer)
        n, self._n = self._n, -1
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check(answer)
        self._n = n
        return np.unpackbits(
            self._bits.view(np.uint8), count=self._vocabulary.n_vocab, bitorder="little"
        ).view(np.bool_)

    def ended(self, answer: Sequence[int]) -> bool:
        """See Constraint."""
        self._follow(answer)
        return bool(self._matcher.is_stopped())

    def _follow(self, answer: Sequence[int]) -> None:
        """Bring the matcher to where the answer is."""
        n, self._n = self._n, -1
        if not 0 <= n <= len(answer):
            self._matcher, n = self._start.deep_copy(), 0
        if n < len(answer):
            self._matcher.consume_tokens(list(answer[n:]))
            self._check(answer)
        self._n = len(answer)

    def _check(self, answer: Sequence[int]) -> None:
        self._vocabulary.check()
        if self._matcher.is_error():
            why = grammar_child.message(self._matcher.get_error())
            raise QwenError(f"the answer cannot follow its grammar after {len(answer)} tokens: {why}")
