"""`qwencli chat` without a terminal: turns from stdin, answers to stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import QWENCLI, TEXT, Call, Result, allow_ctrl_c, process
from openai_server import WAIT, OpenAIServer, Reply, as_json, delta, stream

from qwencli.cli.chat.commands import COMMANDS, MAX_FILE
from qwencli.cli.chat.multiline import finished

Chat = Callable[..., Result]
ANSWER = TEXT + "\n"


@pytest.fixture
def chat(call: Call, story: Path) -> Chat:
    """chat(line, ..., options=[...]): a chat with the story, each line followed by a newline."""

    def chat(*lines: str | bytes, options: list[object] = []) -> Result:  # noqa: B006
        stdin = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
        return call("chat", "-m", story, "--temp", "0", "-q", *options, stdin=stdin)

    return chat


def messages(result: Result, path: Path) -> list[dict[str, Any]]:
    """Of a chat that was saved."""
    assert (result.code, result.err) == (
        0,
        f"saved {len(json.loads(path.read_text('utf-8'))['messages'])} messages to {path}\n",
    )
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["messages"]
    return found


def turn(question: str, answer: str = TEXT) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_each_line_is_a_turn(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    result = chat("hi", "", "  ", "你好", f"/save {file}")
    assert result.out == ANSWER * 2
    assert messages(result, file) == turn("hi") + turn("你好")
    assert chat().out == ""
    assert chat(b"a\r").out == ANSWER


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["one \\", "two"], "one \ntwo"),
        (['"""one', "", 'two"""'], "one\n\ntwo"),
        (['"""', "one", '"""'], "one"),
        (['"""one"""'], "one"),
        (['"""one', "/clear", "two \\", '"""'], "one\n/clear\ntwo \\"),
        (['"""one'], "one"),
        (["one\\"], "one"),
        (["//clear"], "/clear"),
        (["\ufeffone"], "one"),
        (["a /clear"], "a /clear"),
        ([" /clear"], " /clear"),
        (['say """one'], 'say """one'),
        (["one\ttwo"], "one\ttwo"),
        (["one\\\\", "two"], "one\\\ntwo"),
    ],
)
def test_messages_of_several_lines_and_with_slashes(
    chat: Chat, tmp_path: Path, lines: list[str], message: str
) -> None:
    file = tmp_path / "x.json"
    open_at_end = lines[-1] in ('"""one', "one\\")
    result = chat(*lines, *[] if open_at_end else [f"/save {file}"])
    assert (result.code, result.out) == (0, ANSWER)
    if not open_at_end:
        assert messages(result, file) == turn(message)


def test_a_message_that_the_end_cuts_off() -> None:
    assert finished("one\\") == "one"
    assert finished('"""one') == "one"


def test_what_goes_where(call: Call, story: Path) -> None:
    """Answers to stdout, all else to stderr; -q leaves out what nobody asked for."""
    told = call("chat", "-m", story, "--temp", "0", stdin=b"hi\n/set temp\n/foo\n")
    assert told == (
        1,
        ANSWER,
        f"model: {story} (-m)\ntemp                   0.0\n"
        "error: unknown command /foo: /help lists them, // begins a message with a slash\n",
    )
    assert call("chat", "-m", story, "--temp", "0", "-q", stdin=b"hi\n/set temp\n") == (
        0,
        ANSWER,
        "temp                   0.0\n",
    )


def test_help_tells_of_every_command(chat: Chat) -> None:
    for line in "/help", "/?":
        code, out, err = chat(line)
        assert (code, out) == (0, "")
        for command in COMMANDS.values():
            assert f"/{command.name} {command.arguments}".strip() in err
            assert f"  {command.help}\n" in err


def test_commands_that_change_the_chat(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    result = chat("/system be kind", "one", "two", "/undo", "three", "/edit", "four", f"/save {file}")
    assert result.out == ANSWER * 4
    assert result.err == f"took back: two\nsaved 5 messages to {file}\n"
    system = [{"role": "system", "content": "be kind"}]
    assert json.loads(file.read_text())["messages"] == system + turn("one") + turn("four")
    assert messages(chat("/system be kind", "one", "/clear", "two", f"/save! {file}"), file) == system + turn(
        "two"
    )
    assert messages(
        chat("/system be kind", "one", "/system -", "/set max_tokens 3", "/regen", f"/save {file}"), file
    ) == turn("one", "abc")
    assert (
        chat("/system", "/system be kind", "/system").err == "system message: none\nsystem message: be kind\n"
    )


def test_bye_ends(chat: Chat) -> None:
    for line in "/bye", "/exit", "/quit":
        assert chat("one", line, "two") == (0, ANSWER, "")


def test_stats(chat: Chat) -> None:
    assert chat("/stats").err == "no answer yet\n"
    first, answer, context, reason = chat("hi", "/stats").err.splitlines()
    assert first.startswith("prompt: 20 tokens, ")
    assert answer.startswith("answer: 29 tokens, ")
    assert (context, reason) == ("context: 49 of 128 tokens", "stopped by: eos")
    assert "; 49 more were cached" in chat("hi", "hi", "/stats").err


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (as_json({"error": {"message": "no"}}, 500), "no answer yet"),
        (Reply([stream(delta("stop"))]), "stopped by: eos"),
    ],
)
def test_stats_of_a_server_that_tells_none(call: Call, reply: Reply, told: str) -> None:
    with OpenAIServer(reply) as server:
        assert call("chat", "-q", "--url", server.url, stdin=b"hi\n/stats\n").err.splitlines()[-1] == told


def test_think_and_set(chat: Chat) -> None:
    lines = ["/set think", "/think on", "/set think", "/think off", "/set think", "/think auto", "/set think"]
    assert [line.split()[1] for line in chat(*lines).err.splitlines()] == ["none", "on", "off", "none"]
    assert chat("/set max_tokens 2", "one", "/set \t max_tokens\tnone", "two").out == "ab\n" + ANSWER
    every = chat("/set").err.splitlines()
    assert {"temp", "top_k", "samplers", "max_tokens", "reasoning_budget", "think"} <= {
        line.split()[0] for line in every
    }
    assert "temp                   0.0" in every


# Files


def test_read_puts_files_before_the_next_message(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, one, two = tmp_path / "x.json", tmp_path / "o n e.txt", tmp_path / "two.md"
    one.write_text("1\n", encoding="utf-8")
    two.write_text("é", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    result = chat(f"/read {one}", "/read ~/two.md", "?", f"/save {file}")
    assert result.out == ANSWER
    assert result.err.splitlines()[:2] == [
        "o n e.txt: 2 characters, they go before your next message",
        "two.md: 1 characters, they go before your next message",
    ]
    content = "--- File: o n e.txt ---\n1\n\n--- File: two.md ---\né\n\n?"
    assert json.loads(file.read_text("utf-8"))["messages"] == turn(content)


def test_save_and_load(chat: Chat, tmp_path: Path) -> None:
    """The chat goes on under the settings that it had; options come first."""
    file, again = tmp_path / "x.json", tmp_path / "y.json"
    chat("/system be kind", "one", "/set max_tokens 3", "/set top_k 7", f"/save {file}")
    result = chat("zero", f"/load {file}", "two", "/set top_k", f"/save {again}")
    assert result.out == ANSWER + "abc\n"
    assert (
        result.err
        == f"loaded 3 messages from {file}\ntop_k                  7\nsaved 5 messages to {again}\n"
    )
    assert json.loads(again.read_text("utf-8"))["messages"] == [
        {"role": "system", "content": "be kind"},
        *turn("one"),
        *turn("two", "abc"),
    ]
    options = ["--load", file, "-n", "5", "--top-k", "9", "--system", "be brief"]
    result = chat("two", "/set top_k", "/system", "/undo", "/undo", options=options)
    assert result == (
        0,
        "abcde\n",
        "top_k                  9\nsystem message: be brief\ntook back: two\ntook back: one\n",
    )
    assert chat("two", options=["--load", file]).out == "abc\n"


def test_a_foreign_file_is_not_overwritten(chat: Chat, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes", encoding="utf-8")
    result = chat(f"/save {notes}", "hi")
    assert result == (
        1,
        ANSWER,
        f"error: {notes}: not a transcript of qwencli, so it is left alone; /save! overwrites it\n",
    )
    assert notes.read_text(encoding="utf-8") == "my notes"
    assert messages(chat("hi", f"/save! {notes}"), notes) == turn("hi")


# What goes wrong is told in a line, and the chat goes on


BAD: list[tuple[str | bytes, str]] = [
    (b"\xff\xfe", "line 1 is not UTF-8: byte 0xff"),
    ("/foo", "unknown command /foo: /help lists them, // begins a message with a slash"),
    ("/ hi", "unknown command /hi: "),
    ("/", "unknown command /: "),
    ("/hlep", "unknown command /hlep, did you mean /help?"),
    ("/Clear", "unknown command /Clear, did "),
    ("/usr/bin/env", "unknown command /usr/bin/env"),
    ("/clear it", "/clear takes no argument"),
    ("/read", "/read needs FILE"),
    ("/save", "/save needs FILE"),
    ("/think", "/think needs on|off|auto"),
    ("/think maybe", "/think takes one of on, off, auto, not maybe"),
    ("/set tmp", "unknown setting tmp, did you mean temp?"),
    ("/set tmp 1", "unknown setting tmp, did you mean temp?"),
    ("/set temp hot", "temp is hot, expected a number"),
    ("/set temp 101", "temp is 101.0, expected a value from 0.0 to 100.0"),
    ("/set max_tokens -5", "max_tokens is -5, expected a whole number from 0 to 2147483647, or none"),
    ("/set samplers foo", "there is no sampler 'foo', "),
    ("/undo", "nothing was asked yet"),
    ("/edit", "nothing was asked yet"),
    ("/regen", "nothing was asked yet"),
    ("/continue", "there is no answer to go on with"),
    ("/load missing", "missing: cannot be read: "),
    ("/read missing", "missing: cannot be read: "),
    ("/load .", ".: cannot be read: "),
    ("/read .", ".: cannot be read: "),
    ("/save .", ".: "),
    ("/save missing/x", "missing/x: "),
    ("/load note", "note: not a transcript: "),
    ("/save note", "note: not a transcript of qwencli, "),
    ("/read bin", "bin: not UTF-8 text: "),
    ("/read large", f"large: larger than {MAX_FILE // 2**20} MB"),
    ("/read a\0b", "a path can't contain a zero byte"),
    ("/load a\0b", "a path can't contain a zero byte"),
    ("x" * 200, "the conversation has 218 tokens, "),
]


def test_bad_input(chat: Chat) -> None:
    Path("note").write_text("my notes", encoding="utf-8")
    Path("bin").write_bytes(b"text\xff")
    with open("large", "wb") as f:
        f.truncate(MAX_FILE + 1)
    code, out, err = chat(*(line for line, _ in BAD), "hi")
    assert (code, out) == (1, ANSWER)
    for line, (_, error) in zip(err.splitlines(), BAD, strict=True):
        assert line.startswith(f"error: {error}")
    assert Path("note").read_text(encoding="utf-8") == "my notes"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that have names")
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(story: Path, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    done = process("chat", "-m", story, "-q", stdin=None, input=f"/read {pipe}\n/load {pipe}\n".encode())
    assert done.stderr.decode().splitlines() == [f"error: {pipe}: cannot be read: not a regular file"] * 2


def test_a_line_without_end_is_an_error(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwencli.cli.chat.plain.MAX_LINE", 2**20)
    assert chat(b"x" * 3 * 2**20, "hi") == (1, ANSWER, "error: line 1 is longer than 1 MB\n")


@pytest.mark.parametrize(
    "options",
    [
        ["--load", "missing"],
        ["--chat-template", "missing"],
        ["--url", "ftp://x"],
        ["--reasoning-budget", "-1"],
        ["--temp", "nan"],
        ["-n", "-2"],
        ["--url", "http://127.0.0.1:9", "-c", "5"],
    ],
)
def test_options_that_cannot_be(chat: Chat, options: list[object]) -> None:
    code, out, err = chat("hi", options=options)
    assert code in (1, 2)
    assert out == ""
    assert err.splitlines()[-1].lower().startswith(("error: ", "qwencli: error: "))


# A full context


def test_a_full_context_is_told(chat: Chat) -> None:
    """The third question doesn't fit into 128 tokens."""
    code, out, err = chat("one", "two", "three...", "/clear", "four")
    assert (code, out) == (1, ANSWER * 3)
    assert err.startswith(
        "--context-shift drops the oldest turns when the context is full\nerror: the conversation has 130 tokens, "
    )
    assert err.count("\n") == 2


def test_context_shift_drops_the_oldest_turns(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    code, out, err = chat(
        "/system kind", "one", "two", "three...", f"/save {file}", options=["--context-shift"]
    )
    assert (code, out) == (0, ANSWER * 3)
    assert err == f"the context is full: dropped the 2 oldest messages\nsaved 5 messages to {file}\n"
    assert json.loads(file.read_text())["messages"] == [
        {"role": "system", "content": "kind"},
        *turn("two"),
        *turn("three..."),
    ]


def test_an_answer_that_the_context_cuts(chat: Chat) -> None:
    code, out, err = chat("hi", options=["-c", "30"])
    assert (code, out) == (0, TEXT[:10] + "\n")
    assert err == "the context is full, so the answer ends here; /undo and /clear make room\n"


# JSON, thinking, servers


def test_json_is_an_object_a_turn(chat: Chat) -> None:
    code, out, _ = chat("hi", "/set max_tokens 3", "hi", options=["--json"])
    assert code == 0
    first, second = (json.loads(line) for line in out.splitlines())
    assert first.keys() == {"text", "stop_reason", "timings"}
    assert (first["text"], first["stop_reason"]) == (TEXT, "eos")
    assert (second["text"], second["stop_reason"]) == ("abc", "length")
    assert first["timings"]["prompt_n"] == 20
    assert second["timings"]["cache_n"] == 49


THOUGHT = Reply([stream(delta(reasoning_content="hm 你"), delta(content="\x1b[2Jyes"), delta("stop"))])


@pytest.mark.parametrize(
    ("options", "out"),
    [([], "<think>\nhm 你\n</think>\n\n\x1b[2Jyes\n"), (["--hide-thinking"], "\x1b[2Jyes\n")],
)
def test_thinking_is_marked(call: Call, options: list[str], out: str) -> None:
    with OpenAIServer(THOUGHT) as server:
        assert call("chat", "--url", server.url, "-q", *options, stdin=b"?") == (0, out, "")


def test_thinking_is_apart_in_json(call: Call) -> None:
    with OpenAIServer(THOUGHT) as server:
        answer = json.loads(call("chat", "--url", server.url, "-q", "--json", stdin=b"?").out)
    assert (answer["text"], answer["reasoning_content"], answer["stop_reason"]) == (
        "\x1b[2Jyes",
        "hm 你",
        "eos",
    )


def test_a_server_gets_what_was_said(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    yes = Reply([stream(delta(content="yes"), delta("stop"))])
    failed = as_json({"error": {"message": "out of luck"}}, 500)
    with OpenAIServer(yes, failed, yes) as server:
        done = call(
            "chat",
            "--url",
            server.url,
            "-q",
            "--system",
            "be kind",
            "--temp",
            "0.5",
            stdin="é?\nwhat?\nagain?\n".encode(),
        )
    assert (done.code, done.out) == (1, "yes\nyes\n")
    assert done.err.count("\n") == 1
    assert "out of luck" in done.err
    asked = [request for request in server.requests if request.method == "POST"]
    system = {"role": "system", "content": "be kind"}
    assert [request.body["messages"] for request in asked] == [
        [system, {"role": "user", "content": "é?"}],
        [system, *turn("é?", "yes"), {"role": "user", "content": "what?"}],
        [system, *turn("é?", "yes"), {"role": "user", "content": "again?"}],
    ]
    assert all(request.headers["Authorization"] == "Bearer secret" for request in asked)
    assert asked[0].body["temperature"] == 0.5


# The process


def test_utf8_whatever_the_locale(story: Path) -> None:
    env = {
        "PATH": "",
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii",
    }
    done = process(
        "chat",
        "-m",
        story,
        "--temp",
        "0",
        "-q",
        stdin=None,
        input="é 你\n/system 你\n/system\n".encode(),
        env=os.environ | env,
    )
    assert (done.returncode, done.stdout) == (0, ANSWER.encode())
    assert done.stderr.strip() in ("system message: 你".encode(), b"system message: \\u4f60")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_ctrl_c_ends_it() -> None:
    with OpenAIServer(Reply([stream(delta(content="one"), done=False), WAIT])) as server:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen([QWENCLI, "chat", "--url", server.url], preexec_fn=allow_ctrl_c, **pipes) as p:
            assert p.stdin
            assert p.stdout
            p.stdin.write(b"count\n")
            p.stdin.flush()
            assert p.stdout.read(3) == b"one"
            p.send_signal(signal.SIGINT)
            out, err = p.communicate(timeout=60)
        assert server.left.wait(60)
    assert (p.returncode, out, err.strip()) == (130, b"\n", b"")


def test_help_imports_little(tmp_path: Path) -> None:
    code = """
import sys
from qwencli.cli import main
assert main(["chat", "--help"]) == 0
print("imported:", sorted({"prompt_toolkit", "numpy", "numba", "jinja2"} & sys.modules.keys()), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert "imported: []" in done.stderr, done.stderr
