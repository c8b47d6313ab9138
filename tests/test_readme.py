"""README.md and the examples in --help stay true: commands run, with the output shown, flags exist, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import click
import pytest

from qwencli.cli import cli
from qwencli.hub.places import EMBEDDED, VARIABLE

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```sh\n(.+)\n```$", README, re.M)
"""The lines of shell; each block has one, so that it can be copied whole."""
SHOWN = re.findall(r"^```sh\n(.+)\n```\n```text\n((?:.*\n)+?)```$", README, re.M)
"""Those whose output follows, with it."""
PROGRAMS = re.findall(r"^```python\n(.+?)^```$", README, re.M | re.S)
"""In Python: continuing a text, and tensors alone."""
EXAMPLES = [
    line.strip()
    for name in cli.list_commands(click.Context(cli))
    for line in (getattr(cli.get_command(click.Context(cli), name), "epilog", None) or "").splitlines()
    if "qwencli" in line
]
"""Those that `--help` shows."""
LLAMA_CPP_DIFFERS = 1.5e-3
"""How far a perplexity may be from llama.cpp's on quantized weights, relative: backends differ in how they quantize activations."""


def options(name: str) -> set[str]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"there is no command {name}"
    return {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help"}


def calls(line: str) -> list[list[str]]:
    """The words after `qwencli` in each call of a shell line: its subcommand and arguments."""
    words = list(shlex.shlex(line, posix=True, punctuation_chars=True))
    found: list[list[str]] = []
    inside = False
    for word in words:
        if re.fullmatch(r"(.*/)?qwencli", word):
            found.append([])
            inside = True
        elif not word.strip("();<>|&"):
            inside = False
        elif inside:
            found[-1].append(word)
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `qwencli` is the package under test, `python` is this one, and the model is the embedded one."""
    if os.name != "posix":
        pytest.skip("README.md shows a POSIX shell")
    folder = tmp_path_factory.mktemp("bin")
    for name, arguments in ("qwencli", "-m qwencli"), ("python", ""):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        program.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", VARIABLE: str(EMBEDDED)}


@pytest.fixture(scope="module")
def run(environment: dict[str, str]) -> Callable[[str], str]:
    """run(line): what a line of shell writes to stdout. A line that several tests need runs once."""

    @cache
    def run(line: str) -> str:
        command = ["bash", "-o", "pipefail", "-c", line]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_each_block_of_shell_is_one_line() -> None:
    assert len(COMMANDS) == README.count("```sh\n") > 5
    assert len(SHOWN) == README.count("```text\n") > 5
    assert not any("install" in line for line, _ in SHOWN)  # these are run here, and must change nothing


def test_the_readme_shows_every_command() -> None:
    used = {call[0] for line in COMMANDS for call in calls(line)}
    assert used == set(cli.list_commands(click.Context(cli)))


@pytest.mark.parametrize("line", [*COMMANDS, *EXAMPLES])
def test_flags_of_the_commands_exist(line: str) -> None:
    for name, *arguments in calls(line):
        assert {word for word in arguments if word.startswith("-") and word != "-"} <= options(name)


def test_flags_in_the_prose_exist() -> None:
    prose = re.sub(r"^```.+?^```$", "", README, flags=re.M | re.S)
    mentioned = set(re.findall(r"`(--?[a-z][a-z-]*)`", prose))
    assert mentioned <= set().union(*map(options, cli.list_commands(click.Context(cli))))
    assert "--no-mmap" in mentioned


@pytest.mark.parametrize(("line", "expected"), [pytest.param(*shown, id=shown[0]) for shown in SHOWN])
def test_output_is_what_the_readme_shows(line: str, expected: str, run: Callable[[str], str]) -> None:
    """`...` in the README stands for anything; perplexities may differ as little as llama.cpp's do."""
    got, expected = run(line).rstrip("\n"), expected.rstrip("\n")
    if "perplexity" in line:
        number = re.compile(r"\d+\.\d+")
        assert number.sub("", got) == number.sub("", expected)
        *running, error = map(float, number.findall(expected))
        *running_now, error_now = map(float, number.findall(got))
        assert running_now == pytest.approx(running, rel=LLAMA_CPP_DIFFERS)
        assert error_now == pytest.approx(error, rel=0.02)
    else:
        assert re.fullmatch(".*".join(map(re.escape, expected.split("..."))), got, re.S), got


@pytest.mark.parametrize("line", ["qwencli doctor", "qwencli devices --measure"])
def test_what_is_found_has_the_rows_that_the_readme_shows(line: str, run: Callable[[str], str]) -> None:
    """What they say is about the machine."""
    (shown,) = re.findall(rf"^```sh\n{line}\n```\n```\n((?:.*\n)+?)```$", README, re.M)
    names, got = re.findall(r"^  (\w.{12}) ", shown, re.M), run(line)
    assert len(names) > 8
    assert all(f"\n  {name} " in f"\n{got}" for name in names)


@pytest.mark.parametrize(
    "line",
    [
        line
        for line in EXAMPLES
        if not re.search(r" -[mf] |\.gguf|>.*\.txt|bartowski/|chat$|serve$|--url", line)
    ],
)
def test_examples_that_need_no_file_run_on_the_embedded_model(line: str, run: Callable[[str], str]) -> None:
    assert run(line)


def test_perplexity_is_llama_cpps() -> None:
    """The figure in the text comes from llama-cpp-python 0.3.36, for the same file, text and context, summed as llama-perplexity does."""
    (theirs,) = re.findall(r"its own figure here is ([\d.]+)\)", README)
    (ours,) = re.findall(r"Final estimate: PPL = ([\d.]+)", README)
    assert float(ours) == pytest.approx(float(theirs), rel=LLAMA_CPP_DIFFERS)


def test_the_library_continues_as_the_command_does(
    tmp_path: Path, environment: dict[str, str], run: Callable[[str], str]
) -> None:
    program, _ = PROGRAMS
    shutil.copy(EMBEDDED, tmp_path / "model.gguf")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 100
    assert done.stdout == run('qwencli run --raw -p "Once upon a time" -n 64 --temp 0')


def test_tensors_alone_give_what_the_readme_shows() -> None:
    _, program = PROGRAMS
    (shown,) = re.findall(r"^```python\n[^`]+^```\n```\n(.+?)^```$", README, re.M | re.S)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown


def test_links_lead_somewhere() -> None:
    for name in "README.md", "CONTRIBUTING.md":
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{name} links to {target}"


def test_ci_finds_its_command() -> None:
    """`.ci/run` runs the one line of the README that has scripts/check in it."""
    assert sum("scripts/check" in line for line in COMMANDS) == 1
    assert os.access(ROOT / "scripts/check", os.X_OK)
