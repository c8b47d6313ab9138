"""`qwencli chat`"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from .._answers import TemplateOptions, ThinkingOptions, length_option, template_options, thinking_options
from .._bar import Bar
from .._grammar import GrammarOptions, grammar_options
from .._llama.command import LlamaCommand, llama_option
from .._loading import Loader, kept_session, loading_options, session_option
from .._options import example, json_option
from .._sampling import sampling_options
from .._streams import say

if TYPE_CHECKING:
    from ...dialogue.dialogue import ChatModel
    from ...sampling import SamplingParams


@click.command(
    cls=LlamaCommand,
    epilog=example(
        "qwencli chat",
        "qwencli chat -m model.gguf --system 'Answer in one sentence.' --temp 0.5",
        "qwencli chat --url http://localhost:8080",
        "qwencli chat --url https://api.anthropic.com/v1/messages -m claude-sonnet-4-5",
        "echo 'Why is the sky blue?' | qwencli chat -q --hide-thinking",
    ),
)
@loading_options
@click.option(
    "--url",
    metavar="URL",
    help="Chat with a server, such as http://localhost:8080; -m names its model. Its API is OpenAI's; an address that ends in "
    "/v1/responses, /v1/messages (Anthropic's) or /api/chat (Ollama's) chooses another.",
)
@click.option(
    "--api-key",
    metavar="KEY",
    help="The key for --url. Default: $OPENAI_API_KEY, for Anthropic's API $ANTHROPIC_API_KEY, for Ollama's $OLLAMA_API_KEY.",
)
@click.option("--system", metavar="TEXT", help="The system message of the chat.")
@click.option(
    "--load",
    "transcript",
    metavar="FILE",
    help="Continue a chat that /save wrote, with its settings unless options say otherwise.",
)
@session_option
@thinking_options
@llama_option(
    "--context-shift", default=False, help="Drop the oldest turns without asking when the context is full."
)
@template_options
@length_option
@grammar_options
@sampling_options
@json_option
def chat(
    loader: Loader,
    url: str | None,
    api_key: str | None,
    system: str | None,
    transcript: str | None,
    session: str | None,
    thinking: ThinkingOptions,
    context_shift: bool,
    templates: TemplateOptions,
    max_tokens: int | None,
    grammar: GrammarOptions,
    sampling: dict[str, Any],
    as_json: bool,
) -> int:
    """Talk to a model.

    Each line is a question, or a command that begins with a slash (/help). Without a terminal, each line of stdin is a turn, and only the
    answers go to stdout.
    """
    from ...dialogue.dialogue import Dialogue, Settings
    from .conversation import Chat, printing, printing_json

    at_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    sampling = {name: value for name, value in sampling.items() if value is not None}
    bar = Bar(at_terminal and not loader.quiet, delay=1, desc="prompt", unit="tok")
    if url is None:
        name, model, params, kept = local_model(
            loader, templates, session, sampling, grammar, bar, look_ahead=at_terminal
        )
    else:
        name, model, params, kept = remote_model(loader, templates, session, sampling, grammar, url, api_key)

    settings = Settings(params, max_tokens, thinking.think, thinking.reasoning_budget)
    dialogue = Dialogue(model, settings, may_drop=lambda: True, report=say)
    talk = Chat(dialogue, name, printing_json(dialogue) if as_json else printing(thinking.hide_thinking, bar))
    if transcript is not None:
        options = {name: getattr(settings, name) for name in ("max_tokens", "think", "reasoning_budget")}
        talk.load(
            os.path.expanduser(transcript),
            sampling | {name: value for name, value in options.items() if value is not None},
        )
    if system is not None:
        dialogue.system = system
    with kept:
        if not at_terminal:
            from . import plain

            if not context_shift:
                dialogue.may_drop = plain.may_drop
            plain.converse(talk)
            return int(talk.failed)

        from . import terminal

        if not context_shift:
            dialogue.may_drop = terminal.may_drop
        if not loader.quiet:
            say("/help lists the commands, Ctrl-D ends the chat")
        terminal.converse(talk)
        return 0


Opened = tuple[str, "ChatModel", "SamplingParams", ExitStack]
"""A model's name, the model, its sampling settings, and what must be closed when the chat ends."""


def local_model(
    loader: Loader,
    templates: TemplateOptions,
    session: str | None,
    sampling: dict[str, Any],
    grammar: GrammarOptions,
    bar: Bar,
    look_ahead: bool,
) -> Opened:
    """A model on this machine."""
    chosen = templates.template()
    llm = loader.load(chat=chosen is None)
    from ...dialogue.local import LocalChat

    model = LocalChat(llm, chosen, on_step=bar, look_ahead=look_ahead, grammar=grammar.start(llm))
    kept = ExitStack()
    kept.enter_context(kept_session(llm, session))
    kept.callback(model.close)
    return llm.file.path.name, model, llm.sampling(**sampling), kept


def remote_model(
    loader: Loader,
    templates: TemplateOptions,
    session: str | None,
    sampling: dict[str, Any],
    grammar: GrammarOptions,
    url: str,
    api_key: str | None,
) -> Opened:
    """A model on a server."""
    if grammar:
        raise click.UsageError(
            "--json-schema, --grammar and --regex are for models on this machine, not for --url"
        )
    if loader.asked or templates.asked or session is not None:
        raise click.UsageError(
            "-c, --fit, -t, --backend, -ctk, -ctv, --session, --chat-template and other options about how a model runs are for models"
            " on this machine, not for --url"
        )
    from ...dialogue.remote import RemoteChat
    from ...sampling import SamplingParams

    name = loader.model.name if loader.model else None
    return name or url, RemoteChat(url, api_key, name), SamplingParams(**sampling), ExitStack()
