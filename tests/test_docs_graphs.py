"""docs/graphs.md stays true: its programs and commands run, with the output shown, and its pictures are what its commands draw.

Programs are blocks of `python`. They run one after the other in one namespace; the block of `text` after one is what it prints. Commands
are the lines that begin with `$ ` in blocks of `console`; the lines after one are what it writes to stdout. Output is compared exactly.
For commands that describe or measure the machine (ABOUT_THE_MACHINE), only the first words of lines are compared, such as a row's name.
Blocks that name the devices cpus:0 and cpus:1 need these CPUs.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from qwencli.hub.places import EMBEDDED, VARIABLE
from qwencli.system.host import Host

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/graphs.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.+?)^```\n(?:```text\n(.*?)^```\n)?", TEXT, re.M | re.S)
COMMANDS = re.findall(r"^```console\n\$ (.+)\n((?:.*\n)*?)```\n", TEXT, re.M)
PICTURES = [(line, name) for line, _ in COMMANDS for name in re.findall(r"-o (docs/\S+)$", line)]
ABOUT_THE_MACHINE = "qwencli devices", "--profile", "--buffers"


def check_cpus(block: str) -> None:
    """Skip the test if a block names CPUs that aren't there."""
    named = {int(number) for number in re.findall(r"cpus:(\d+)", block)}
    if missing := named - Host().allowed():
        pytest.skip(f"this process may not use the CPUs {sorted(missing)}")


@pytest.fixture(scope="module")
def printed() -> Callable[[int], str]:
    """printed(i): what program i prints, after all that come before it."""
    namespace: dict[str, Any] = {}
    found: list[str] = []

    def printed(number: int) -> str:
        for program, _ in PROGRAMS[len(found) : number + 1]:
            out = StringIO()
            with redirect_stdout(out):
                exec(program, namespace)
            found.append(out.getvalue())
        return found[number]

    return printed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, Path]]:
    """run(line): what a line of shell writes to stdout, and the folder in which it ran."""
    if os.name != "posix":
        pytest.skip("docs/graphs.md shows a POSIX shell")
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "docs").mkdir()
    program = folder / "bin/qwencli"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m qwencli "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"

    @cache
    def run(line: str) -> tuple[str, Path]:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=folder,
            env={**os.environ, "PATH": path, VARIABLE: str(EMBEDDED)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, folder

    return run


def beginning(line: str) -> str:
    """The first words of a line, without numbers that begin it."""
    return re.split(r"[:,]|(?<=\S)  ", line)[0].strip(" 0123456789")


def test_every_block_is_a_program_a_command_or_what_a_program_prints() -> None:
    assert len(PROGRAMS) == TEXT.count("```python\n") > 10
    assert sum(bool(expected) for _, expected in PROGRAMS) == TEXT.count("```text\n") > 10
    assert len(COMMANDS) == TEXT.count("```console\n") == TEXT.count("\n$ ") > 5
    assert TEXT.count("```") == 2 * (len(PROGRAMS) + TEXT.count("```text\n") + len(COMMANDS))
    assert len(PICTURES) == TEXT.count(".svg)") == 2


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_programs_print_what_is_shown(
    number: int, printed: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_cpus("".join(program for program, _ in PROGRAMS[: number + 1]))
    monkeypatch.chdir(ROOT)  # the demo model is named as it is found there
    assert printed(number) == PROGRAMS[number][1]


@pytest.mark.parametrize(("line", "expected"), COMMANDS, ids=[line for line, _ in COMMANDS])
def test_commands_write_what_is_shown(
    line: str, expected: str, run: Callable[[str], tuple[str, Path]]
) -> None:
    check_cpus(line)
    got, _ = run(line)
    if any(word in line for word in ABOUT_THE_MACHINE):
        shown, found = ({beginning(each) for each in text.splitlines()} for text in (expected, got))
        assert len(shown) > 5
        assert shown <= found
    else:
        assert got == expected


@pytest.mark.parametrize(("line", "name"), PICTURES, ids=[name for _, name in PICTURES])
def test_pictures_are_what_the_commands_draw(
    line: str, name: str, run: Callable[[str], tuple[str, Path]]
) -> None:
    check_cpus(line)
    _, folder = run(line)
    assert (folder / name).read_bytes() == (ROOT / name).read_bytes(), (
        f"in a checkout, `{line}` draws it anew: look at it"
    )


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[)#]", TEXT):
        assert (ROOT / "docs" / target).exists(), f"docs/graphs.md links to {target}"
