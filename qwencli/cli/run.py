"""`qwencli run`"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from ..units import size
from ._answers import (
    AnswerPrinter,
    TemplateOptions,
    ThinkingOptions,
    answer_fields,
    length_option,
    template_options,
    thinking_options,
)
from ._bar import Bar
from ._buffers import table
from ._grammar import GrammarOptions, grammar_options
from ._llama.command import LlamaCommand, llama_option
from ._loading import Loader, kept_session, loading_options, session_option
from ._options import example, json_option
from ._probabilities import Probabilities, probability_options
from ._sampling import sampling_options
from ._streams import read_text, say, unescape, warn, write_text

if TYPE_CHECKING:
    from ..dialogue.dialogue import CollectedAnswer, Events
    from ..dialogue.local import LocalChat
    from ..llm import LLM


@click.command(
    cls=LlamaCommand,
    epilog=example(
        'qwencli run -p "Once upon a time"',
        "qwencli run -m model.gguf -p 'Say hello' -n 64 --temp 0",
        "echo 'One day' | qwencli run --raw -q > story.txt",
    ),
)
@click.option(
    "-p", "--prompt", help='The prompt. \\n, \\t, \\", \\\\ and \\x41 stand for characters, see --no-escape.'
)
@click.option(
    "-f", "--file", metavar="FILE", help="Read the prompt from a file; - is stdin, which is also the default."
)
@length_option
@loading_options
@click.option("--system", metavar="TEXT", help="A system message before the prompt.")
@template_options
@thinking_options
@click.option(
    "--raw",
    is_flag=True,
    help="Continue the prompt as it is, without the chat template; control tokens in it are recognised.",
)
@llama_option(
    "-r",
    "--stop",
    "stop",
    metavar="STR",
    multiple=True,
    help="End at this text, which is left out. May be given several times.",
)
@llama_option("--ignore-eos", is_flag=True, help="Go on where the model would end the answer.")
@llama_option(
    "--escape",
    default=True,
    help="Whether backslashes in -p, --system and --stop stand for characters. Default: they do.",
)
@grammar_options
@session_option
@sampling_options
@probability_options
@json_option
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Show progress and speed even if stderr isn't a terminal, and at the end what is in memory.",
)
def run(
    prompt: str | None,
    file: str | None,
    max_tokens: int | None,
    loader: Loader,
    system: str | None,
    templates: TemplateOptions,
    thinking: ThinkingOptions,
    raw: bool,
    stop: tuple[str, ...],
    ignore_eos: bool,
    escape: bool,
    grammar: GrammarOptions,
    session: str | None,
    sampling: dict[str, Any],
    probabilities: Probabilities,
    as_json: bool,
    verbose: bool,
) -> int:
    """Generate text that answers or continues a prompt.

    If the model has a chat template the prompt is one user turn; --raw continues it as it is. Only the generated text goes to stdout.
    """
    if prompt is not None and file is not None:
        raise click.UsageError("give -p or -f, not both")
    if loader.quiet and verbose:
        raise click.UsageError("give -q or -v, not both")
    if raw and (system is not None or templates.asked or thinking.asked):
        raise click.UsageError(
            "--system, --chat-template and the options for thinking need a chat template, which --raw does without"
        )
    if probabilities.logprobs is not None and not as_json:
        raise click.UsageError("--logprobs needs --json, which shows them")
    if prompt is None and file is None and sys.stdin.isatty():
        raise click.UsageError("give a prompt with -p, -f or on stdin")
    if prompt is None:
        prompt = read_text(file).removesuffix("\n")  # as llama.cpp: the last newline of a file isn't meant
    elif escape:
        prompt = unescape(prompt)
    if escape:
        system = system and unescape(system)
        stop = tuple(map(unescape, stop))
    if not prompt:
        raise InputError("the prompt is empty, expected text in -p, -f or on stdin")

    probabilities.check()
    template = templates.template()
    llm = loader.load(chat=not raw and template is None)
    if verbose:
        for line in llm.splits():
            say(line)
    if not raw and template is None and llm.chat_template is None:
        raw = True
        if not loader.quiet and (system is not None or thinking.asked):
            warn("the model has no chat template, so --system and the options for thinking are ignored")

    from ..dialogue.dialogue import Settings
    from ..dialogue.local import LocalChat

    params = llm.sampling(**sampling, **probabilities.sampling())
    settings = Settings(params, max_tokens, thinking.think, thinking.reasoning_budget)
    bar = Bar(not loader.quiet and (verbose or sys.stderr.isatty()), delay=1, desc="prompt", unit="tok")
    chat = LocalChat(llm, template, stop, ignore_eos, bar, grammar=grammar.start(llm))
    chat.on_token = lambda place: probabilities.explanation(chat.sequence, place, llm.tokenizer)
    with kept_session(llm, session):
        events = chat.go_on(prompt, settings) if raw else chat.answer(messages(prompt, system), settings)
        code = generate(chat, events, bar, thinking, probabilities, as_json)
    if verbose:
        show_memory(llm)
    probabilities.write_page(chat.sequence, llm.tokenizer, llm.file.path.name, prompt)
    return code


def messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system is not None else []
    return [*first, {"role": "user", "content": prompt}]


def generate(
    chat: LocalChat,
    events: Events,
    bar: Bar,
    thinking: ThinkingOptions,
    probabilities: Probabilities,
    as_json: bool,
) -> int:
    """Stream the answer to stdout, or collect it for one JSON object. Returns the exit code."""
    from ..dialogue.dialogue import CollectedAnswer

    answer = CollectedAnswer()
    printer = AnswerPrinter(thinking.hide_thinking)
    held = []
    hold = probabilities.explain and sys.stdout.isatty()  # the lines would cut the text into pieces
    cancelled = False
    try:
        with closing(events):
            for event in events:
                bar.close()
                answer.add(event)
                held.append(event)
                if not as_json and not hold:
                    printer.add(held.pop())
    except KeyboardInterrupt:
        cancelled = True
    bar.close()
    if as_json:
        write_text(json.dumps(as_object(chat, answer, probabilities), ensure_ascii=False) + "\n")
    else:
        for event in held:
            printer.add(event)
        printer.end()
    if bar.shown:
        print(closing_line(chat), file=sys.stderr)
    return 130 if cancelled else 0


def as_object(chat: LocalChat, answer: CollectedAnswer, probabilities: Probabilities) -> dict[str, Any]:
    """An answer as --json shows it."""
    seq = chat.sequence
    about = {"tokens": seq.generated, "prompt_tokens": seq.n_prompt, "stop_reason": seq.stop_reason}
    return (
        answer_fields(answer)
        | about
        | probabilities.json(seq, chat.llm.tokenizer)
        | {"timings": chat.stats()}
    )


def closing_line(chat: LocalChat) -> str:
    t = chat.stats()
    memory = peak_memory()
    cached = f"{t['cache_n']:.0f} of them cached, " if t["cache_n"] else ""
    parts = [
        f"prompt {t['prompt_n'] + t['cache_n']:.0f} tokens, {cached}{t['prompt_per_second']:.1f} t/s",
        f"generation {t['predicted_n']:.0f} tokens, {t['predicted_per_second']:.1f} t/s",
        f"stopped by {chat.stop_reason}",
    ]
    return "; ".join(parts + ([f"memory {size(memory)}"] if memory else []))


def show_memory(llm: LLM) -> None:
    """Say which buffers there are, and what of them is in memory."""
    from ..machine.buffers import memory_report

    for line in table(memory_report(llm)):
        say(line)


def peak_memory() -> int | None:
    """Peak resident bytes of this process, None where the system has no getrusage."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
