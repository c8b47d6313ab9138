"""Answers that follow a JSON schema, a grammar or a regular expression: which tokens may come next, by llguidance."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, QwenError
from .sampling import Constraint as Constraint

if TYPE_CHECKING:
    from .llm import LLM
    from .tokenizer import Tokenizer

Start = Callable[[], Constraint]
"""What an answer has to follow, compiled: each call begins an answer."""

MAX_TEXT = 256 * 1024
"""Characters of a schema or grammar."""
LIMITS = {"max_items_in_row": 2000, "initial_lexer_fuel": 200_000, "step_lexer_fuel": 100_000, "step_max_items": 20_000,
          "max_lexer_states": 50_000, "max_grammar_size": 100_000, "verbose_errors": False}
"""What compiling and a step may cost at most (LLParserLimits). The worst that was found within them is 0.15 s a step."""
FORCED = 100
"""So many characters of a text that has to come are cut into tokens at once; a mask needs the first."""
TRIAL = 16
"""So many tokens are tried before a grammar is taken: many that cannot be followed, or cost too much, show at once."""
WHITESPACE = r"[ ]|\n{1,2}[ \t]{0,20}"
"""What may stand between the parts of JSON, as llama.cpp has it: without a limit, weak models write nothing else."""
MAX_MULTIPLE = 10_000
"""The largest `multipleOf` without its decimal point, for all of a schema together: one of a million takes five seconds to compile."""


def json_schema(llm: LLM, schema: Mapping[str, Any] | bool | str) -> Start:
    """Answers that are JSON of this schema (2020-12), its properties in the order in which they stand there.

    Raises InputError for a schema that is broken, that nothing can satisfy, or that asks for what cannot be ensured while writing.
    """
    parsed = parse_json(schema) if isinstance(schema, str) else schema
    if parsed is True:
        parsed = {}
    if not isinstance(parsed, Mapping):
        raise InputError(f"the JSON schema is {str(parsed)[:40]}, expected an object")
    try:
        check_multiples(parsed)
        text = json.dumps({**parsed, "x-guidance": {"whitespace_pattern": WHITESPACE}}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the JSON schema is no JSON: {error}") from None
    except RecursionError:
        raise InputError("the JSON schema is nested too deeply") from None
    return compiled(llm, "JSON schema", text, library().LLMatcher.grammar_from_json_schema)


def json_object(llm: LLM) -> Start:
    """Answers that are any JSON object."""
    return json_schema(llm, {"type": "object"})


def lark(llm: LLM, text: str) -> Start:
    """Answers that follow a grammar in llguidance's variant of Lark (docs/syntax.md in guidance-ai/llguidance). Raises InputError."""
    if "%json" in text and ("multipleOf" in text or "\\u" in text):
        raise InputError("the grammar has %json with multipleOf or \\u in it, which is not supported")
    return compiled(llm, "grammar", text, library().LLMatcher.grammar_from_lark)


def gbnf(llm: LLM, text: str) -> Start:
    """Answers that follow a grammar as llama.cpp writes them (grammars/README.md in ggml-org/llama.cpp). Raises InputError."""
    from llguidance.gbnf_to_lark import gbnf_to_lark
    try:
        return lark(llm, gbnf_to_lark(text))
    except Exception as error:
        raise InputError(str(error))


def regex(llm: LLM, pattern: str) -> Start:
    """Answers that match all of a regular expression, in the syntax of Rust's `regex`, without anchors. Raises InputError."""
    return compiled(llm, "regular expression", pattern, library().LLMatcher.grammar_from_regex)


def library() -> Any:
    """llguidance. Raises QwenError where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise QwenError("JSON schemas and grammars need the package llguidance: pip install 'qwencli[grammar]'") from None
    return llguidance


def parse_json(text: str) -> Any:
    """JSON's value. Raises InputError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the JSON schema is no JSON: {error}") from None


def check_multiples(schema: Any) -> None:
    """Raise InputError where numbers have to be multiples of what takes too long to compile."""
    from decimal import Decimal, InvalidOperation
    from math import lcm
    found, todo = 1, [schema]
    while todo:
        part = todo.pop()
        if isinstance(part, Mapping):
            value = part.get("multipleOf")
            if isinstance(value, (int, float)):
                try:
                    digits = int("".join(map(str, Decimal(repr(value)).normalize().as_tuple().digits)))
                except (InvalidOperation, ValueError):  # infinite, or of thousands of digits
                    digits = MAX_MULTIPLE + 1
                found = lcm(found, digits or 1) if digits <= MAX_MULTIPLE else MAX_MULTIPLE + 1
                if found > MAX_MULTIPLE:
                    raise InputError(f"the JSON schema's multipleOf is {str(value)[:40]}, expected less: up to {MAX_MULTIPLE} "
                                     "for all of them together, without decimal points")
            todo += part.values()
        elif isinstance(part, (list, tuple)):
            todo += part


def compiled(llm: LLM, what: str, text: str, convert: Callable[[str], str]) -> Start:
    """A grammar of llguidance's, tried out. Raises InputError."""
    if len(text) > MAX_TEXT:
        raise InputError(f"the {what} has {len(text)} characters, expected up to {MAX_TEXT}")
    vocabulary = llm.vocabulary
    try:
        matcher = library().LLMatcher(vocabulary.tokenizer, convert(text), log_level=0, limits=vocabulary.limits)
    except (ValueError, UnicodeError) as error:
        raise InputError(f"the {what} cannot be used: {first_line(str(error))}") from None
    if matcher.is_error():
        raise InputError(f"the {what} cannot be used: {first_line(matcher.get_error())}")
    try:
        try_out(Guided(vocabulary, matcher))
    except QwenError as error:
        raise InputError(f"the {what} cannot be used: {error}") from None
    return lambda: Guided(vocabulary, matcher)


def try_out(constraint: Constraint) -> None:
    """Begin an answer, with the token of the lowest id wherever several may come. Raises QwenError."""
    answer: list[int] = []
    while len(answer) < TRIAL and not constraint.ended(answer):
        mask = constraint.mask(answer)
        assert mask is not None
        answer.append(int(mask.argmax()))


def first_line(message: str) -> str:
    """What llguidance says is wrong, without what it was reading."""
    return next((line for line in message.splitlines() if line.strip()), "it is not supported")[:300]


class Vocabulary:
    """A model's tokens as llguidance takes them. Building it takes about 0.3 s for Qwen's."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        guidance = library()
        self.n_vocab = tokenizer.n_vocab
        self._encode = tokenizer.encode
        self._raised: BaseException | None = None
        slices = guidance.LLTokenizer.general_slices()[1:]  # strings, of some lengths; blanks are not worth their time
        ends = sorted(tokenizer.eog_ids)
        # the names that LLTokenizer looks for
        self.is_tokenizer_wrapper, self.eos_token_id, self.bos_token_id = True, ends[0] if ends else None, None
        self.tokens, self.special_token_ids = tokenizer.all_bytes(), tokenizer.control_ids
        self.tokenizer = guidance.LLTokenizer(self, eos_token=ends or None, slices=slices)
        self.tokens, self.special_token_ids = [], []
        self.limits = guidance.LLParserLimits(**LIMITS)

    def __call__(self, text: str) -> Sequence[int]:
        """The tokens of a text that has to come. Called out of a step in machine code, which no exception may cross."""
        try:
            return self._encode(text[:FORCED])
        except BaseException as error:
            self._raised = error
            return []

    def check(self) -> None:
        """Raise what a call met, such as Ctrl-C."""
        raised, self._raised = self._raised, None
        if raised:
            raise raised


class Guided:
    """An answer that follows a grammar: a Constraint. `start` stays as it is."""

    def __init__(self, vocabulary: Vocabulary, start: Any) -> None:
        self._vocabulary, self._start = vocabulary, start
        self._matcher, self._n = start.deep_copy(), 0
        """The answer's first `_n` tokens are those that the matcher has taken; -1 where it was interrupted."""
        self._bits = np.zeros((vocabulary.tokenizer.vocab_size + 31) // 32, np.uint32)

    def mask(self, answer: Sequence[int]) -> NDArray[np.bool_]:
        """See Constraint."""
        self._follow(answer)
        n, self._n = self._n, -1
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check(answer)
        self._n = n
        return np.unpackbits(self._bits.view(np.uint8), count=self._vocabulary.n_vocab, bitorder="little").view(np.bool_)

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
            why = first_line(self._matcher.get_error())
            if why == "NoExtensionBias":
                why = "no token can follow"
            raise QwenError(f"the answer cannot follow its grammar after {len(answer)} tokens: {why}")
