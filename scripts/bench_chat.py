#!/usr/bin/env python3
"""How soon a chat's second turn starts, and a session in a new process: seconds to the first token, medians.

    scripts/bench_chat.py model.gguf [--tokens 2000] [--runs 5]

The messages of each turn are short; `--tokens` is the length of the history before them. Compile the kernels first:
`qwencli warmup -m model.gguf`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qwencli.dialogue.dialogue import Settings
from qwencli.dialogue.local import LocalChat
from qwencli.llm import LLM
from qwencli.sampling import SamplingParams
from qwencli.text.chat.template import ChatTemplate

QUESTION = "What does the second of these sentences say about the weather, and why is that so?"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=2000, help="length of the history")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    llm = LLM(args.model)
    text = history(llm, args.tokens)
    show(
        "second turn, ChatML",
        [second_turn(llm, text, ChatTemplate.named("chatml")) for _ in range(args.runs)],
    )
    if llm.chat_template:
        show(
            "second turn, the model's template",
            [second_turn(llm, text, llm.chat_template) for _ in range(args.runs)],
        )
        show(
            "the same after a pause, as at a terminal",
            [second_turn(llm, text, llm.chat_template, pause=True) for _ in range(args.runs)],
        )
    with tempfile.TemporaryDirectory() as folder:
        show(
            "cold process without a session, a short prompt",
            [cold(args.model, QUESTION) for _ in range(args.runs)],
        )
        session = ["--session", str(Path(folder) / "s")]
        show("the session's first run", [cold(args.model, text, *session)])
        show(
            "cold process with the session",
            [cold(args.model, text + " " + QUESTION, *session) for _ in range(args.runs)],
        )
        print(f"session: {Path(session[1]).stat().st_size / 1e6:.1f} MB")


def show(what: str, seconds: list[float]) -> None:
    print(
        f"{what}: {statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})", flush=True
    )


def history(llm: LLM, n_tokens: int) -> str:
    sentence = "The sun was shining on the sea, and the day that followed was as warm as any in that year. "
    per_sentence = len(llm.tokenizer.encode(sentence * 10)) / 10
    return (sentence * round(n_tokens / per_sentence)).strip()


def second_turn(llm: LLM, text: str, template: ChatTemplate, pause: bool = False) -> float:
    """Seconds from the second question to the first token of its answer; `pause`: after time for the user to read and type."""
    while llm.engine.prefixes.make_room():
        pass
    chat = LocalChat(llm, template, look_ahead=pause)
    settings = Settings(SamplingParams(seed=1), 24, think=False)
    messages: list[dict[str, str]] = [{"role": "user", "content": text}]
    list(chat.answer(messages, settings))
    chat.wait()
    messages += [
        {"role": "assistant", "content": llm.tokenizer.decode(chat.sequence.generated)},
        {"role": "user", "content": QUESTION},
    ]
    times: list[float] = []
    chat.on_token = lambda place: times.append(time.perf_counter())
    start = time.perf_counter()
    list(chat.answer(messages, settings))
    chat.close()
    return times[0] - start


def cold(model: Path, prompt: str, *options: str) -> float:
    """Seconds from the start of a process to the first byte of its answer. Raises SystemExit if it fails."""
    command = [
        sys.executable,
        "-m",
        "qwencli",
        "run",
        "-q",
        "--raw",
        "-n",
        "1",
        "-m",
        str(model),
        "-f",
        "-",
        *options,
    ]
    start = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(prompt.encode())
        process.stdin.close()
        process.stdout.read(1)
        seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return seconds


if __name__ == "__main__":
    main()
