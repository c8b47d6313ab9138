"""Requests of Anthropic's API: the fields of their bodies."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from ...request.prompt import SWITCH
from ..http.errors import ApiError
from ..http.requests import invalid
from ..options import ServerOptions
from ..shared.conversations import MAX_MESSAGES, MAX_TOOLS, ConversationFields, read_object
from ..shared.fields import MAX_STOPS, Fields, Number, SamplingFields, Stop
from .blocks import Message, Name, Parts, conversation_of, text_of

Object = dict[str, Any]
CUSTOM = "custom"
STAMP = re.compile(r"(x-anthropic-billing-header:[^\n]{0,256}?)\bcch=\w{1,64};")
"""What a coding agent's system prompt begins with: a number that differs in each request, so that nothing after it would be known."""
ELSEWHERE = ("container", "mcp_servers", "thread")
"""Fields about what only Anthropic's servers have."""


class Tool(Fields):
    type: Annotated[str, Field(max_length=64)] | None = None
    name: Annotated[Name, Field(min_length=1)]
    description: str | None = None
    input_schema: Object | None = None

    @field_validator("type")
    @classmethod
    def is_custom(cls, kind: str | None) -> str | None:
        if kind not in (None, CUSTOM):
            raise ValueError(
                f'{kind[:64]!a} is not supported: only "{CUSTOM}" tools, which the client runs and describes by an input_schema'
            )
        return kind

    def of_conversation(self) -> Object:
        """The same as OpenAI has it."""
        function: Object = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": function | {"parameters": self.input_schema or {}}}


class ToolChoice(Fields):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None

    def of_conversation(self) -> Object:
        """The same as fields of a conversation. Raises ApiError."""
        if self.type == "tool" and not self.name:
            raise ApiError("tool_choice.name: Field required", param="tool_choice")
        named = {"type": "function", "function": {"name": self.name}}
        choices: Object = {"auto": "auto", "any": "required", "tool": named, "none": "none"}
        alone = {"parallel_tool_calls": False} if self.disable_parallel_tool_use else {}
        return {"tool_choice": choices[self.type], **alone}


class ThinkingConfig(Fields):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Number | None = None
    display: Literal["summarized", "omitted"] | None = None


class Format(Fields):
    type: Literal["json_schema"]
    schema_: Object = Field(alias="schema")


class OutputConfig(Fields):
    effort: Annotated[str, Field(max_length=64)] | None = None
    format: Format | None = None


class MessagesRequest(SamplingFields):
    """The body of /v1/messages and of /v1/messages/count_tokens."""

    model: str | None = None
    """Without effect: the server has one model."""
    max_tokens: Number | None = None
    messages: Annotated[list[Message], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    system: str | Parts | None = None
    stream: bool | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    """Left out, the model doesn't think, unless the server was told that it does."""
    output_config: OutputConfig | None = None
    output_format: Format | None = None
    """The older place of output_config.format."""
    metadata: Object | None = None
    """Without effect."""
    chat_template_kwargs: Annotated[Object | None, BeforeValidator(read_object)] = None
    """llama.cpp's."""
    container: Any = None
    mcp_servers: Any = None
    thread: Any = None

    @field_validator("tools")
    @classmethod
    def have_names_of_their_own(cls, tools: list[Tool] | None) -> list[Tool] | None:
        if tools and len({tool.name for tool in tools}) < len(tools):
            raise ValueError("the names of tools have to differ")
        return tools

    @field_validator(*ELSEWHERE)
    @classmethod
    def is_left_out(cls, value: Any) -> Any:
        if value:
            raise ValueError("not supported: only Anthropic's own servers have it")
        return value

    @property
    def hides_thinking(self) -> bool:
        """Whether the answer only says that there was thinking, not what."""
        return self.thinking is not None and self.thinking.display == "omitted"

    def conversation(self, options: ServerOptions) -> ConversationFields:
        """The request as all APIs have it. Raises ApiError."""
        fields: Object = self.model_dump(
            include={*SamplingFields.model_fields}, by_alias=True, exclude_none=True
        )
        fields |= {"max_tokens": self.max_tokens, "stop": self.stop_sequences}
        fields["messages"] = self._messages()
        if self.tools:
            fields["tools"] = [tool.of_conversation() for tool in self.tools]
        if self.tool_choice:
            fields |= self.tool_choice.of_conversation()
        if self.thinking and self.thinking.type == "enabled":
            fields["reasoning_budget"] = self.thinking.budget_tokens
        if form := (self.output_config and self.output_config.format) or self.output_format:
            fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.schema_}}
        fields["chat_template_kwargs"] = self.chat_template_kwargs
        fields["think"] = self._thinks(options)
        fields["reasoning_effort"] = self.output_config and self.output_config.effort
        try:
            conversation: ConversationFields = ConversationFields.model_validate(fields)
        except ValidationError as error:
            raise invalid(error) from None
        return conversation

    def _messages(self) -> list[Object]:
        """All of them, the system prompt first; where there are none, an empty one of the user's, as in llama.cpp."""
        system = self.system if isinstance(self.system, str) else text_of(self.system or ())
        first = [{"role": "system", "content": STAMP.sub(r"\1", system, count=1)}] if system else []
        return [*first, *(conversation_of(self.messages) or [{"role": "user", "content": ""}])]

    def _thinks(self, options: ServerOptions) -> bool | None:
        """Whether the answer may think, as far as this API says."""
        if self.thinking:
            return self.thinking.type != "disabled"
        told = options.think or SWITCH in {**options.template_kwargs, **(self.chat_template_kwargs or {})}
        return None if told else False
