"""What a chat request asks for: its messages, tools and the form of its answer, and the prompt that they become."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ...errors import InputError
from ...llm import LLM
from ...request.prompt import ChatPrompt, chat_prompt, check_length, check_room
from ...request.request import may_think
from ...text.chat.template import Rendered
from ..http.errors import ApiError
from ..options import ServerOptions
from .fields import Fields, GenerationFields, Number, checked, first_given

MAX_MESSAGES, MAX_TOOLS = 10_000, 1_000
TEMPLATE_OWN = {"self", "tokenizer", "messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}
"""What chat_template_kwargs cannot set."""
Object = dict[str, Any]


class Part(Fields):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class CalledFunction(Fields):
    name: str
    arguments: str | Object | None = None


class Called(Fields):
    """A tool call that was made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Fields):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[Called], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def has_content(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} needs content")
        return self

    def for_template(self) -> Object:
        """The same with its content as one text, parts joined by newlines as in llama.cpp."""
        message = self.model_dump(exclude_none=True)
        text = (
            "\n".join(part.text for part in self.content)
            if isinstance(self.content, list)
            else self.content or ""
        )
        message |= {"content": text, "role": "system" if self.role == "developer" else self.role}
        return message


class NamedFunction(Fields):
    name: str


class ToolChoice(Fields):
    type: Literal["function"]
    function: NamedFunction


class JSONSchema(Fields):
    name: str | None = None
    schema_: Object | None = Field(None, alias="schema")


class ResponseFormat(Fields):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None
    schema_: Object | None = Field(None, alias="schema")
    """llama.cpp's, with json_object."""


def check_tools(tools: list[Object]) -> None:
    """Raise InputError for what does not define a function."""
    for tool in tools:
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise InputError('a tool needs "type": "function" and the object "function"')
        if not isinstance(name := function.get("name"), str) or not name:
            raise InputError("a tool's function needs a name")
        if not isinstance(function.get("parameters") or {}, dict):
            raise InputError(f"the parameters of {name[:100]} are not a JSON schema, expected an object")


class ConversationFields(GenerationFields):
    """A conversation to go on with."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    tools: Annotated[list[Object], Field(max_length=MAX_TOOLS), checked(check_tools)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: Object | None = None
    reasoning_budget: Number | None = None
    reasoning_budget_tokens: Number | None = None
    thinking_budget_tokens: Number | None = None
    """The most tokens of thinking; the first of the three that is given counts."""

    @property
    def usable_tools(self) -> list[Object] | None:
        return self.tools if self.tools and self.tool_choice != "none" else None

    def thinking(self, options: ServerOptions) -> tuple[bool, int | None]:
        """Whether the answer may think, and the most tokens of thinking; None sets no limit. Raises ApiError."""
        budget = first_given(
            self.reasoning_budget,
            self.reasoning_budget_tokens,
            self.thinking_budget_tokens,
            options.reasoning_budget,
        )
        budget = None if budget is None or budget < 0 else budget
        given_think = (self.chat_template_kwargs or {}).get("enable_thinking")
        think = options.think if given_think is None else given_think
        if think is not None and not isinstance(think, bool):
            raise ApiError(
                "chat_template_kwargs.enable_thinking: Input should be a valid boolean",
                param="chat_template_kwargs",
            )
        return may_think(think, budget), budget

    def forced_tools(self) -> list[Object]:
        """The functions of which one has to be called; none where no call has to be made. Raises ApiError."""
        functions = [tool["function"] for tool in self.tools or ()]
        if isinstance(self.tool_choice, ToolChoice):
            functions = [f for f in functions if f["name"] == self.tool_choice.function.name]
        elif self.tool_choice != "required":
            return []
        if not functions:
            raise ApiError("tool_choice asks for a function that is not among the tools", param="tool_choice")
        return functions

    def answer_forms(self) -> dict[str, Object | str]:
        """See GenerationFields; and what response_format asks for. Raises ApiError where tools may be called, too."""
        asked = super().answer_forms()
        if (form := self.response_format) and form.type != "text":
            given = form.json_schema.schema_ if form.json_schema else form.schema_
            if form.type == "json_schema" and given is None:
                raise ApiError("response_format.json_schema.schema: Field required", param="response_format")
            asked["response_format"] = {"type": "object"} if given is None else given
        if asked and self.usable_tools:
            name = next(iter(asked))
            raise ApiError(
                f"{name} and tools cannot be used together; tool_choice none leaves the tools out", param=name
            )
        return asked


def prompt_of(fields: ConversationFields, llm: LLM, options: ServerOptions, thinks: bool) -> ChatPrompt:
    """The conversation as the template has it. Slow. Raises InputError, ApiError, and what else `chat_prompt` does."""
    if options.template is None:
        raise ApiError("the model has no chat template; use /v1/completions", 501)
    given = {name: value for name, value in (fields.chat_template_kwargs or {}).items() if value is not None}
    if wrong := TEMPLATE_OWN & given.keys():
        raise ApiError(f"chat_template_kwargs cannot set {min(wrong)}", param="chat_template_kwargs")
    messages = [message.for_template() for message in fields.messages]
    return chat_prompt(options.template, llm.tokenizer, messages, fields.usable_tools, thinks, given)


def tokens_of(prompt: ChatPrompt, llm: LLM, opening: str = "") -> list[int]:
    """The tokens of a prompt, followed by how the answer has to open. Slow. Raises ContextFull."""
    text, guard = prompt.rendered
    check_length([text.replace(guard, "")], llm.tokenizer, llm.engine.n_ctx)
    tokens = Rendered(text + opening, guard).encode(llm.tokenizer)
    check_room(len(tokens), llm.engine.n_ctx)
    return tokens
