"""Conversations that are longer than the context, without their oldest turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ...errors import ContextFull
from ..shared.conversations import ConversationFields

T = TypeVar("T")


def shortened(conversation: ConversationFields, ask: Callable[[ConversationFields], T]) -> T:
    """What `ask` makes of it, with as many of its turns as fit. A turn begins with a message of the user's; system messages at the
    start, and the last turn, stay. Raises what `ask` does.
    """
    try:
        return ask(conversation)
    except ContextFull as error:
        full = error
    messages = conversation.messages
    n_head = next((i for i, m in enumerate(messages) if m.role not in ("system", "developer")), 0)
    starts = [i for i, m in enumerate(messages) if m.role == "user" and i > n_head]
    found: T | None = None
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        kept = messages[:n_head] + messages[starts[middle] :]
        try:
            found = ask(conversation.model_copy(update={"messages": kept}))
            high = middle
        except ContextFull:
            low = middle + 1
    if found is None:
        raise full
    return found
