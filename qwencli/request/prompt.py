"""From messages to a prompt: what the template writes, how the answer's thinking begins, and whether there is room for an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ContextFull
from ..text.chat.beginnings import Beginning
from ..text.chat.messages import for_template
from ..text.chat.template import ChatTemplate, Message, Rendered
from ..text.chat.thinking import closing, ends_inside
from ..text.tokenizer import Tokenizer
from .request import Thinking

SWITCH = "enable_thinking"
"""The variable by which a template is told whether the model may think."""


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation up to where its answer begins, or goes on from its `beginning`.

    `inside`: it ends within a block of thinking, which goes on in the answer.
    """

    rendered: Rendered
    template: ChatTemplate
    thinks: bool
    inside: bool
    beginning: Beginning | None = None

    def thinking(self, limit: int | None, has_grammar: bool, message: str = "") -> Thinking:
        """What the answer may think: at most `limit` tokens, after which `message` follows, None for any number; none where it may
        not think at all.

        The last holds for templates that know no switch, too: thinking that the model begins all the same is closed at once. May ask the
        template's process; raises what `ChatTemplate.reads` does.
        """
        if self.beginning and not self.inside:
            return Thinking()  # that is over
        first = self.inside or (has_grammar and self.thinks and self.template.reads(SWITCH))
        return Thinking(first, self.inside, *((limit, message) if self.thinks else (0, "")))


def chat_prompt(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    thinks: bool,
    variables: Mapping[str, Any] | None = None,
    beginning: Beginning | None = None,
) -> ChatPrompt:
    """The conversation as the template writes it. `thinks`: the answer may think; a block that the template opens all the same is closed.

    With a `beginning` the answer goes on from there; it isn't among the messages.

    Raises InputError where the template refuses the messages, and what else `ChatTemplate.rendered` does.
    """
    given = {**(variables or {}), SWITCH: thinks}
    rendered = template.rendered(tokenizer, list(map(for_template, messages)), tools, **given)
    if beginning:
        beginning = beginning if thinks else beginning.closed()
        rendered = beginning.put_after(rendered, template, tokenizer.control_texts)
        inside = beginning.said is None and template.thinks
        return ChatPrompt(rendered, template, thinks, inside, beginning)
    inside = ends_inside(rendered.text)
    if inside and not thinks:
        rendered = rendered._replace(text=rendered.text + closing(rendered.text))
        inside = False
    return ChatPrompt(rendered, template, thinks, inside)


def check_room(
    n_prompt: int, n_ctx: int, n_answer: int = 1, what: str = "the prompt", advice: str = ""
) -> None:
    """Raise ContextFull for a prompt that leaves no room for `n_answer` tokens of an answer."""
    if n_prompt + n_answer > n_ctx:
        raise _no_room(f"{what} has {n_prompt} tokens", n_prompt, n_ctx, advice)


def check_length(texts: Sequence[str], tokenizer: Tokenizer, n_ctx: int) -> None:
    """Raise ContextFull for texts that are too long whatever their tokens are. Cutting them would take a second a megabyte."""
    if (fewest := sum(map(tokenizer.fewest, texts))) > n_ctx:
        raise _no_room(f"the prompt has {fewest} tokens or more", fewest, n_ctx)


def _no_room(fact: str, n_prompt: int, n_ctx: int, advice: str = "") -> ContextFull:
    message = f"{fact}, which leaves no room for an answer in the context of {n_ctx}{advice}"
    return ContextFull(message, n_prompt, n_ctx)
