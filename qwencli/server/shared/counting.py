"""How many tokens the prompt of a conversation has."""

from __future__ import annotations

from ...llm import LLM
from ...text.chat.template import Rendered
from ..options import ServerOptions
from .chat import opened
from .conversations import ConversationFields


def n_prompt(body: ConversationFields, llm: LLM, options: ServerOptions) -> int:
    """Of any length, also where it doesn't fit into the context. Slow. Raises as `asked_of`."""
    prompt, opening = opened(body, llm, options)
    text, guard = prompt.rendered
    return len(Rendered(text + opening, guard).encode(llm.tokenizer))
