"""Messages as OpenAI's API has them, and as templates expect them."""

from __future__ import annotations

import json
from typing import Any

from .template import Message


def for_template(message: Message) -> Message:
    """A message as templates expect it: the arguments of tool calls as objects, which OpenAI's API has as the text of JSON.

    A call without arguments has none, an empty text or null there: templates get an empty object.
    """
    if not isinstance(calls := message.get("tool_calls"), list):
        return message
    return {**message, "tool_calls": [_with_object(call) for call in calls]}


def _with_object(call: Any) -> Any:
    try:
        function = call["function"]
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = json.loads(arguments) if arguments.strip() else {}
        return {**call, "function": {**function, "arguments": {} if arguments is None else arguments}}
    except (AttributeError, TypeError, KeyError, ValueError, RecursionError):
        return call  # its shape is the template's to judge
