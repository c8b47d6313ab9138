"""Conversations that end with the beginning of an answer, which is continued and not closed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import InputError
from .template import ChatTemplate, Message, Rendered
from .thinking import CLOSE, OPEN, last_block
from .tool_calls import mapping

AUTO, CONTENT, REASONING = "auto", "content", "reasoning_content"
"""Which part of a message is continued."""


@dataclass(frozen=True)
class Beginning:
    """What was thought and said of an answer so far. `said` None: it is thinking still."""

    thought: str = ""
    said: str | None = ""

    def closed(self) -> Beginning:
        """The same with its thinking ended."""
        return replace(self, said=self.said or "")

    def written(self, template: ChatTemplate) -> tuple[str, str, str, str]:
        """As Qwen's templates write it, in turn the template's own text and what came from outside.

        An answer that has not thought has an empty block of thinking, where the template has a place for it, as in llama.cpp.
        """
        if not template.thinks:
            return "", self.said or "", "", ""
        if self.said is None:
            return f"{OPEN}\n", self.thought, "", ""
        return f"{OPEN}\n", self.thought.strip("\n"), f"\n{CLOSE}\n\n", self.said

    def put_after(self, prompt: Rendered, template: ChatTemplate, control_texts: Sequence[str]) -> Rendered:
        """A prompt that ends where answers begin, and this beginning of one. Raises InputError."""
        opening, thought, closing, said = self.written(template)
        prompt = prompt._replace(text=prompt.text.removesuffix(last_block(prompt.text)) + opening)
        prompt = prompt.followed_by(thought, control_texts)
        return prompt._replace(text=prompt.text + closing).followed_by(said, control_texts)


def ends_with_answer(messages: Sequence[Message]) -> bool:
    return bool(messages) and messages[-1].get("role") == "assistant"


def beginning_of(messages: Sequence[Message], part: str = AUTO) -> Beginning | None:
    """What the last message has of an answer, None for nothing. `part`: AUTO goes on with the thinking if nothing has been said.

    Thinking may stand in the content too, in its tags. Raises InputError for messages that no answer goes on from.
    """
    roles = [message.get("role") for message in messages[-2:]]
    if roles[-1] != "assistant":
        raise InputError(
            f"the last message is of role {str(roles[-1])[:20]}: only an answer can be continued"
        )
    if roles[:-1] == ["assistant"]:
        raise InputError(
            "there are two messages of the assistant's at the end, of which only one can be continued"
        )
    message = messages[-1]
    if message.get("tool_calls"):
        raise InputError("a message with tool calls cannot be continued")
    thought, said = text_of(message.get("reasoning_content")), text_of(message.get("content"))
    inside = False
    if not thought and said.lstrip().startswith(OPEN):
        thought, closing, said = said.lstrip().removeprefix(OPEN).removeprefix("\n").partition(CLOSE)
        inside, said = not closing, said.lstrip("\n")
    if part == REASONING or (part == AUTO and (inside or (thought and not said))):
        return Beginning(thought, None)
    return Beginning(thought, said) if thought or said or part == CONTENT else None


def text_of(content: Any) -> str:
    """A message's content, which may come in parts."""
    if isinstance(content, str):
        return content
    return "\n".join(str(mapping(part).get("text", "")) for part in content or ())
