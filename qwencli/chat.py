"""Chat templates: a file's own Jinja template turns messages into the text that the model was trained on."""
from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import InputError, ModelError
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from jinja2.ext import Extension
    from jinja2.nodes import Node
    from jinja2.parser import Parser

Message = Mapping[str, str]
"""`role` and `content`, as in OpenAI's API."""

_NONCHARACTERS = [chr(c) for c in range(0xFDD0, 0xFDF0)]  # code points that no text may hold (Unicode 23.7)


class ChatTemplate:
    """A template, run in Jinja's sandbox. Raises ModelError if it is no valid template."""

    def __init__(self, source: str) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag()])
        env.filters["tojson"] = _to_json
        env.globals["raise_exception"] = _raise_exception
        env.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
        try:
            self._template = env.from_string(source)
        except Exception as error:  # beside TemplateError what Python's compiler raises: RecursionError, SyntaxError, ValueError
            raise ModelError(f"the model's chat template is no valid Jinja: {error}") from None

    def render(self, messages: Sequence[Message], **variables: Any) -> str:
        """The text up to where the model's answer begins. `variables` reach the template (Qwen3 knows `enable_thinking`).

        Raises InputError where the template refuses the messages.
        """
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **variables)
        except InputError:
            raise
        except Exception as error:  # a template can raise whatever Python's operators and methods raise
            raise InputError(f"the model's chat template fails on this conversation: {type(error).__name__}: {error}") from None

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Message], **variables: Any) -> list[int]:
        """Token ids of the rendered conversation, in which only the template's own text can name control tokens.

        A user who writes `<|im_end|>` has written ten characters: before rendering, a character that no text holds is put into each control
        token's name, and the tokenizer drops it again. The template knows the texts of the file's `bos_token` and `eos_token`; a BOS token
        that both it and the file ask for comes once, as in llama.cpp.
        """
        guard = next((c for c in _NONCHARACTERS if not any(c in text for m in messages for text in m.values())), None)
        if guard is None:
            raise InputError("the messages hold all 32 Unicode noncharacters, expected text")
        guarded = [{key: _guarded(text, tokenizer.control_texts, guard) for key, text in m.items()} for m in messages]
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        named = {name: tokenizer.decode([token]) for name, token in ids.items() if token is not None}
        text = self.render(guarded, **(named | variables))
        if tokenizer.add_bos:
            text = text.removeprefix(named["bos_token"])
        return tokenizer.encode(text, add_special=True, parse_special=True, guard=guard)


def _guarded(text: str, control_texts: Sequence[str], guard: str) -> str:
    for control in control_texts:
        if control in text:
            text = text.replace(control, control[0] + guard + control[1:])
    return text


def _generation_tag() -> type[Extension]:
    """Lets templates mark answers for training, by `{% generation %}` ... `{% endgeneration %}`; what is between them is rendered."""
    from jinja2.ext import Extension

    class GenerationTag(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return GenerationTag


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
             sort_keys: bool = False) -> str:
    """JSON as transformers' templates get it, with its parameters in its order: jinja's own filter would escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise InputError(f"the model's chat template refuses this conversation: {message}")
