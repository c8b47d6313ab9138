"""`qwencli chat` at a terminal."""

from __future__ import annotations

import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import TEXT
from gguf_builder import TOKENS, reciter
from openai_server import WAIT, OpenAIServer, Reply, as_json, delta, stream

if sys.platform == "win32":
    pytest.skip("needs a pseudo-terminal", allow_module_level=True)

from terminal import ALT_ENTER, CTRL_C, CTRL_D, TAB, UP, Terminal, paste, plain

from qwencli.cli.chat.commands import COMMANDS
from qwencli.cli.chat.history import history_path

FAMILY = "👩‍👩‍👧"
Open = Callable[..., Terminal]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Open]:
    """terminal(*args, env={}): a chat, which is ended with the test."""
    opened = []

    def start(*args: object, env: dict[str, str] = {}) -> Terminal:  # noqa: B006
        opened.append(Terminal(tmp_path, "chat", *args, env=env))
        return opened[-1]

    yield start
    for each in opened:
        each.kill()


def says(*pieces: str, **fields: Any) -> Reply:
    """An answer in pieces, each read by itself."""
    return Reply(
        [*(stream(delta(content=piece), done=False) for piece in pieces), stream(delta("stop", **fields))]
    )


def asked(server: OpenAIServer) -> list[list[dict[str, str]]]:
    """The messages of each request for an answer."""
    return [request.body["messages"] for request in server.requests if request.method == "POST"]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_chat(terminal: Open, story: Path) -> None:
    chat = terminal("-m", story, "--temp", "0")
    assert plain(chat.ready()) == f"model: {story} (-m)\n/help lists the commands, Ctrl-D ends the chat\n"
    assert chat.say("hi") == f"{TEXT}\n\n"
    assert chat.say("") == ""
    known = re.search(r"; (\d+) more were cached", chat.say("hi") + chat.say("/stats"))
    assert known
    assert known[1] in ("49", "51"), (
        "all that was said, and the end of the answer where that was looked ahead"
    )
    chat.send(CTRL_D)
    assert chat.end() == 0


def test_bye_and_quiet(terminal: Open) -> None:
    chat = terminal("--url", "http://127.0.0.1:9", "-q")
    assert plain(chat.ready()) == ""
    chat.send("/bye\r")
    assert chat.end() == 0


def test_unicode_is_whole_both_ways(terminal: Open) -> None:
    """However the pieces come; characters that are made of several, and wide spaces, too."""
    text = f"你好，世界　{FAMILY} naïve 🎉 שלום\n"
    raw = stream(delta(content=text), delta("stop"))
    with OpenAIServer(Reply([raw[i : i + 1] for i in range(len(raw))]), says(*text)) as server:
        chat = terminal("--url", server.url)
        chat.ready()
        for _ in range(2):
            assert chat.say(f"你好 {FAMILY} é") == f"{text}\n\n"
    assert asked(server)[0] == [user(f"你好 {FAMILY} é")]
    assert asked(server)[1][:2] == [user(f"你好 {FAMILY} é"), assistant(text)]


def test_a_model_cannot_steer_the_terminal(terminal: Open) -> None:
    with OpenAIServer(
        says("\x1b[2J\x1b]0;title\x07\ta\r\x9b2J\x7f\n"), says("ok", reasoning_content="\x1b[8m")
    ) as server:
        chat = terminal("--url", server.url)
        chat.ready()
        chat.enter("?")
        assert chat.ready() == "\\x1b[2J\\x1b]0;title\\x07\ta\\r\\x9b2J\\x7f\r\n\r\n\r\n"
        chat.enter("?")
        assert "\\x1b[8m" in chat.ready()


THOUGHT = Reply([stream(delta(reasoning_content="hm"), delta(content="yes"), delta("stop"))])


@pytest.mark.parametrize(
    ("options", "env", "shown"),
    [
        ([], {}, "\x1b[2mhm\x1b[0m\r\n\r\nyes\r\n\r\n"),
        (["--hide-thinking"], {}, "yes\r\n\r\n"),
        ([], {"NO_COLOR": "1"}, "<think>\r\nhm\r\n</think>\r\n\r\nyes\r\n\r\n"),
    ],
)
def test_thinking_is_dimmed_or_hidden(
    terminal: Open, options: list[str], env: dict[str, str], shown: str
) -> None:
    with OpenAIServer(THOUGHT) as server:
        chat = terminal("--url", server.url, *options, env=env)
        chat.ready()
        chat.enter("?")
        assert chat.ready() == shown


def test_a_dumb_terminal_is_sent_no_codes(terminal: Open) -> None:
    with OpenAIServer(THOUGHT, says("no")) as server:
        chat = terminal("--url", server.url, env={"TERM": "dumb"})
        chat.until("> ")
        chat.send("one?\r")
        assert chat.until("> ").endswith("<think>\r\nhm\r\n</think>\r\n\r\nyes\r\n\r\n")
        chat.send("two?\r")
        shown = chat.until("> ")
        assert shown.endswith("no\r\n\r\n")
        assert "\x1b" not in shown
        assert chat.child.waitnoecho()
        chat.send(CTRL_D)
        assert chat.end() == 0
    assert [messages[-1] for messages in asked(server)] == [user("one?"), user("two?")]


# Ctrl-C


def test_ctrl_c_stops_an_answer_and_keeps_what_is_there(terminal: Open) -> None:
    with OpenAIServer(Reply([stream(delta(content="one, two"), done=False), WAIT]), says("three")) as server:
        chat = terminal("--url", server.url)
        chat.ready()
        chat.enter("count")
        chat.until("one, two")
        chat.send(CTRL_C)
        chat.ready()
        assert server.left.wait(60)
        assert chat.say("go on") == "three\n\n"
    assert asked(server)[1] == [user("count"), assistant("one, two"), user("go on")]


@pytest.mark.parametrize(
    "first", [b"", stream(delta(reasoning_content="hm"), done=False)], ids=["nothing", "thinking"]
)
def test_ctrl_c_before_an_answer_takes_the_question_back(terminal: Open, first: bytes) -> None:
    with OpenAIServer(Reply([*[first] * bool(first), WAIT]), says("yes")) as server:
        chat = terminal("--url", server.url)
        chat.ready()
        chat.enter("rigth")
        if first:
            chat.until("hm")
        assert server.asked.wait(60)
        chat.send(CTRL_C)
        chat.ready()
        chat.send("\x7f\x7f\x7f" + "ght?")
        assert chat.line().endswith("> right?\n")
        assert plain(chat.ready()) == "yes\n\n"
    assert asked(server) == [[user("rigth")], [user("right?")]]


@pytest.fixture
def long(tmp_path: Path, story: Path) -> Path:
    """The story, in a context of 2**17 tokens."""
    file = reciter()
    file.metadata["qwen3.context_length"] = ("u32", 2**17)
    return file.write(tmp_path / "long.gguf")


def test_ctrl_c_while_the_model_reads_and_a_paste_of_5000_lines(terminal: Open, long: Path) -> None:
    """Reading the paste would take minutes."""
    chat = terminal("-m", long, "--temp", "0")
    chat.ready()
    chat.send(paste("\n".join(f"line {i} of a paste" for i in range(5000))))
    chat.enter("")
    chat.until("prompt: ")
    chat.send(CTRL_C)
    chat.ready()
    chat.until("line 4999 of a paste")  # it is back in the line
    chat.send(CTRL_C)
    assert chat.say("hi") == f"{TEXT}\n\n"
    assert "context: 49 of 131072 tokens" in chat.say("/stats")


def test_ctrl_c_in_a_local_answer(terminal: Open, long: Path) -> None:
    chat = terminal("-m", long, "--temp", "0")
    chat.ready()
    end = TOKENS.index("<|im_end|>")
    assert chat.say(f"/set logit_bias {end}-inf") == ""
    chat.enter("hi")
    chat.until(TEXT)  # and without an end it goes on
    chat.send(CTRL_C)
    chat.ready()
    assert "stopped by: cancelled" in chat.say("/stats")
    chat.say("/set logit_bias none")
    assert chat.say("hi").endswith("\n\n")
    assert "stopped by: eos" in chat.say("/stats")
    chat.say("/save x.json")
    assert f'"content": "{TEXT}' in Path(str(chat.child.cwd), "x.json").read_text("utf-8")


def test_ctrl_c_at_the_prompt(terminal: Open) -> None:
    """It clears the line; on an empty one it tells how to end."""
    with OpenAIServer(says("yes")) as server:
        chat = terminal("--url", server.url)
        chat.ready()
        chat.send("wrong\x1b\rlines" + CTRL_C)
        assert chat.say("right") == "yes\n\n"
        chat.send(CTRL_C)
        assert plain(chat.ready()).endswith("Ctrl-D or /bye ends the chat\n")
        chat.send("not at the end" + CTRL_D + CTRL_C + CTRL_D)
        assert chat.end() == 0
    assert asked(server) == [[user("right")]]


# Input


def test_typing_ahead(terminal: Open) -> None:
    """While an answer comes the terminal itself collects what is typed."""
    typed = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield stream(delta(content="one"), done=False)
        typed.wait(60)
        yield stream(delta(content=" more"), delta("stop"))

    with OpenAIServer(Reply(pieces()), says("two"), says("three")) as server:
        chat = terminal("--url", server.url)
        chat.ready()
        chat.enter("count")
        chat.until("one")
        chat.send("and \rthen")
        chat.until("then")  # the terminal's echo
        typed.set()
        chat.until("two")
        chat.ready()
        assert chat.say(" what?") == "three\n\n"
    assert [messages[-1] for messages in asked(server)] == [user("count"), user("and "), user("then what?")]


TYPED = [
    ("one \\\rtwo\\\rthree", "one \ntwo\nthree"),
    (f"one{ALT_ENTER}two", "one\ntwo"),
    ('"""one\r\rtwo \\\r"""', "one\n\ntwo \\"),
    (paste("one\r\ntwo\\\r/bye\rthree"), "one\ntwo\\\n/bye\nthree"),
    (paste("\ttab"), "\ttab"),
    ("//bye", "/bye"),
    ("ab\x1b[D\x1b[DX", "Xab"),
    (paste(FAMILY) + "\x7f", FAMILY[:-1]),
]
"""Keys and the message that they make."""


def test_messages_of_several_lines(terminal: Open) -> None:
    with OpenAIServer(*[says("yes")] * len(TYPED)) as server:
        chat = terminal("--url", server.url)
        chat.ready()
        for keys, _ in TYPED:
            assert chat.say(keys) == "yes\n\n"
    assert [messages[-1] for messages in asked(server)] == [user(message) for _, message in TYPED]


def test_5000_lines_are_one_message(terminal: Open) -> None:
    text = "\n".join(f"line {i} é 你 {FAMILY}" for i in range(5000))
    with OpenAIServer(says("long!"), says("yes")) as server:
        chat = terminal("--url", server.url)
        chat.ready()
        assert chat.say(paste(text)) == "long!\n\n"
        assert chat.say("?") == "yes\n\n"
    assert asked(server)[1] == [user(text), assistant("long!"), user("?")]


def test_resizing(terminal: Open) -> None:
    with OpenAIServer(Reply([stream(delta(content="one"), done=False), WAIT]), says("two")) as server:
        chat = terminal("--url", server.url)
        chat.ready()
        chat.send("a long line " * 20)
        for size in (10, 20), (50, 200), (1, 1), (24, 80):
            chat.child.setwinsize(*size)
        chat.enter("end")
        chat.until("one")
        chat.child.setwinsize(10, 20)
        chat.send(CTRL_C)
        chat.ready()
        assert chat.say("?") == "two\n\n"
    assert asked(server)[1] == [user("a long line " * 20 + "end"), assistant("one"), user("?")]


def test_tab_completes(terminal: Open, tmp_path: Path) -> None:
    (tmp_path / "my file.txt").write_text("text", encoding="utf-8")
    chat = terminal("--url", "http://127.0.0.1:9")
    chat.ready()
    for keys, shown in [
        ("/hel", "this list"),
        ("/set max_t", "max_tokens             none"),
        ("/think of", ""),
        ("/set thin", "think                  off"),
        ("/read my", "my file.txt: 4 characters"),
        ("/xyz", "error: unknown command /xyz: "),
        ("/clear x", "error: /clear takes no argument"),
    ]:
        assert shown in chat.say(keys + TAB)
    chat.send("/set top_" + TAB)  # three begin so
    chat.until("top_n_sigma")
    chat.ready()
    assert chat.say("k" + TAB) == "top_k                  40\n"


# Commands


def test_every_command(terminal: Open, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("my notes\n", encoding="utf-8")
    with OpenAIServer(*(says(f"answer {i}") for i in range(1, 10))) as server:
        chat = terminal("--url", server.url, "-m", "tiny")
        chat.ready()
        told = {"help": chat.say("/help"), "system": chat.say("/system be kind")}
        assert chat.say("one") == "answer 1\n\n"
        told["regen"] = chat.say("/regen")
        assert chat.say("two") == "answer 3\n\n"
        told["undo"] = chat.say("/undo")
        chat.enter("/edit")
        chat.ready()
        chat.send("?")
        assert chat.line().endswith("> one?\n")  # the question is back in the line
        assert plain(chat.ready()) == "answer 4\n\n"
        told |= {
            "read": chat.say("/read notes.txt"),
            "set": chat.say("/set temp"),
            "think": chat.say("/think off"),
        }
        assert chat.say("three") == "answer 5\n\n"
        told |= {
            "save": chat.say("/save chat.json"),
            "save!": chat.say("/save! notes.txt"),
            "clear": chat.say("/clear"),
        }
        assert chat.say("four") == "answer 6\n\n"
        told |= {"load": chat.say("/load chat.json"), "stats": chat.say("/stats"), "edit": ""}
        told["continue"] = chat.say("/continue")
        assert chat.say("five") == "answer 8\n\n"
        chat.send("/bye\r")
        assert chat.end() == 0
        told["bye"] = ""
    assert told.keys() == COMMANDS.keys()
    assert told.pop("help").count("\n") > len(COMMANDS)
    assert told.pop("stats").endswith("stopped by: eos\n")
    assert told == {
        "system": "",
        "regen": "answer 2\n\n",
        "continue": "answer 7\n\n",
        "undo": "took back: two\n",
        "edit": "",
        "think": "",
        "clear": "",
        "bye": "",
        "read": "notes.txt: 9 characters, they go before your next message\n",
        "set": "temp                   0.8\n",
        "save": "saved 5 messages to chat.json\n",
        "save!": "saved 5 messages to notes.txt\n",
        "load": "loaded 5 messages from chat.json\n",
    }
    kind, file = {"role": "system", "content": "be kind"}, "--- File: notes.txt ---\nmy notes\n\n"
    one = [kind, user("one?"), assistant("answer 4"), user(file + "three")]
    assert asked(server) == [
        [kind, user("one")],
        [kind, user("one")],
        [kind, user("one"), assistant("answer 2"), user("two")],
        one[:2],
        one,
        [kind, user("four")],
        [*one, assistant("answer 5")],
        [*one, assistant("answer 5answer 7"), user("five")],
    ]


def test_what_goes_wrong_is_one_line(terminal: Open, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("my notes", encoding="utf-8")
    with OpenAIServer(says("yes")) as server:
        chat = terminal("--url", server.url)
        chat.ready()
        for line in (
            "/foo",
            "/hlep",
            "/set tmp 1",
            "/set temp 1000",
            "/read missing",
            "/load notes",
            "/save notes",
        ):
            told = chat.say(line)
            assert told.startswith("error: ")
            assert told.count("\n") == 1
        assert chat.say("still there?") == "yes\n\n"


def test_a_pasted_text_that_is_no_command_is_not_lost(terminal: Open) -> None:
    with OpenAIServer(says("yes")) as server:
        chat = terminal("--url", server.url)
        chat.ready()
        assert "error: unknown command /*: " in chat.say(paste("/* code */\n{}"))
        assert chat.say(UP + "\x01/") == "yes\n\n"  # a slash at the very beginning
    assert asked(server) == [[user("/* code */\n{}")]]


def test_a_server_that_fails_leaves_the_question_in_the_line(terminal: Open) -> None:
    with OpenAIServer(as_json({"error": {"message": "out of luck"}}, 500), says("yes")) as server:
        chat = terminal("--url", server.url)
        chat.ready()
        assert "out of luck" in chat.say("what?")
        assert chat.line().endswith("> what?\n")
        assert plain(chat.ready()) == "yes\n\n"


# Full contexts


def test_a_full_context_offers_to_drop_turns(terminal: Open, story: Path) -> None:
    chat = terminal("-m", story, "--temp", "0")
    chat.ready()
    for question in "one", "two":
        chat.say(question)
    chat.enter("three...")
    chat.until("Drop the oldest turns? [Y/n]:")
    for answer in "what?\r", "n\r":
        chat.send(answer)
        found = plain(chat.ready())
    assert "error: the conversation has 130 tokens" in found
    chat.line()  # the question is in the line
    chat.until("[Y/n]:")
    chat.send(CTRL_C)
    chat.ready()
    chat.line()
    chat.until("[Y/n]:")
    chat.send(CTRL_D)
    chat.ready()
    chat.line()
    chat.until("[Y/n]:")
    chat.line()
    assert plain(chat.ready()) == f"the context is full: dropped the 2 oldest messages\n{TEXT}\n\n"


def test_history_across_sessions(terminal: Open, tmp_path: Path) -> None:
    """In a file that its owner alone can read."""
    with OpenAIServer(*[says("yes")] * 3) as server:
        chat = terminal("--url", server.url)
        chat.ready()
        chat.say("first\\\rquestion é")
        chat.send(CTRL_D)
        chat.end()
        chat = terminal("--url", server.url)
        chat.ready()
        assert chat.say(UP) == "yes\n\n"
    assert asked(server) == [[user("first\nquestion é")]] * 2
    file = tmp_path / "state" / "qwencli" / "chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_history_that_cannot_be_kept_is_told_once(terminal: Open, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file", encoding="utf-8")
    with OpenAIServer(*[says("yes")] * 2) as server:
        chat = terminal("--url", server.url)
        chat.ready()
        chat.send("one\r")
        shown = chat.ready()
        chat.send("two\r")
        shown += chat.ready()
        chat.send(CTRL_D)
        chat.end()
    assert plain(shown).count("entries are not kept for later chats: ") == 1
    assert os.listdir(tmp_path) == ["state"]


@pytest.mark.parametrize(
    ("env", "path"),
    [
        ({"XDG_STATE_HOME": "/state", "QWENCLI_CACHE": "/cache"}, "/state/qwencli/chat_history"),
        ({"QWENCLI_CACHE": "/cache"}, "/cache/chat_history"),
        ({"XDG_STATE_HOME": "here", "QWENCLI_CACHE": "/cache"}, "/cache/chat_history"),
        ({"HOME": "/home/me"}, "/home/me/{}/qwencli/chat_history"),
        ({"HOME": "nowhere"}, None),
    ],
)
def test_where_the_history_is(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], path: str | None) -> None:
    for name in "XDG_STATE_HOME", "QWENCLI_CACHE", "HOME":
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    folder = "Library/Application Support" if sys.platform == "darwin" else ".local/state"
    assert history_path() == (path and Path(path.format(folder)))
