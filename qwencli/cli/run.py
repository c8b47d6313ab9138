"""`qwencli run`"""
from __future__ import annotations

import json
import re
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from ._common import (
    CompileBar,
    backend_option,
    check_context,
    choose_model,
    example,
    json_option,
    mmap_option,
    model_option,
    read_text,
    sampling_options,
    say,
    size,
    threads_option,
    warn,
    write_text,
)

if TYPE_CHECKING:
    from ..llm import LLM, Completion

ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}


@click.command(epilog=example('qwencli run -p "Once upon a time"',
                              "qwencli run -m model.gguf -p 'Say hello' -n 64 --temp 0",
                              "echo 'One day' | qwencli run --raw -q > story.txt"))
@model_option
@click.option("-p", "--prompt", help="The prompt. \\n, \\t, \\\", \\\\ and \\x41 stand for characters, see --no-escape.")
@click.option("-f", "--file", metavar="FILE", help="Read the prompt from a file; - is stdin, which is also the default.")
@click.option("-n", "--predict", "n_predict", type=click.IntRange(-1, 2**31 - 1), default=-1,
              help="Generate at most N tokens. Default: until the context is full.")
@click.option("-c", "--ctx-size", "n_ctx", type=click.IntRange(1, 2**30),
              help="Tokens of prompt and answer together. Default: the model's context.")
@threads_option
@backend_option
@sampling_options
@click.option("--system", metavar="TEXT", help="A system message before the prompt.")
@click.option("--stop", metavar="STR", multiple=True, help="End at this text, which is left out. May be given several times.")
@click.option("--raw", is_flag=True,
              help="Continue the prompt as it stands, without the chat template; control tokens in it are recognised.")
@click.option("--no-think", is_flag=True, help="Ask the chat template for an answer without thinking.")
@click.option("--ignore-eos", is_flag=True, help="Go on where the model would end.")
@click.option("--no-escape", is_flag=True, help="Take backslashes in -p, --system and --stop as they stand.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Write nothing to stderr but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Show progress and speed also where stderr is no terminal.")
@mmap_option
def run(model: str | None, prompt: str | None, file: str | None, n_predict: int, n_ctx: int | None, threads: int | None, backend: str,
        sampling: dict[str, Any], system: str | None, stop: tuple[str, ...], raw: bool, no_think: bool, ignore_eos: bool,
        no_escape: bool, as_json: bool, quiet: bool, verbose: bool, no_mmap: bool) -> int:
    """Generate text that answers or continues a prompt.

    If the model has a chat template the prompt is one user turn; --raw continues it as it stands. The generated text alone goes to stdout.
    """
    if prompt is not None and file is not None:
        raise click.UsageError("give -p or -f, not both")
    if quiet and verbose:
        raise click.UsageError("give -q or -v, not both")
    if raw and (system is not None or no_think):
        raise click.UsageError("--system and --no-think need the chat template, which --raw leaves out")
    if prompt is None and file is None and sys.stdin.isatty():
        raise click.UsageError("give a prompt with -p, -f or on stdin")
    if prompt is None:
        prompt = read_text(file).removesuffix("\n")  # as llama.cpp: files end with a newline that is not meant
    elif not no_escape:
        prompt = unescape(prompt)
    if not no_escape:
        system, stop = system and unescape(system), tuple(map(unescape, stop))
    if not prompt:
        raise InputError("the prompt is empty, expected text in -p, -f or on stdin")

    chosen = choose_model(model, quiet)
    from ..llm import LLM, Completion
    llm = LLM(chosen.path, n_ctx, threads, not no_mmap, backend, None if quiet else say, None if quiet else CompileBar())
    if not quiet:
        check_context(llm.engine.n_ctx, llm.model.config.n_ctx)
    params = llm.sampling(**sampling)
    tokens = prompt_tokens(llm, prompt, system, raw, no_think, quiet)
    bar = PromptBar(len(tokens), shown=not quiet and (verbose or sys.stderr.isatty()))
    completion = Completion(llm, tokens, params, None if n_predict < 0 else n_predict, stop, ignore_eos, bar.update)
    return generate(completion, bar, as_json)


def prompt_tokens(llm: LLM, prompt: str, system: str | None, raw: bool, no_think: bool, quiet: bool) -> list[int]:
    if raw or llm.chat_template is None:
        if not quiet and (system is not None or no_think):
            warn("the model has no chat template, so --system and --no-think are left out")
        return llm.tokenizer.encode(prompt, add_special=True, parse_special=True)
    messages = [{"role": "system", "content": system}] if system is not None else []
    return llm.chat_template.encode(llm.tokenizer, [*messages, {"role": "user", "content": prompt}], enable_thinking=not no_think)


def generate(completion: Completion, bar: PromptBar, as_json: bool) -> int:
    """Stream the answer to stdout, or collect it for one JSON object. Returns the exit code."""
    pieces = []
    seq = completion.sequence
    try:
        for piece in completion.run():
            bar.close()
            pieces.append(piece)
            if not as_json:
                write_text(piece)
    except KeyboardInterrupt:
        seq.stop_reason = "cancelled"
    bar.close()
    if as_json:
        answer = {"text": "".join(pieces), "tokens": seq.generated, "prompt_tokens": seq.n_prompt, "stop_reason": seq.stop_reason,
                  "timings": timings(completion)}
        write_text(json.dumps(answer, ensure_ascii=False) + "\n")
    elif sys.stdout.isatty():
        write_text("\n")
    if bar.shown:
        print(closing_line(completion), file=sys.stderr)
    return 130 if seq.stop_reason == "cancelled" else 0


def timings(completion: Completion) -> dict[str, float]:
    """llama.cpp's names. The prompt's time includes the first token's sampling."""
    seq = completion.sequence
    prompt_n, predicted_n = seq.n_prompt, max(0, len(seq.generated) - 1)
    return {"prompt_n": prompt_n, "prompt_ms": 1e3 * seq.prompt_seconds,
            "prompt_per_second": prompt_n / seq.prompt_seconds if seq.prompt_seconds else 0.0,
            "predicted_n": len(seq.generated), "predicted_ms": 1e3 * seq.generation_seconds,
            "predicted_per_second": predicted_n / seq.generation_seconds if seq.generation_seconds else 0.0}


def closing_line(completion: Completion) -> str:
    t, memory = timings(completion), peak_memory()
    parts = [f"prompt {t['prompt_n']} tokens, {t['prompt_per_second']:.1f} t/s",
             f"generation {t['predicted_n']} tokens, {t['predicted_per_second']:.1f} t/s",
             f"stopped by {completion.sequence.stop_reason}"]
    return "; ".join(parts + ([f"memory {size(memory)}"] if memory else []))


def peak_memory() -> int | None:
    """Peak resident bytes of this process, None where the system has no getrusage."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PromptBar:
    """The progress of a prompt on stderr, from its second second on."""

    def __init__(self, n_prompt: int, shown: bool) -> None:
        self.shown, self._n_prompt, self._start = shown, n_prompt, time.monotonic()
        self._bar: Any = None

    def update(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif self.shown and done < self._n_prompt and time.monotonic() - self._start > 1:
            from tqdm import tqdm  # takes 20 ms: not on the way to a first token that comes soon
            self._bar = tqdm(total=self._n_prompt, initial=done, desc="prompt", unit="tok", leave=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def unescape(text: str) -> str:
    r"""Replace \n, \r, \t, \', \", \\ and \xHH by what they stand for, as llama.cpp does; other backslashes stay.

    Raises InputError if the bytes written as \xHH are no UTF-8.
    """
    def replace(match: re.Match[bytes]) -> bytes:
        return ESCAPES.get(match[1]) or bytes([int(match[1][1:], 16)])
    try:
        return re.sub(rb"\\([nrt'\"\\]|x[0-9a-fA-F]{2})", replace, text.encode()).decode()
    except UnicodeError:
        raise InputError(f"the text {text[:40]!r} is no valid UTF-8, or its escapes make it so") from None
