"""The items that conversations of OpenAI's responses are made of, and the messages that they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, field_validator

from ..shared.conversations import MAX_MESSAGES
from ..shared.fields import Fields

Object = dict[str, Any]
Name = Annotated[str, Field(max_length=256)]
REFUSED = {
    "input_image": "images are not supported: this model reads text alone",
    "input_file": "files are not supported: this model reads text alone",
    "input_audio": "audio is not supported: this model reads text alone",
}
"""What is said of parts that cannot be read; of all others, that they are unknown."""
TEXTS = "input_text", "output_text", "text", "summary_text", "reasoning_text"


class TextPart(Fields):
    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str


class RefusalPart(Fields):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class OtherPart(Fields):
    """Never valid."""

    type: Annotated[str, Field(max_length=64)]

    @field_validator("type")
    @classmethod
    def is_known(cls, kind: str) -> str:
        raise ValueError(REFUSED.get(kind, "parts of this type are not supported"))


def type_of(value: Any) -> Any:
    return value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)


def kind_of_part(part: Any) -> str:
    """Which of the parts one is meant to be. With a space in it, so that no error names it as a part of a place."""
    kind = type_of(part)
    return "a text" if kind in TEXTS else "a refusal" if kind == "refusal" else "a part"


Part = Annotated[
    Annotated[TextPart, Tag("a text")]
    | Annotated[RefusalPart, Tag("a refusal")]
    | Annotated[OtherPart, Tag("a part")],
    Discriminator(kind_of_part),
]
Parts = Annotated[list[Part], Field(fail_fast=True)]


class MessageItem(Fields):
    type: Literal["message"] = "message"
    id: Name | None = None
    role: Literal["user", "system", "developer", "assistant"]
    content: str | Parts


class CallItem(Fields):
    type: Literal["function_call"]
    id: Name | None = None
    call_id: Name
    name: Name
    arguments: str


class ResultItem(Fields):
    type: Literal["function_call_output"]
    id: Name | None = None
    call_id: Name
    output: str | Parts


class ReasoningItem(Fields):
    """Thinking. Of what only OpenAI's servers can read, nothing is known here."""

    type: Literal["reasoning"]
    id: Name | None = None
    content: Parts | None = None


class ReferenceItem(Fields):
    """An item of a response that was kept."""

    type: Literal["item_reference"] | None = None
    id: Name


class OtherItem(Fields):
    """Never valid."""

    type: Annotated[str, Field(max_length=64)]

    @field_validator("type")
    @classmethod
    def is_known(cls, kind: str) -> str:
        raise ValueError(f"items of this type are not supported, expected one of {', '.join(KINDS)}")


KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def kind_of(item: Any) -> str:
    """Which of the items one is meant to be, after a space, as above. Messages need not say that they are, and neither need references."""
    kind = type_of(item)
    if kind is None and isinstance(item, Mapping):
        kind = "item_reference" if "id" in item and "role" not in item else "message"
    return f" {kind}" if isinstance(kind, str) and kind in KINDS else " other"


Item = Annotated[
    Annotated[MessageItem, Tag(" message")]
    | Annotated[CallItem, Tag(" function_call")]
    | Annotated[ResultItem, Tag(" function_call_output")]
    | Annotated[ReasoningItem, Tag(" reasoning")]
    | Annotated[ReferenceItem, Tag(" item_reference")]
    | Annotated[OtherItem, Tag(" other")],
    Discriminator(kind_of),
]
AnyItem = MessageItem | CallItem | ResultItem | ReasoningItem | ReferenceItem | OtherItem
Items = Annotated[list[Item], Field(max_length=MAX_MESSAGES, fail_fast=True)]
_ITEMS: TypeAdapter[list[AnyItem]] = TypeAdapter(list[Item], config=ConfigDict(defer_build=True))


def items_of(texts: Iterable[str]) -> list[AnyItem]:
    """Items whose JSON was kept."""
    return _ITEMS.validate_json(f"[{','.join(texts)}]")


def text_of(content: str | Sequence[TextPart | RefusalPart | OtherPart] | None) -> str:
    """Parts are joined by newlines, as in chats."""
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content or () if not isinstance(part, OtherPart))


def messages_of(items: Iterable[AnyItem], instructions: str | None) -> list[Object]:
    """The messages of a conversation. Thinking, text and calls that follow each other are one message of the assistant's.

    Templates expect one system message, the first: the instructions and what the conversation begins with are one.
    """
    messages: list[Object] = []
    for assistant, run in groupby(items, is_assistants):
        same = [*run]
        messages += [assistant_message(same)] if assistant else map(message_of, same)
    if not instructions:
        return messages
    n = next((i for i, m in enumerate(messages) if m["role"] not in ("system", "developer")), len(messages))
    system = "\n\n".join([instructions, *(m["content"] for m in messages[:n])])
    return [{"role": "system", "content": system}, *messages[n:]]


def is_assistants(item: AnyItem) -> bool:
    return (
        item.role == "assistant"
        if isinstance(item, MessageItem)
        else isinstance(item, (CallItem, ReasoningItem))
    )


def assistant_message(items: Iterable[AnyItem]) -> Object:
    thought, said, calls = [], [], []
    for item in items:
        if isinstance(item, ReasoningItem):
            thought.append(text_of(item.content))
        elif isinstance(item, CallItem):
            function = {"name": item.name, "arguments": item.arguments}
            calls.append({"id": item.call_id, "type": "function", "function": function})
        elif isinstance(item, MessageItem):
            said.append(text_of(item.content))
    message: Object = {"role": "assistant", "content": "\n".join(said)}
    message |= {"reasoning_content": "\n".join(thought)} if any(thought) else {}
    return message | ({"tool_calls": calls} if calls else {})


def message_of(item: AnyItem) -> Object:
    if isinstance(item, ResultItem):
        return {"role": "tool", "tool_call_id": item.call_id, "content": text_of(item.output)}
    assert isinstance(item, MessageItem)
    return {"role": item.role, "content": text_of(item.content)}
