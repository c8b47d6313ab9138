"""One run of either program for bench_peers.py, in a fresh process: what is measured, and how each program is asked for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import click

PEER = Path(__file__).with_name("llama_cpp_speed.py")
N_CTX = 512
CHUNKS = 8
START_CTX = 4096


class Test(NamedTuple):
    """A row of the table. For tests of `qwencli bench`, `shape` is prompt, generated tokens, depth and sequences; otherwise None."""

    title: str
    unit: str
    shape: tuple[int, int, int, int] | None = None

    def speed(self, value: float) -> float:
        """Return a number that is larger for the better of two values: seconds and memory are better if there is less of them."""
        return value if self.unit == "t/s" else 1 / value


TESTS = {
    "pp512": Test("pp512", "t/s", (512, 0, 0, 1)),
    "tg64": Test("tg64", "t/s", (0, 64, 0, 1)),
    "d4096": Test("tg32 @ d4096", "t/s", (0, 32, 4096, 1)),
    "b8": Test("tg64 b8 @ d128", "t/s", (0, 64, 128, 8)),
    "perplexity": Test(f"perplexity -c {N_CTX}", "t/s"),
    "start": Test(f"first token, context {START_CTX}", "s"),
    "memory": Test(f"peak memory, context {START_CTX}", "MB"),
}
CHOICES = [name for name in TESTS if name != "memory"]
"""The tests that can be chosen. Memory is measured together with "start"."""
Figures = dict[str, float]


class Setting(NamedTuple):
    """How llama.cpp runs, in llama-bench's words: whether it repacks weights as it loads them, and whether it uses flash attention."""

    repack: str
    fa: str

    def __str__(self) -> str:
        return f"repack {self.repack}, fa {self.fa}"


class Case(NamedTuple):
    """What all runs of a comparison share. `text` is the file for perplexity, `python` runs llama.cpp, `n_prompt` is the number of
    tokens of our prompt for "start"."""

    model: str
    threads: int
    text: str
    python: str
    n_prompt: int = 0


class Run(NamedTuple):
    """A process that has ended: its output, the seconds until its first output, and its peak resident memory in MB."""

    output: str
    first: float
    memory: float


class Failed(click.ClickException):
    """A process ended with an error. `reason` is its last message, or the signal that killed it."""

    def __init__(self, command: list[str], reason: str) -> None:
        super().__init__(f"{' '.join(command)}: {reason}")
        self.reason = reason


class PeerFailed(Failed):
    """llama.cpp's process did."""


def run(command: list[str], error: type[Failed] = Failed) -> Run:
    """Run a command to its end. Raises `error` if it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        try:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL
            )
        except OSError as cause:
            raise error(command[:1], cause.strerror or str(cause)) from cause
        assert process.stdout
        first = process.stdout.read(1)
        seconds = time.perf_counter() - start
        output = first + process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode < 0:
            raise error(command, f"killed by {signal.Signals(-process.returncode).name}")
        if process.returncode:
            errors.seek(0)
            raise error(
                command, (errors.read().strip() or f"exit code {process.returncode}").splitlines()[-1]
            )
    return Run(output.decode(), seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6)


def ours(test: str, case: Case) -> Figures:
    common = ["-m", case.model, "-t", str(case.threads)]
    if shape := TESTS[test].shape:
        options = [word for flag, n in zip(("-p", "-n", "-d", "-npl"), shape) for word in (flag, str(n))]
        facts = json.loads(qwencli("bench", *common, *options, "-r", "1", "-o", "json").output)[0]
        return {
            test: facts["avg_ts"],
            f"{test} bandwidth": facts["bandwidth"],
            f"{test} limit": facts["machine_bandwidth"],
        }
    if test == "perplexity":
        options = ["-f", case.text, "-c", str(N_CTX), "--chunks", str(CHUNKS), "--json"]
        return {test: N_CTX * CHUNKS / json.loads(qwencli(test, *common, *options).output)["seconds"]}
    done = qwencli("run", *common, "-p", "Hi", "-n", "1", "--temp", "0", "-c", str(START_CTX))
    return {"start": done.first, "memory": done.memory}


def theirs(test: str, case: Case, setting: Setting) -> Figures:
    """Raises PeerFailed if llama.cpp fails or crashes."""
    if shape := TESTS[test].shape:
        what: tuple[object, ...] = ("speed", *shape)
    elif test == "perplexity":
        what = (test, N_CTX, CHUNKS)
    else:
        what = (test, case.n_prompt, START_CTX)
    options = ["--repack", setting.repack, "-fa", setting.fa]
    command = [case.python, str(PEER), case.model, str(case.threads), *map(str, what), *options]
    done = run(command, PeerFailed)
    facts = json.loads(done.output)
    return {"start": facts["s"], "memory": done.memory} if test == "start" else {test: facts["t/s"]}


def prepare(case: Case, perplexity: bool) -> Case:
    """Compile missing kernels, which isn't measured. Returns the case with the number of tokens of "Hi" in the model's chat template."""
    common = ["-m", case.model, "-t", str(case.threads)]
    if perplexity:
        qwencli("perplexity", *common, "-f", case.text, "-c", str(N_CTX), "--chunks", "1")
    done = qwencli("run", *common, "-p", "Hi", "-n", "2", "--temp", "0", "--json")
    return case._replace(n_prompt=json.loads(done.output)["prompt_tokens"])


def qwencli(*arguments: str) -> Run:
    return run([sys.executable, "-m", "qwencli", *arguments])


def peer_version(python: str) -> str:
    """Return llama-cpp-python's version. Raises click.ClickException if `python` can't import it."""
    try:
        return run([python, "-c", "import llama_cpp; print(llama_cpp.__version__)"]).output.strip()
    except Failed as error:
        hint = "install the extra `peers`, or name a Python that has llama-cpp-python with --peer-python"
        raise click.ClickException(f"{error.message}: {hint}") from error
