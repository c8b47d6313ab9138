"""Chat templates: a file's own Jinja template turns messages into the text that the model was trained on."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from ...errors import InputError, QwenError
from ..tokenizer import Tokenizer
from . import builtin
from .template_process import Ended, TemplateProcess
from .thinking import OPEN

Message = Mapping[str, Any]
"""As in OpenAI's API: `role`, `content`, and where there are any `reasoning_content`, `tool_calls`, `tool_call_id`, `name`."""

CHATML = """\
{% for message in messages %}
<|im_start|>{{ message.role }}
{% if message.content is string %}
{{ message.content -}}
{% else %}
{% for part in message.content or [] %}{{ part.text }}{% endfor %}
{% endif %}
<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
"""For files without a template: the form that all of Qwen's models know."""
BUILT_IN = {"chatml": CHATML, **builtin.TEMPLATES}
"""Templates by their names in llama.cpp."""
MARKS = "{%", "{{", "{#"
"""What every Jinja template has somewhere, and hardly any path."""
FIREFUNCTION = "functools[{"
"""What marks Firefunction's calls, in its template."""
_OF_PATHS = re.compile(r"[\\/\0]|\.\w+$")
MOST_SHOWN = 60
"""Characters of a value in a message."""

MAX_FILE = 1 << 22
"""Bytes of a template in a file of its own."""

_NONCHARACTERS = [chr(c) for c in range(0xFDD0, 0xFDF0)]  # code points that no text may hold (Unicode 23.7)


class ChatTemplate:
    """A template, run in a process of its own, which is started when it is first needed or by `start` (see template_process.py).

    What asks for that process raises ModelError if the source isn't a valid template, InputError if the template takes too much time or
    memory (then the next call starts a fresh process), and QwenError if no process can be started. Threads may share a template.
    """

    def __init__(self, source: str) -> None:
        self._source, self._lock = source, threading.Lock()
        self._child: TemplateProcess | None = None
        self._variables: frozenset[str] | None = None
        self._thinks: bool | None = None

    @property
    def source(self) -> str:
        """The template's own text."""
        return self._source

    @classmethod
    def named(cls, value: str) -> ChatTemplate:
        """A built-in template by its name, one by its text, or else the one in the file of that path. Raises InputError."""
        if value in BUILT_IN:
            return cls(BUILT_IN[value])
        if any(mark in value for mark in MARKS) or _is_prose(value):
            return cls(value)
        return cls.of_file(
            value, "expected a built-in name such as chatml, the path of a Jinja file, or its text"
        )

    @classmethod
    def of_file(cls, path: str, expected: str = "expected a Jinja file") -> ChatTemplate:
        """The template in a file. Raises InputError."""
        try:
            with open(path, "rb") as file:
                source = file.read(MAX_FILE + 1)
            if len(source) > MAX_FILE:
                raise InputError(f"the chat template {path} is larger than {MAX_FILE >> 20} MiB, {expected}")
            return cls(source.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise InputError(f"the chat template {path} isn't UTF-8 text, {expected}") from None
        except (OSError, ValueError) as error:  # ValueError: no path at all
            raise InputError(
                f"the chat template {path[:MOST_SHOWN]!r}: {getattr(error, 'strerror', None) or error}, {expected}"
            ) from None

    def start(self) -> None:
        """Start the process and compile the template, in the background. What fails then fails again when the template is used."""

        def start() -> None:
            # RuntimeError: no new thread, since Python is about to exit
            with self._lock, suppress(QwenError, Ended, RuntimeError):
                self._running()

        threading.Thread(target=start, daemon=True).start()

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None, **variables: Any
    ) -> str:
        """The text up to where the model's answer begins. `variables` reach the template (Qwen3 knows `enable_thinking`).

        All of them are values that JSON knows. Raises InputError where the template refuses the messages.
        """
        return self._ask(
            "render",
            _defaults() | {"messages": messages, "tools": tools} | self._functions(tools) | variables,
        )

    def rendered(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> Rendered:
        """The same, with a character in it that keeps what came from outside from naming control tokens.

        A user who writes `<|im_end|>` has written ten characters: before rendering, a character that no text holds is put into each control
        token's name, and the tokenizer drops it again. The template knows the texts of the file's `bos_token` and `eos_token`.
        """
        given = {"messages": messages, "tools": tools, **self._functions(tools), **variables}
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        named = {name: tokenizer.decode([token]) for name, token in ids.items() if token is not None}
        values, guard = guarded(given, tokenizer.control_texts)
        text = self._ask("render", _defaults() | named | values)
        return Rendered(text.replace(_escaped(guard), guard), guard)  # templates may write JSON in ASCII

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Token ids of the rendered conversation, in which only the template's own text can name control tokens."""
        return self.rendered(tokenizer, messages, tools, **variables).encode(tokenizer)

    def reads(self, variable: str) -> bool:
        """Whether the template looks at a variable, such as `enable_thinking`."""
        if self._variables is None:
            self._variables = frozenset(self._ask("variables").split("\n"))
        return variable in self._variables

    @property
    def knows_thinking(self) -> bool:
        """Whether its text speaks of thinking at all: a model whose template doesn't writes no more than an answer."""
        return any(word in self._source for word in (OPEN, "enable_thinking", "reasoning_content"))

    @property
    def thinks(self) -> bool:
        """Whether it has a place for thinking, in answers that are past or where one begins."""
        if self._thinks is None:
            answer = {"role": "assistant", "content": "A", "reasoning_content": "B"}
            try:
                text = self.render([{"role": "user", "content": "Q"}, answer], enable_thinking=False)
                self._thinks = OPEN in text
            except InputError:  # it may want other messages
                self._thinks = OPEN in self._source
        return self._thinks

    def _functions(self, tools: Sequence[Mapping[str, Any]] | None) -> dict[str, str]:
        """The tools as Firefunction's template wants them: as text, by another name."""
        return {"functions": _to_json(tools, 2) if tools else ""} if FIREFUNCTION in self._source else {}

    def _ask(self, verb: str, argument: Any = None) -> str:
        request = _to_json([verb, argument])
        with self._lock:
            try:
                return self._running().ask(request)
            except Ended as error:
                raise InputError(f"the model's chat template {error}") from None

    def _running(self) -> TemplateProcess:
        if self._child is None or not self._child.is_alive():
            child = TemplateProcess()
            child.ask(_to_json(["compile", self._source]))
            self._child = child
        return self._child


def _defaults() -> dict[str, Any]:
    """What templates know unless they are told otherwise. The dates are llama.cpp's: Llama's write the first into a prompt."""
    dates = {"date_string": time.strftime("%d %b %Y"), "datetime": time.strftime("%b %d %Y")}
    return {"tools": None, "documents": None, "add_generation_prompt": True, **dates}


def _is_prose(value: str) -> bool:
    """Whether a value is words, which are a template that always says the same, as in llama.cpp, and no path that was mistyped."""
    return len(value.split()) > 1 and not os.path.exists(value) and not _OF_PATHS.search(value)


class Rendered(NamedTuple):
    """The text of a conversation, and the character in it that keeps what stands around it from being read as a control token."""

    text: str
    guard: str

    def followed_by(self, text: str, control_texts: Sequence[str]) -> Rendered:
        """The same with a text after it that came from outside, too. Raises InputError where that holds the guard."""
        if self.guard in text:
            raise InputError(f"a message holds the noncharacter U+{ord(self.guard):04X}, expected text")
        return self._replace(text=self.text + _Guard(self.guard, control_texts).put_into(text))

    def encode(self, tokenizer: Tokenizer, start: int = 0) -> list[int]:
        """Token ids of `text[start:]`, at the very start with the BOS and at the end with the EOS token that the file asks for.

        A BOS token that both the template and the file ask for comes once, as in llama.cpp.
        """
        if start:
            return tokenizer.encode(self.text[start:], parse_special=True, guard=self.guard)
        text = self.text
        if tokenizer.add_bos and tokenizer.bos_id is not None:
            text = text.removeprefix(tokenizer.decode([tokenizer.bos_id]))
        return tokenizer.encode(text, add_special=True, parse_special=True, guard=self.guard)


def guarded(given: Mapping[str, Any], control_texts: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The same values with a character in their texts that keeps them from naming control tokens, and that character.

    Raises InputError for values that JSON doesn't know.
    """
    text = _to_json(given)
    guard = next((c for c in _NONCHARACTERS if c not in text and _escaped(c) not in text), None)
    if guard is None:
        raise InputError("the messages hold all 32 Unicode noncharacters, expected text")
    try:
        values: dict[str, Any] = _Guard(guard, control_texts).put_into(given)
    except RecursionError:
        raise InputError("the conversation holds values that are nested too deeply") from None
    return values, guard


class _Guard:
    """Puts a character into what could be read as a control token, or could become one where a template joins texts."""

    def __init__(self, character: str, control_texts: Sequence[str]) -> None:
        self._character, self._controls = character, tuple(control_texts)

    def put_into(self, value: Any) -> Any:
        """The same value, of whatever JSON knows, with its strings guarded; keys too, for tools bring their own."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {self.put_into(key): self.put_into(item) for key, item in value.items()}
        return [self.put_into(item) for item in value] if isinstance(value, (list, tuple)) else value

    def _text(self, text: str) -> str:
        for control in self._controls:
            if control in text:
                text = text.replace(control, control[0] + self._character + control[1:])
        body = text.strip()
        if not body or body.isidentifier():  # templates compare roles and the names of fields
            return text
        begins, ends, longest = _parts(self._controls)
        lengths = range(1, min(len(body) + 1, longest))
        within = len(body) < longest and any(body in control for control in self._controls)
        before = self._character if within or any(body[:n] in ends for n in lengths) else ""
        after = self._character if any(body[-n:] in begins for n in lengths) else ""
        return text.replace(body, before + body + after) if before or after else text


@lru_cache(maxsize=8)
def _parts(control_texts: tuple[str, ...]) -> tuple[set[str], set[str], int]:
    """With what control tokens begin, with what they end, and how long they are at most."""
    cuts = [(text[:i], text[i:]) for text in control_texts for i in range(1, len(text))]
    return {begin for begin, _ in cuts}, {end for _, end in cuts}, max(map(len, control_texts), default=0)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


def _to_json(value: Any, indent: int | None = None) -> str:
    def as_dict(value: Any) -> dict[Any, Any]:
        if isinstance(value, Mapping):
            return dict(value)
        raise TypeError(f"a value of type {type(value).__name__} is not known to JSON")

    try:
        return json.dumps(value, ensure_ascii=False, default=as_dict, indent=indent)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the conversation cannot be given to its template: {error}") from None
