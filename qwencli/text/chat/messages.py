"""Messages as OpenAI's API has them, and as templates expect them."""

from __future__ import annotations

import json
from typing import Any

from .template import Message


def for_template(message: Message) -> Message:
    """A message as templates expect it: the arguments of tool calls as objects, which OpenAI's API has as the text of JSON."""
    if not isinstance(calls := message.get("tool_calls"), list):
        return message
    return {**message, "tool_calls": [_with_object(call) for call in calls]}


def _with_object(call: Any) -> Any:
    try:
        function = call["function"]
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except (TypeError, KeyError, ValueError, RecursionError):
        return call  # arguments that are an object already, or a call whose shape is the template's to judge
