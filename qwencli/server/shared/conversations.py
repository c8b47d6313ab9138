"""What a chat request asks for: its messages, tools and the form of its answer, and the prompt that they become."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from ...errors import InputError
from ...llm import LLM
from ...text.chat.messages import for_template
from ...text.chat.template import Rendered
from ...text.chat.thinking import ReasoningBudget, closing, ends_inside
from ...text.chat.tool_calls import OPEN
from ..http.errors import ApiError, context_full
from ..service.config import Config
from .schemas import Fields, GenerationFields, Number, checked

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
        """Content is one text, parts with newlines between them, as in llama.cpp."""
        message = self.model_dump(exclude_none=True)
        text = (
            "\n".join(part.text for part in self.content)
            if isinstance(self.content, list)
            else self.content or ""
        )
        message |= {"content": text, "role": "system" if self.role == "developer" else self.role}
        return dict(for_template(message))


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
    """Raise InputError for what is no function's definition."""
    for tool in tools:
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise InputError('a tool needs "type": "function" and the object "function"')
        if not isinstance(name := function.get("name"), str) or not name:
            raise InputError("a tool's function needs a name")
        if not isinstance(function.get("parameters") or {}, dict):
            raise InputError(f"the parameters of {name[:100]} are no JSON schema, expected an object")


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
    """Tokens of thinking at most; the first of the three that is given counts."""

    @property
    def usable_tools(self) -> list[Object] | None:
        return self.tools if self.tools and self.tool_choice != "none" else None

    def thinking(self, config: Config) -> tuple[bool, int | None]:
        """Whether the answer may think, and in how many tokens; None for as many as it likes."""
        given = (self.reasoning_budget, self.reasoning_budget_tokens, self.thinking_budget_tokens)
        budget = next((n for n in given if n is not None), config.reasoning_budget)
        budget = None if budget is None or budget < 0 else budget
        given_think = (self.chat_template_kwargs or {}).get("enable_thinking")
        think = config.think if given_think is None else given_think
        if think is not None and not isinstance(think, bool):
            raise ApiError(
                "chat_template_kwargs.enable_thinking: Input should be a valid boolean",
                param="chat_template_kwargs",
            )
        return think is not False and budget != 0, budget

    def forced_tools(self) -> list[Object]:
        """Definitions of the functions of which one has to be called, none where none has to be. Raises ApiError."""
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


class Prompt(NamedTuple):
    """`inside`: it ends within a block of thinking. `opening` is what of the answer it holds already."""

    tokens: list[int]
    inside: bool
    opening: str


def prompt_of(fields: ConversationFields, llm: LLM, config: Config, think: bool) -> Prompt:
    """The conversation as tokens. Slow. Raises InputError, ApiError."""
    opening = OPEN + "\n" if fields.forced_tools() else ""
    prompt, inside = rendered(fields, llm, config, think and not opening)
    if (fewest := llm.tokenizer.fewest(prompt.text.replace(prompt.guard, ""))) > llm.engine.n_ctx:
        raise context_full(fewest, llm.engine.n_ctx, or_more=True)
    tokens = prompt._replace(text=prompt.text + opening).encode(llm.tokenizer)
    if len(tokens) >= llm.engine.n_ctx:
        raise context_full(len(tokens), llm.engine.n_ctx)
    return Prompt(tokens, inside, opening)


def rendered(fields: ConversationFields, llm: LLM, config: Config, think: bool) -> tuple[Rendered, bool]:
    """The conversation as the template has it, and whether it ends within a block of thinking. Slow. Raises InputError, ApiError."""
    if config.template is None:
        raise ApiError("the model has no chat template; use /v1/completions", 501)
    given = {name: value for name, value in (fields.chat_template_kwargs or {}).items() if value is not None}
    if wrong := TEMPLATE_OWN & given.keys():
        raise ApiError(f"chat_template_kwargs cannot set {min(wrong)}", param="chat_template_kwargs")
    messages = [message.for_template() for message in fields.messages]
    prompt = config.template.rendered(
        llm.tokenizer, messages, fields.usable_tools, **given | {"enable_thinking": think}
    )
    if not ends_inside(prompt.text):
        return prompt, False
    if think:
        return prompt, True
    return prompt._replace(
        text=prompt.text + closing(prompt.text)
    ), False  # a template that always begins with thinking


def budget_of(prompt: Prompt, think: bool, tokens: int | None) -> ReasoningBudget | None:
    """For one answer. No thinking is a budget of none, also where a template knows of no switch."""
    if prompt.opening:
        return None
    limit = tokens if think else 0
    return None if limit is None else ReasoningBudget(limit, prompt.inside)
