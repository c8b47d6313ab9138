"""What messages of Anthropic's API hold: blocks of content, and what they become in a conversation as all APIs have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from ..shared.fields import Fields

Object = dict[str, Any]
MAX_NAME = 256
"""Characters of a tool's name or of a call's id."""
IMAGE = "image input is not supported: this model reads text alone"
REFUSED = {
    "image": IMAGE,
    "document": "documents are not supported: this model reads text alone",
    "container_upload": "files are not supported: this model reads text alone",
}
"""What is said of blocks that cannot be read; of all others, that they are unknown."""
Name = Annotated[str, Field(max_length=MAX_NAME)]


class TextBlock(Fields):
    type: Literal["text"]
    text: str


class ThinkingBlock(Fields):
    """The signature isn't looked at."""

    type: Literal["thinking"]
    thinking: str


class HiddenThinkingBlock(Fields):
    """Thinking that only who wrote it can read."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(Fields):
    type: Literal["tool_use"]
    id: Name
    name: Name
    input: Object


class OtherBlock(Fields):
    """Never valid."""

    type: Annotated[str, Field(max_length=64)]

    @field_validator("type")
    @classmethod
    def is_known(cls, kind: str) -> str:
        raise ValueError(REFUSED.get(kind, "blocks of this type are not supported"))


def kind_of(block: Any) -> str:
    """Which of the blocks one is meant to be."""
    kind = block.get("type") if isinstance(block, Mapping) else getattr(block, "type", None)
    return kind if isinstance(kind, str) and kind in KINDS else "other"


KINDS = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")
Other = Annotated[OtherBlock, Tag("other")]
Text = Annotated[TextBlock, Tag("text")]


def kind_of_part(block: Any) -> str:
    return "text" if kind_of(block) == "text" else "other"


Parts = Annotated[list[Annotated[Text | Other, Discriminator(kind_of_part)]], Field(fail_fast=True)]
"""Where nothing but text may stand."""


class ToolResultBlock(Fields):
    type: Literal["tool_result"]
    tool_use_id: Name
    content: str | Parts | None = None
    is_error: bool | None = None

    @property
    def text(self) -> str:
        """What the model is told. Templates have no other place for the news that a tool failed."""
        text = self.content if isinstance(self.content, str) else text_of(self.content or ())
        failed = self.is_error and "error" not in text[:100].lower()
        return f"Error: {text}" if failed else text


Block = Annotated[
    Text
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[HiddenThinkingBlock, Tag("redacted_thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Other,
    Discriminator(kind_of),
]
AnyBlock = TextBlock | ThinkingBlock | HiddenThinkingBlock | ToolUseBlock | ToolResultBlock | OtherBlock


class Message(Fields):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(fail_fast=True)]

    @property
    def blocks(self) -> list[AnyBlock]:
        if isinstance(self.content, str):
            return [TextBlock(type="text", text=self.content)]
        return [*self.content]


def text_of(blocks: Sequence[AnyBlock]) -> str:
    """The text of all blocks that are text, joined as the parts of a message are everywhere."""
    return "\n".join(block.text for block in blocks if isinstance(block, TextBlock))


def conversation_of(messages: Sequence[Message]) -> list[Object]:
    """The same as messages of OpenAI's. Messages of one role that follow each other are one turn, as with Anthropic."""
    found: list[Object] = []
    names: dict[str, str] = {}
    for role, turn in groupby(messages, lambda message: message.role):
        if role == "system":
            found += [{"role": role, "content": text_of(message.blocks)} for message in turn]
            continue
        blocks = [block for message in turn for block in message.blocks]
        if role == "assistant":
            names |= {block.id: block.name for block in blocks if isinstance(block, ToolUseBlock)}
            found.append(answer_of(blocks))
        else:
            found += turn_of(blocks, names)
    return found


def answer_of(blocks: Sequence[AnyBlock]) -> Object:
    """A turn of the model's."""
    message: Object = {"role": "assistant", "content": text_of(blocks)}
    if thinking := [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]:
        message["reasoning_content"] = "\n".join(thinking)
    if calls := [block for block in blocks if isinstance(block, ToolUseBlock)]:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.input}}
            for call in calls
        ]
    return message


def turn_of(blocks: Sequence[AnyBlock], names: Mapping[str, str]) -> list[Object]:
    """A turn of the user's: texts, and what tools gave, in the order in which they stand. `names`: of the tools, by the calls' ids."""
    found: list[Object] = []
    for is_result, group in groupby(blocks, lambda block: isinstance(block, ToolResultBlock)):
        some = [*group]
        if not is_result:
            found.append({"role": "user", "content": text_of(some)})
            continue
        for block in some:
            assert isinstance(block, ToolResultBlock)
            name = {"name": names[block.tool_use_id]} if block.tool_use_id in names else {}
            found.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": block.text, **name})
    return found or [{"role": "user", "content": ""}]
