"""The process that renders chat templates: how it starts, what reaches it, and when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qwencli.errors import InputError, ModelError, QwenError
from qwencli.system import confined
from qwencli.text.chat import template_child, template_process
from qwencli.text.chat.template import ChatTemplate

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

FOREVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@cache
def echo() -> ChatTemplate:
    return ChatTemplate("{{ messages[0].content }}")


def say(text: str, template: ChatTemplate | None = None) -> str:
    return (template or echo()).render([{"content": text}])


def pid(template: ChatTemplate) -> int:
    assert template._child is not None
    return template._child._process.pid


def test_every_text_comes_back_as_it_was() -> None:
    for text in (
        "",
        "a\r\n\0\x1b",
        "Grüße 你好 👩‍👩‍👧",
        "\\ud83d \" '",
        "\ud83d",
        "\udc00\ud83d",
        "\ud83d\ude00 in two halves",
        "\ufdd0\uffff\U0010ffff",
    ):
        assert say(text) == text
    assert say(long := "ü" * 3_000_000) == long


def test_one_process_serves_many_conversations() -> None:
    say("a")
    first = pid(echo())
    with pytest.raises(InputError):
        echo().render([])
    assert (say("b"), pid(echo())) == ("b", first)


@posix
def test_a_process_that_was_killed_is_replaced() -> None:
    say("a")
    os.kill(pid(echo()), signal.SIGKILL)
    os.waitid(os.P_PID, pid(echo()), os.WEXITED | os.WNOWAIT)
    assert say("b") == "b"


@posix
def test_processor_time_ends_a_template_and_not_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "CPU_SECONDS", 0.2)
    template = ChatTemplate("{% if messages %}" + FOREVER + "{% endif %}fine")
    assert template.render([]) == "fine"
    process = template._child and template._child._process
    with pytest.raises(InputError, match="took too long"):
        template.render([{"content": ""}])
    assert process
    assert process.returncode == -signal.SIGPROF


def test_the_clock_ends_what_the_processor_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{% if messages %}" + FOREVER + "{% endif %}fine")
    monkeypatch.setattr(template_process, "CPU_SECONDS", 60)
    assert template.render([]) == "fine"
    monkeypatch.setattr(template_process, "CLOCK_SECONDS", 0.1)
    with pytest.raises(InputError, match="took too long"):
        template.render([{"content": ""}])


@posix
def test_ctrl_c_is_for_the_parent() -> None:
    say("a")
    first = pid(echo())
    os.kill(first, signal.SIGINT)
    assert (say("b"), pid(echo())) == ("b", first)
    assert os.getpgid(first) != os.getpgid(
        0
    )  # a terminal's Ctrl-C doesn't reach it, not even while it starts


@posix
def test_ctrl_c_while_a_template_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "CPU_SECONDS", 60)
    template = ChatTemplate(
        "{% if messages[0].content == 'x' %}" + FOREVER + "{% endif %}{{ messages[0].content }}"
    )
    say("a", template)
    assert template._child
    process, main = template._child._process, threading.get_ident()
    assert process.stdin
    flush, asked = process.stdin.flush, threading.Event()

    def interrupt() -> None:
        asked.wait(60)
        time.sleep(0.05)  # so that in most cases the answer is being waited for
        signal.pthread_kill(main, signal.SIGINT)

    monkeypatch.setattr(process.stdin, "flush", lambda: (flush(), asked.set()))
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # it may be ignored if the tests run in the background
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            say("x", template)
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert say("b", template) == "b"  # and not the answer that came too late


@linux
def test_the_process_ends_with_its_parent() -> None:
    program = (
        "import os; from qwencli.text.chat.template import ChatTemplate; t = ChatTemplate(''); t.render([]); "
        "print(t._child._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    stat = Path(f"/proc/{int(done.stdout)}/stat")

    def ended() -> bool:
        try:
            return stat.read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True

    for _ in range(6000):
        if ended():
            break
        time.sleep(0.01)
    assert ended()


@linux
def test_the_process_knows_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("TZ", "UTC")
    with open(__file__, "rb") as file:
        os.set_inheritable(file.fileno(), True)
        say("a", template := ChatTemplate(""))
        folder = Path(f"/proc/{pid(template)}")
        assert b"secret" not in (folder / "environ").read_bytes()
        assert {name.partition(b"=")[0] for name in (folder / "environ").read_bytes().split(b"\0")} <= {
            b"",
            b"TZ",
            b"LD_LIBRARY_PATH",
            b"LC_CTYPE",
        }
        assert sorted(p.name for p in (folder / "fd").iterdir()) == ["0", "1", "2"]


@posix
def test_a_template_outside_the_sandbox_can_do_nothing(tmp_path: Path) -> None:
    """What jinja2's sandbox keeps templates from doing, the process itself can't do either."""
    program = f"""
import os, resource, socket, sys
from qwencli.system.confined import limit_resources
limit_resources(1 << 29, alone=True)
for name, attempt in {{
        "read": lambda: open({__file__!r}), "write": lambda: open({str(tmp_path / "file")!r}, "w"), "connect": lambda: socket.socket(),
        "list": lambda: os.listdir("/"), "run": lambda: os.posix_spawn("/bin/sh", ["sh"], {{}}) if os.geteuid() else os.pipe(),
        "undo": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)) if os.geteuid() else os.pipe()}}.items():
    try:
        attempt()
        print(name, "succeeds")
    except (OSError, ValueError):
        pass
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_threads_share_a_template() -> None:
    wrong = []

    def work(name: str) -> None:
        own = ChatTemplate(name + "{{ messages[0].content }}")
        for i in range(30):
            text = f"{name}{i}"
            if say(text) != text or say(text, own) != name + text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_starting_early() -> None:
    template, broken = ChatTemplate("{{ messages[0].content }}"), ChatTemplate("{{")
    for _ in range(3):
        template.start()
    broken.start()
    assert say("a", template) == "a"
    with pytest.raises(ModelError, match="isn't valid Jinja"):
        broken.render([])


@pytest.mark.parametrize("seconds", [0, 0.05])
def test_leaving_while_it_starts(seconds: float) -> None:
    program = f"import time; from qwencli.text.chat.template import ChatTemplate; t = ChatTemplate(''); t.start(); time.sleep({seconds})"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@posix
@pytest.mark.parametrize(
    ("path", "why"),
    [("/bin/none", "No such file"), ("/bin", "Permission denied"), ("false", "it ended its process, code 1")],
)
def test_no_process_can_be_started(path: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", path)
    template = ChatTemplate("")
    template.start()
    with pytest.raises(QwenError, match=f"cannot start {path} for the chat template: .*{why}"):
        template.render([])


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"T",
        b"T\xff\xff\xff\xff",
        b"T\0\0\0\x05abc",
        b"T\0\0\0\1\xff",
        b"R\0\0\0\0",
        b"T\0\0\1\0" + b"a" * 256,
    ],
)
def test_malformed_answers(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As sent by a process that a template has taken over."""
    monkeypatch.setattr(template_child, "MAX_BYTES", 255)
    monkeypatch.setattr(
        confined,
        "PROGRAM",
        f"import sys; sys.stdout.buffer.write({b'R' + bytes(4) + b'T' + bytes(4) + answer!r})",
    )
    with pytest.raises(InputError, match="the model's chat template "):
        ChatTemplate("").render([])


def test_modules_are_found_where_the_parent_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """jinja2 may be in any folder of sys.path, whatever its name."""
    import jinja2

    odd: Any = tmp_path / "ünd 'so'"
    odd.mkdir()
    (odd / "jinja2").symlink_to(Path(jinja2.__file__).parent, target_is_directory=True)
    markupsafe = Path(sys.modules["markupsafe"].__file__ or "").parent
    (odd / "markupsafe").symlink_to(markupsafe, target_is_directory=True)
    monkeypatch.setattr(sys, "path", [str(odd), *(p for p in sys.path if not (Path(p) / "jinja2").exists())])
    assert say("a", ChatTemplate("{{ messages[0].content }}")) == "a"
