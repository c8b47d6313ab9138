"""How many tokens the prompt of a conversation has."""

from __future__ import annotations

from ...llm import LLM
from ...text.chat.template import Rendered
from ...text.chat.tool_calls import OPEN
from ..options import ServerOptions
from .conversations import ConversationFields, prompt_of


def n_prompt(body: ConversationFields, llm: LLM, options: ServerOptions) -> int:
    """Of any length, also where it doesn't fit into the context. Slow. Raises as `asked_of`."""
    forced = bool(body.forced_tools())
    thinks, _ = body.thinking(options)
    text, guard = prompt_of(body, llm, options, thinks and not forced).rendered
    return len(Rendered(text + (OPEN + "\n" if forced else ""), guard).encode(llm.tokenizer))
