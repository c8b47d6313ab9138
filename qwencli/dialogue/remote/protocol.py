"""What is different from protocol to protocol, and what most have in common: how settings, messages and calls are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...sampling import SETTINGS
from ...text.chat.tool_calls import mapping
from .answer import StreamedAnswer, text
from .streams import parsed

if TYPE_CHECKING:
    from ...sampling import SamplingParams
    from ...text.chat.template import Message
    from ..dialogue import Settings

Body = dict[str, Any]


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key in most protocols."""
    return {"Authorization": f"Bearer {key}"}


@dataclass(frozen=True)
class Protocol:
    """How a server is asked for the next message of a conversation."""

    name: str
    """What a server would be that speaks it: "an OpenAI-compatible server"."""
    chats: str
    """Where conversations are sent, after the address."""
    models: str
    """Where the models are listed."""
    body: Callable[[str, Sequence[Message], Settings], Body]
    """The request for a streamed answer of a model. No more fields than needed: strict servers refuse those that they don't know.

    Settings that are qwencli's defaults are left out, so that the server uses its own, which suit its model. Earlier thinking is left out
    as the models' templates would. Raises InputError for settings for which the protocol has no words.
    """
    answer: Callable[[Sequence[Mapping[str, Any]] | None], StreamedAnswer]
    """An answer to a request with these tools."""
    key_variable: str
    """The environment variable in which people keep the key of such servers."""
    key_header: Callable[[str], dict[str, str]] = bearer
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every request."""


def may_think(settings: Settings) -> bool | None:
    """None leaves it to the server."""
    return False if settings.reasoning_budget == 0 else settings.think


def sampling_fields(params: SamplingParams) -> Body:
    """The settings that differ from the defaults, by the names of OpenAI's protocol, else llama-server's."""
    chosen = {
        s.request_name: getattr(params, s.name)
        for s in SETTINGS.values()
        if not s.of_report and getattr(params, s.name) != s.default
    }
    if "logit_bias" in chosen:
        # JSON has no infinity
        chosen["logit_bias"] = {token: min(max(bias, -100.0), 100.0) for token, bias in chosen["logit_bias"]}
    return chosen


def function_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A function's name, description and parameters, from OpenAI's definition of a tool."""
    return mapping(tool.get("function"))


@dataclass(frozen=True)
class Made:
    """A call that an earlier message made. Its id is unlike all others of the conversation."""

    id: str
    name: str
    arguments: str
    """JSON."""

    @property
    def object(self) -> dict[str, Any]:
        return parsed(self.arguments) or {}


def with_calls(messages: Sequence[Message]) -> Iterator[tuple[Message, list[Made]]]:
    """The messages, each with the calls that it makes or, for a tool's result, the one that it answers.

    Ids may be missing, or the same in several messages; results belong to the calls before them in order.
    """
    n, open_calls = 0, list[tuple[str, Made]]()
    for message in messages:
        made = list[Made]()
        if message["role"] == "tool":
            given = message.get("tool_call_id")
            place = next((i for i, (id, _) in enumerate(open_calls) if id == given), 0)
            made = [open_calls.pop(place)[1]] if open_calls else []
        for call in message.get("tool_calls") or ():
            function = mapping(call.get("function"))
            made.append(
                Made(f"call_{n}", text(function.get("name")), text(function.get("arguments")).strip() or "{}")
            )
            open_calls.append((text(call.get("id")), made[-1]))
            n += 1
        yield message, made
