"""What all commands have in common: help, wrong usage, streams, signals, and how little they import."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import COMMANDS, IDS, QWENCLI, TEXT, Call, allow_ctrl_c, process, read_terminal

import qwencli


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(call: Call, command: str) -> None:
    for flag in "--help", "-h":
        code, out, err = call(command, flag)
        assert (code, err) == (0, "")
        assert re.search(rf"Examples:\n(  .*\n)*? .*qwencli {command} ", out)


def test_help_lists_the_commands(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert [
        line.split()[0]
        for line in out.split("Commands:\n")[1].split("\n\n")[0].splitlines()
        if line[2:3].isalpha()
    ] == COMMANDS
    assert 'qwencli run -p "Once upon a time"' in out
    assert call()[:2] == (2, out)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX terminals")
def test_a_terminal_without_a_command_is_shown_what_can_be_done() -> None:
    terminal, other_end = os.openpty()
    try:
        assert process(stdout=other_end).returncode == 0
        lines = read_terminal(terminal, b"qwencli run --help").decode().splitlines()
    finally:
        os.close(terminal)
        os.close(other_end)
    assert len(lines) < 24
    assert max(map(len, lines)) < 80
    shown = re.findall(r"^  qwencli (\S+)", "\n".join(lines), re.M)
    assert len(shown) > 4
    assert set(shown) <= {*COMMANDS, "--help"}


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("rnu", " Did you mean run?"),
        ("tokenise", " Did you mean tokenize or detokenize?"),
        ("frobnicate", ""),
        ("_options", ""),
    ],
)
def test_unknown_commands_suggest_near_ones(call: Call, typed: str, hint: str) -> None:
    code, out, err = call(typed)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"Error: No such command '{typed}'.{hint}"


def test_version() -> None:
    for command in [QWENCLI], [sys.executable, "-m", "qwencli"]:
        out = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60).stdout
        assert qwencli.__version__ in out


@pytest.mark.parametrize(
    "args",
    [["--help"], ["run", "--help"], ["perplexity", "--help"], ["info"], ["info", "--json", "--tensors"]],
)
def test_what_needs_no_numbers_imports_none(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QWENCLI_MODEL", raising=False)
    code = (
        "import sys; from qwencli.cli import main; main(sys.argv[1:])\n"
        "heavy = {'numba', 'llvmlite', 'tokenizers', 'numpy', 'gguf', 'jinja2', 'tqdm', 'threadpoolctl'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "args",
    [
        "run -p x --temp -1",
        "run -p x --temp 101",
        "run -p x --temp nan",
        "run -p x --temp inf",
        "run -p x --temp hot",
        "run -p x --top-k -1",
        "run -p x --top-k 1.5",
        "run -p x --top-p 1.01",
        "run -p x --top-p nan",
        "run -p x --min-p -0.1",
        "run -p x --repeat-penalty 0",
        "run -p x --presence-penalty 101",
        "run -p x --seed x",
        "run -p x -n -2",
        "run -p x -c -1",
        "run -p x -t -2",
        "run -p x -f y",
        "run -p x -q -v",
        "run -p x --raw --system y",
        "run -p x --raw --no-think",
        "run -p x y",
        "run --frobnicate",
        "run -p",
        "tokenize x -f y",
        "tokenize x --ids --json",
        "tokenize x y",
        "detokenize -1",
        "perplexity",
        "perplexity -f x -c 3",
        "perplexity -f x -b 0",
        "perplexity -f x --chunks 0",
        "info x y",
        "frobnicate",
        "--frobnicate",
        "_options",
        "__init__",
    ],
)
def test_wrong_usage(call: Call, args: str) -> None:
    command, *options = args.split()
    done = call(
        command, *(["-m", "none.gguf"] if command in COMMANDS and command != "info" else []), *options
    )
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(("Usage: qwencli", "Error: Option '-p' requires an argument."))
    assert "none.gguf" not in done.err


def test_texts_that_are_no_utf8_or_no_file(call: Call, story: Path, tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9 au lait")
    cases = {
        latin: "not UTF-8 text: byte 0xe9 at offset 3",
        tmp_path: "cannot be read: Is a directory",
        tmp_path / "none": "cannot be read: No such file or directory",
    }
    for command in (
        ("run", "-q", "-m", story, "-f"),
        ("tokenize", "-m", story, "-f"),
        ("perplexity", "-m", story, "-f"),
    ):
        for path, expected in cases.items():
            assert call(*command, path) == (1, "", f"qwencli: error: {path}: {expected}\n")
        assert call(*command, "-", stdin=b"\xff")[::2] == (
            1,
            "qwencli: error: stdin: not UTF-8 text: byte 0xff at offset 0\n",
        )


def test_a_closed_pipe_is_no_error(story: Path) -> None:
    args = [
        QWENCLI,
        "run",
        "-m",
        str(story),
        "-p",
        "x",
        "--temp",
        "0",
        "--ignore-eos",
        "-q",
        "-c",
        str(2**20),
    ]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.read(10) == TEXT[:10].encode()
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(60) == 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    "options", ["", "-t 2 -tb 3 --cpu-range 0- --cpu-strict 1 --prio -1 --poll 100 --mlock"]
)
def test_ctrl_c_keeps_what_was_written(story: Path, options: str) -> None:
    """Steps run on the main thread, or with places or priorities on one of their own."""
    args = [
        QWENCLI,
        "run",
        "-m",
        str(story),
        "-p",
        "x",
        "--temp",
        "0",
        "--ignore-eos",
        "-q",
        "-c",
        str(2**20),
        *options.split(),
        *options.split(),
    ]
    with subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=allow_ctrl_c
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        begin = child.stdout.read(50)
        child.send_signal(signal.SIGINT)
        text = (begin + child.stdout.read()).decode()
        assert child.stderr.read() == b""
        assert child.wait(60) == 130
    assert len(text) > 40
    assert text == (TEXT * (len(text) // len(TEXT) + 1))[: len(text)]


AT_A_PLACE = """
import os, signal, sys, importlib
module, name, method, n, action = sys.argv[1:6]
owner = getattr(importlib.import_module(module), name)
original, calls = getattr(owner, method), 0
def interrupted(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(n):
        exec(action)
    return original(*args, **kwargs)
setattr(owner, method, interrupted)
sys.argv[1:] = sys.argv[6:]
from qwencli.__main__ import main
main()
"""
"""The command, which does something before a method is called the nth time."""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    ("place", "options", "text"),
    [
        ("qwencli.text.tokenizer StreamDecoder add 5", [], "abcd"),
        ("qwencli.text.tokenizer StreamDecoder add 5", ["--json"], "abcd"),
        ("qwencli.gguf.file GGUFFile __init__ 1", [], ""),
        ("qwencli.text.tokenizer Tokenizer __init__ 1", ["--json"], None),
    ],
)
def test_ctrl_c_at_a_known_place(story: Path, place: str, options: list[str], text: str | None) -> None:
    command = [
        sys.executable,
        "-c",
        AT_A_PLACE,
        *place.split(),
        "os.kill(os.getpid(), signal.SIGINT)",
        "run",
        "-m",
        str(story),
        "-p",
        "x",
        "--temp",
        "0",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, timeout=60, preexec_fn=allow_ctrl_c)
    assert done.returncode == 130
    assert done.stderr.strip() == f"model: {story} (-m)".encode()
    if options and text is not None:
        answer = json.loads(done.stdout)
        assert (answer["text"], answer["stop_reason"]) == (text, "cancelled")
        assert answer["tokens"][:4] == IDS[:4]
    else:
        assert done.stdout.decode() == (text or "")


@pytest.mark.parametrize(
    "settings",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
)
def test_output_is_utf8_whatever_the_locale(story: Path, settings: dict[str, str]) -> None:
    environment = os.environ | settings
    for options in [], ["--json"]:
        done = process(
            "run", "-q", "-m", story, "--temp", "0", *options, stdin=None, input="é".encode(), env=environment
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert TEXT.encode() in done.stdout
    assert process("detokenize", "-m", story, *IDS[26:28], env=environment).stdout == "é".encode()
    assert (
        process("tokenize", "-m", story, "--ids", stdin=None, input="é".encode(), env=environment).stdout
        == b"[127, 102]\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a POSIX shell and /dev/full")
@pytest.mark.parametrize(
    ("options", "code", "out", "err"),
    [
        ("-p x >&-", 0, "", ""),
        ("-p x 2>&-", 0, "abc", ""),
        ("-p x <&-", 0, "abc", ""),
        ("<&-", 1, "", "qwencli: error: the prompt is empty, expected text in -p, -f or on stdin\n"),
        ("-p x >/dev/full", 1, "", "qwencli: error: output: No space left on device\n"),
    ],
)
def test_closed_and_full_streams(story: Path, options: str, code: int, out: str, err: str) -> None:
    quiet = (
        "" if "2>" in options else "-q"
    )  # where stderr is closed, what goes there must not come out elsewhere
    command = f'"{QWENCLI}" run -m "{story}" -n 3 --temp 0 {quiet} {options}'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_text_is_written_as_it_is_made(story: Path) -> None:
    """The first letters arrive while the fourth is still to come: until stdin ends."""
    place = ["qwencli.text.tokenizer", "StreamDecoder", "add", "4", "sys.stdin.read()"]
    command = [
        sys.executable,
        "-c",
        AT_A_PLACE,
        *place,
        "run",
        "-m",
        str(story),
        "-p",
        "x",
        "--temp",
        "0",
        "-q",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        clock = threading.Timer(60, child.kill)
        clock.start()
        assert child.stdout.read(3) == b"abc"
        clock.cancel()
        assert child.communicate()[0].startswith(b"defg")
    assert child.returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX terminals")
def test_terminals_get_the_closing_line_and_are_asked_for_a_prompt(story: Path) -> None:
    terminal, other_end = os.openpty()
    try:
        done = process("run", "-m", story, "-p", "x", "--temp", "0", "-n", "3", stderr=other_end)
        assert done.stdout == b"abc"
        assert re.search(
            rb"tokens, .* t/s; generation 3 tokens, .* t/s; stopped by length",
            read_terminal(terminal, b"stopped by"),
        )
        done = process("run", "-m", story, "--temp", "0", stdin=other_end)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"give a prompt with -p, -f or on stdin" in done.stderr
    finally:
        os.close(terminal)
        os.close(other_end)


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names of any bytes")
def test_paths_that_are_no_utf8(story: Path, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "caf") + b"\xe9.gguf"
    os.link(story, path)
    commands: list[list[str | bytes]] = [
        ["info", path],
        ["info", path, "--json"],
        ["info", path + b"?"],
        ["run", "-m", path, "-p", "x", "-n", "1"],
    ]
    for command in commands:
        done = subprocess.run([QWENCLI, *command], capture_output=True, timeout=60)
        assert done.returncode == (1 if path + b"?" in command else 0)
        assert b"Traceback" not in done.stderr
        (done.stdout + done.stderr).decode("utf-8")
        assert rb"caf\udce9.gguf" in done.stdout + done.stderr
