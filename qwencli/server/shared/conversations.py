"""What a chat request asks for: its messages, tools and the form of its answer, and the prompt that they become."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ...errors import InputError
from ...llm import LLM
from ...request.prompt import SWITCH, ChatPrompt, chat_prompt, check_length, check_room
from ...request.request import may_think
from ...text.chat.beginnings import AUTO, Beginning, beginning_of, ends_with_answer
from ...text.chat.template import Rendered
from ..http.errors import ApiError
from ..options import ServerOptions
from .fields import Fields, GenerationFields, Number, checked, first_given

MAX_MESSAGES, MAX_TOOLS = 10_000, 1_000
TEMPLATE_OWN = {"self", "tokenizer", "messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}
"""What chat_template_kwargs cannot set."""
NO_EFFORT = "none"
"""The effort of an answer that doesn't think."""
MAX_MESSAGE = 4096
"""Characters of what ends the thinking at its budget."""
ROLES = {"developer": "system", "function": "tool"}
"""What templates call them."""
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
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[Called], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def has_content(self) -> Message:
        if (
            "content" not in self.model_fields_set and self.role != "assistant"
        ):  # null stands for an empty text
            raise ValueError(f"a message of role {self.role} needs content")
        return self

    def for_template(self, between: str = "\n") -> Object:
        """The same with its content as one text, parts joined by newlines as in llama.cpp."""
        message = self.model_dump(exclude_none=True)
        text = (
            between.join(part.text for part in self.content)
            if isinstance(self.content, list)
            else self.content or ""
        )
        message |= {"content": text, "role": ROLES.get(self.role, self.role)}
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


def read_object(value: Any) -> Any:
    """What may come as the text of JSON, too."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("Input should be an object, or the text of one") from None


class ConversationFields(GenerationFields):
    """A conversation to go on with. Who speaks to the server in another form than OpenAI's fills these fields."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    tools: Annotated[list[Object], Field(max_length=MAX_TOOLS), checked(check_tools)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    parse_tool_calls: bool | None = None
    """With false calls are text."""
    chat_template_kwargs: Annotated[Object | None, BeforeValidator(read_object)] = None
    think: bool | None = None
    """Whether the answer may think. Left out, `reasoning_effort` and `enable_thinking` among the template's variables decide."""
    reasoning_effort: Annotated[str, Field(max_length=64)] | None = None
    """"none": it doesn't think; all else is a variable of the template."""
    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] | None = None
    """Where thinking stands: with "none" in the content, as the model wrote it, else apart from it."""
    add_generation_prompt: bool | None = None
    """With false the prompt ends where the last message does."""
    continue_final_message: bool | Literal["content", "reasoning_content"] | None = None
    """The answer goes on from the last message, which is the assistant's, or from that part of it; the server may do so anyway."""
    echo: bool | None = None
    """Whether an answer that goes on from a message starts with that message."""
    reasoning_budget: Number | None = None
    reasoning_budget_tokens: Number | None = None
    thinking_budget_tokens: Number | None = None
    """The most tokens of thinking; the first of the three that is given counts."""
    reasoning_budget_message: Annotated[str, Field(max_length=MAX_MESSAGE)] | None = None
    """What the thinking ends with where it has used them up."""

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
        return may_think(self._thinks(options), budget), budget

    def _thinks(self, options: ServerOptions) -> bool | None:
        """Whether the answer may think, as far as that is said. Raises ApiError."""
        if self.think is not None:
            return self.think
        if self.reasoning_effort == NO_EFFORT:
            return False
        for given in (self.chat_template_kwargs or {}), options.template_kwargs:
            switch = given.get(SWITCH)
            if isinstance(switch, bool):
                return switch
            if switch is not None:
                raise ApiError(
                    f"chat_template_kwargs.{SWITCH}: Input should be a valid boolean",
                    param="chat_template_kwargs",
                )
        no_effort = options.reasoning_effort == NO_EFFORT and not self.reasoning_effort
        return False if options.think is None and no_effort else options.think

    def variables(self, options: ServerOptions) -> Object:
        """What the template is given besides the conversation: the server's variables, over them the request's. Raises ApiError."""
        given = {"reasoning_effort": options.reasoning_effort, **options.template_kwargs}
        given |= self.chat_template_kwargs or {}
        if self.reasoning_effort:
            given["reasoning_effort"] = self.reasoning_effort
        if given["reasoning_effort"] in (NO_EFFORT, "default"):
            del given["reasoning_effort"]
        if wrong := TEMPLATE_OWN & given.keys():
            raise ApiError(f"chat_template_kwargs cannot set {min(wrong)}", param="chat_template_kwargs")
        return {name: value for name, value in given.items() if value is not None}

    def message_at_budget(self, options: ServerOptions) -> str:
        """What the thinking ends with where it has used up its tokens."""
        given = self.reasoning_budget_message
        return options.reasoning_message if given is None else given

    def tells_thinking(self, options: ServerOptions) -> bool:
        """Whether thinking stands apart from the answer's text; not where the template knows nothing of it, as in llama-server."""
        wanted = options.parse_answers and (self.reasoning_format or options.reasoning_format) != "none"
        return wanted and (options.template is None or options.template.knows_thinking)

    def callable_tools(self, options: ServerOptions) -> list[Object] | None:
        """The tools whose calls are told apart from the answer's text."""
        return self.usable_tools if options.parse_answers and self.parse_tool_calls is not False else None

    def beginning(self, options: ServerOptions) -> tuple[list[Object], Beginning | None]:
        """The messages as templates expect them, and what the last one has of the answer already. Raises ApiError."""
        messages = [message.for_template() for message in self.messages]
        part = self.continue_final_message
        if part and self.add_generation_prompt:
            raise ApiError(
                "add_generation_prompt and continue_final_message cannot both be true",
                param="continue_final_message",
            )
        if not part and not (options.prefill_assistant and ends_with_answer(messages)):
            return messages, None
        messages[-1] = self.messages[-1].for_template("\n\n")  # as in llama.cpp
        try:
            return messages[:-1], beginning_of(messages, part if isinstance(part, str) else AUTO)
        except InputError as error:
            field = "continue_final_message" if part else "messages"
            raise ApiError(f"{field}: {error}", param=field) from None

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
        """See GenerationFields; and what response_format asks for. Raises ApiError for a grammar where tools may be called, too."""
        asked = super().answer_forms()
        if (form := self.response_format) and form.type != "text":
            given = form.json_schema.schema_ if form.json_schema else form.schema_
            if form.type == "json_schema" and given is None:
                raise ApiError("response_format.json_schema.schema: Field required", param="response_format")
            asked["response_format"] = {"type": "object"} if given is None else given
        if "grammar" in asked and self.usable_tools:
            raise ApiError(
                "grammar and tools cannot be used together; tool_choice none leaves the tools out",
                param="grammar",
            )
        return asked


def prompt_of(fields: ConversationFields, llm: LLM, options: ServerOptions, thinks: bool) -> ChatPrompt:
    """The conversation as the template has it. Slow. Raises InputError, ApiError, and what else `chat_prompt` does."""
    if options.template is None:
        raise ApiError("the model has no chat template; use /v1/completions", 501)
    given = fields.variables(options)
    messages, beginning = fields.beginning(options)
    if fields.add_generation_prompt is False and not beginning:
        given["add_generation_prompt"] = False
    return chat_prompt(
        options.template, llm.tokenizer, messages, fields.usable_tools, thinks, given, beginning
    )


def tokens_of(prompt: ChatPrompt, llm: LLM, opening: str = "") -> list[int]:
    """The tokens of a prompt, followed by how the answer has to open. Slow. Raises ContextFull."""
    text, guard = prompt.rendered
    check_length([text.replace(guard, "")], llm.tokenizer, llm.engine.n_ctx)
    tokens = Rendered(text + opening, guard).encode(llm.tokenizer)
    check_room(len(tokens), llm.engine.n_ctx)
    return tokens
