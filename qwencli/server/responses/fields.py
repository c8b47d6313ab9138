"""Requests for OpenAI's responses: the fields of their bodies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from ..http.errors import ApiError
from ..http.requests import invalid
from ..shared.conversations import MAX_TOOLS, ConversationFields
from ..shared.fields import Fields, GenerationFields, Number
from .items import AnyItem, Items, messages_of

Object = dict[str, Any]
MAX_TOP, MAX_METADATA = 20, 16
LOGPROBS = "message.output_text.logprobs"
"""What `include` asks for, where it asks for logprobs. All else that it can ask for is there anyway, or never there."""
PASSED_ON = {
    *GenerationFields.model_fields,
    "parallel_tool_calls",
    "chat_template_kwargs",
    "reasoning_budget",
    "reasoning_budget_tokens",
    "reasoning_format",
} - {"stream"}
"""Fields that are the same in every conversation."""


class FunctionTool(Fields):
    """A function that may be called."""

    type: Annotated[str, Field(max_length=64)]
    name: Annotated[str, Field(min_length=1)] = ""
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None

    @field_validator("type")
    @classmethod
    def is_function(cls, kind: str) -> str:
        if kind != "function":
            raise ValueError(f"tools of type {kind[:64]!r} are not available here, only functions")
        return kind

    @model_validator(mode="after")
    def has_name(self) -> FunctionTool:
        if not self.name:
            raise ValueError("a function needs a name")
        return self

    def of_conversation(self) -> Object:
        """The same as chats have it."""
        function = self.model_dump(include={"name", "description", "parameters", "strict"}, exclude_none=True)
        return {"type": "function", "function": function}


class NamedTool(Fields):
    type: Literal["function"]
    name: str


class AllowedTools(Fields):
    """The tools that may be called this time."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class Reasoning(Fields):
    effort: Annotated[str, Field(max_length=64)] | None = None
    """"none": no thinking."""
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Without effect: the thinking itself is in the answer."""


class Format(Fields):
    """What the answer has to follow."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Object | None = Field(None, alias="schema")
    strict: bool | None = None

    def of_conversation(self) -> Object:
        """The same as chats have it. Raises ApiError."""
        if self.type != "json_schema":
            return {"type": self.type}
        if self.schema_ is None:
            raise ApiError("text.format.schema: Field required", param="text.format.schema")
        return {"type": self.type, "json_schema": {"schema": self.schema_}}


class TextFields(Fields):
    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """Without effect."""


class ResponseRequest(GenerationFields):
    """The body of /v1/responses."""

    input: str | Items
    model: str | None = None
    """Without effect: the server has one model."""
    instructions: str | None = None
    max_output_tokens: Number | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextFields | None = None
    previous_response_id: Annotated[str, Field(max_length=128)] | None = None
    store: bool | None = None
    """Left out, the response is kept for a while."""
    truncation: Literal["auto", "disabled"] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=MAX_METADATA),
        ]
        | None
    ) = None
    include: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=32)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    background: Literal[False] | None = None
    conversation: None = None
    prompt: None = None
    chat_template_kwargs: Object | None = None
    reasoning_budget: Number | None = None
    reasoning_budget_tokens: Number | None = None
    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] | None = None

    @property
    def n_top(self) -> int | None:
        """How many likely tokens to report with each of the answer's; None for no report at all."""
        return (self.top_logprobs or 0) if self.top_logprobs or LOGPROBS in (self.include or ()) else None

    @property
    def n_probs(self) -> int:
        """As many as the sampler has to report for that."""
        return 0 if self.n_top is None else max(1, self.n_top)

    def of_conversation(self, items: Iterable[AnyItem]) -> ConversationFields:
        """The request as all APIs have it, for the items of the whole conversation. Raises ApiError."""
        messages = messages_of(items, self.instructions)
        if not messages:
            raise ApiError("input: expected at least one item", param="input")
        fields: Object = self.model_dump(include=PASSED_ON, by_alias=True, exclude_none=True)
        if self.max_output_tokens is not None:
            fields["max_completion_tokens"] = self.max_output_tokens
        if self.reasoning and self.reasoning.effort:
            fields["reasoning_effort"] = self.reasoning.effort
        if self.text and self.text.format:
            fields["response_format"] = self.text.format.of_conversation()
        fields |= self._tools() | {"messages": messages}
        try:
            conversation: ConversationFields = ConversationFields.model_validate(fields)
        except ValidationError as error:
            raise invalid(error) from None
        return conversation

    def _tools(self) -> Object:
        """The tools and the choice among them. Raises ApiError."""
        tools, choice = self.tools or [], self.tool_choice
        if isinstance(choice, NamedTool):
            return {
                "tools": _of_conversation(tools),
                "tool_choice": {"type": "function", "function": {"name": choice.name}},
            }
        if isinstance(choice, AllowedTools):
            names = {tool.name for tool in choice.tools}
            if not names <= {tool.name for tool in tools}:
                raise ApiError(
                    "tool_choice allows a function that is not among the tools", param="tool_choice"
                )
            tools = [tool for tool in tools if tool.name in names]
            return {"tools": _of_conversation(tools), "tool_choice": choice.mode}
        return {"tools": _of_conversation(tools)} | ({"tool_choice": choice} if choice else {})

    def shown(self) -> Object:
        """What a response repeats of its request."""
        form = self.text and self.text.format
        choice, reasoning = self.tool_choice or "auto", self.reasoning or Reasoning()
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": None,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
            "store": self.store is not False,
            "text": {
                "format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}
            },
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "truncation": self.truncation or "disabled",
        }


def _of_conversation(tools: Sequence[FunctionTool]) -> list[Object] | None:
    return [tool.of_conversation() for tool in tools] or None
