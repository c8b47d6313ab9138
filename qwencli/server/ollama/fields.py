"""Requests of Ollama's API: the fields of their bodies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ..http.errors import ApiError
from ..shared.conversations import MAX_MESSAGES, MAX_TOOLS, ConversationFields, check_tools
from ..shared.fields import COUNT, MAX_STOPS, WHOLE, Fields, SamplingFields, Stop, checked

Object = dict[str, Any]
MAX_TOP = 20
MAX_CONTEXT = 1 << 20
"""Tokens of an earlier answer that a request may bring along."""
KeepAlive = float | Annotated[str, Field(max_length=32)]
"""Seconds, or a duration such as "5m". Negative: for ever."""


class Options(SamplingFields):
    """The field `options`. Those that say how a model is loaded have no effect: this one is loaded already."""

    num_predict: Annotated[int, Field(ge=-2, le=COUNT), WHOLE] | None = None
    """Less than 1: as many as the context holds."""
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None

    def of_conversation(self) -> Object:
        """The same as fields of a conversation."""
        fields: Object = self.model_dump(by_alias=True, exclude_none=True)
        limit = fields.pop("num_predict", None)
        return fields if limit is None else fields | {"max_tokens": limit if limit > 0 else -1}


class CalledFunction(Fields):
    name: str
    arguments: Object | str | None = None


class Called(Fields):
    id: str | None = None
    function: CalledFunction


class Message(Fields):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: Annotated[list[Called], Field(max_length=MAX_TOOLS)] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None

    def of_conversation(self) -> Object:
        """The same as a message of OpenAI's. Raises ApiError for images."""
        check_images(self.images)
        message: Object = {"role": self.role, "content": self.content or ""}
        if self.thinking:
            message["reasoning_content"] = self.thinking
        if self.tool_calls:
            message["tool_calls"] = [
                {"type": "function", **call.model_dump(exclude_none=True)} for call in self.tool_calls
            ]
        if self.tool_name is not None:
            message["name"] = self.tool_name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


def check_images(images: list[Any] | None) -> None:
    """Raises ApiError where there are any."""
    if images:
        raise ApiError("images: this model reads text alone", param="images")


class AnswerFields(Fields):
    """What both kinds of requests for text have."""

    model: str | None = None
    """Without effect: the server has one model."""
    stream: bool | None = None
    """Left out, the answer streams."""
    options: Options | None = None
    format: Literal["", "json"] | Object | None = None
    """JSON, or JSON of a schema."""
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    keep_alive: KeepAlive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP), WHOLE] | None = None

    @property
    def streams(self) -> bool:
        return self.stream is not False

    @property
    def unloads(self) -> bool:
        """Whether the model is no longer wanted when this is answered. Other values have no effect: the server's options decide."""
        return self.keep_alive in (0, "0", "0s")

    @property
    def n_top(self) -> int | None:
        """How many likely tokens to report with each of the answer's; None for no report at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def conversation(self, messages: list[Object], tools: list[Object] | None = None) -> ConversationFields:
        """The request as all APIs have it."""
        fields: Object = {} if self.options is None else self.options.of_conversation()
        if self.think is not None:
            effort = {} if isinstance(self.think, bool) else {"reasoning_effort": self.think}
            fields |= {"think": bool(self.think), **effort}
        if self.format == "json":
            fields["response_format"] = {"type": "json_object"}
        elif self.format:
            fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": self.format}}
        conversation: ConversationFields = ConversationFields.model_validate(
            fields | {"messages": messages, "tools": tools}
        )
        return conversation


class ChatRequest(AnswerFields):
    """The body of /api/chat."""

    messages: Annotated[list[Message], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    tools: Annotated[list[Object], Field(max_length=MAX_TOOLS), checked(check_tools)] | None = None

    def of_chat(self) -> ConversationFields:
        """The conversation. Raises ApiError."""
        return self.conversation([m.of_conversation() for m in self.messages or ()], self.tools or None)


class GenerateRequest(AnswerFields):
    """The body of /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: Annotated[list[int], Field(max_length=MAX_CONTEXT, fail_fast=True)] | None = None
    """The tokens that an earlier answer ended with."""
    raw: bool | None = None
    images: list[Any] | None = None

    def check(self) -> None:
        """Raises ApiError for what cannot be done here."""
        check_images(self.images)
        if self.template:
            raise ApiError(
                "template: templates in Go's form are not supported; raw takes a prompt as it is",
                param="template",
            )
        if self.raw and (self.system or self.context):
            raise ApiError("raw: it takes neither system nor context", param="raw")

    def of_prompt(self) -> ConversationFields:
        """The prompt as a conversation."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.conversation([*system, {"role": "user", "content": self.prompt or ""}])


class EmbedRequest(Fields):
    """The body of /api/embed."""

    model: str | None = None
    input: str | Annotated[list[str], Field(max_length=2048, fail_fast=True)] | None = None
    truncate: bool | None = None
    """Left out, a text that is longer than the context is cut."""
    dimensions: Annotated[int, Field(ge=0), WHOLE] | None = None
    options: Options | None = None
    keep_alive: KeepAlive | None = None


class EmbeddingsRequest(Fields):
    """The body of /api/embeddings, an older form."""

    model: str | None = None
    prompt: str | None = None
    options: Options | None = None
    keep_alive: KeepAlive | None = None


class ShowRequest(Fields):
    """The body of /api/show."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
