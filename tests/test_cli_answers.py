"""What `qwencli run` shows of an answer: thinking, probabilities, sessions. On the embedded model, whose answers are short."""

import html.parser
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Call, Result
from gguf_builder import tiny

from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.cli._answers import AnswerPrinter, ThinkingOptions
from qwencli.cli._bar import Bar
from qwencli.cli._probabilities import Probabilities
from qwencli.cli.run import generate
from qwencli.dialogue.dialogue import Settings
from qwencli.dialogue.local import LocalChat
from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.network.load import load_model
from qwencli.sampling import SamplingParams
from qwencli.text.chat.answers import Event

QUESTION = "What is the capital of France?"
SAID = "The capital of France is Paris."


@pytest.fixture
def run(call: Call) -> Call:
    return lambda *args, stdin=b"": call("run", "-m", EMBEDDED, "--temp", "0", "-q", *args, stdin=stdin)


def answer(done: Result) -> dict[str, Any]:
    assert (done.code, done.err) == (0, "")
    found: dict[str, Any] = json.loads(done.out)
    return found


# Thinking


def test_thinking_stands_between_its_tags_or_is_hidden(run: Call) -> None:
    thought = answer(run("-p", QUESTION, "--json"))["reasoning_content"]
    assert thought
    assert run("-p", QUESTION).out == f"<think>\n{thought}\n</think>\n\n{SAID}"
    assert run("-p", QUESTION, "--hide-thinking").out == SAID


def test_json_keeps_thinking_apart(run: Call) -> None:
    whole = answer(run("-p", QUESTION, "--json"))
    assert whole["text"] == SAID
    for options in ["--no-think"], ["--reasoning-budget", "0"]:
        without = answer(run("-p", QUESTION, "--json", *options))
        assert without["text"] == SAID
        assert "reasoning_content" not in without
    budget = answer(run("-p", QUESTION, "--json", "--reasoning-budget", "3"))
    assert whole["reasoning_content"].startswith(budget["reasoning_content"])
    assert len(budget["reasoning_content"]) < len(whole["reasoning_content"])


@pytest.mark.parametrize(
    "option",
    [
        ["--think"],
        ["--no-think"],
        ["--reasoning-budget", "3"],
        ["--system", "x"],
        ["--chat-template", "chatml"],
    ],
)
def test_what_needs_a_template_is_refused_with_raw(run: Call, option: list[str]) -> None:
    done = run("--raw", "-p", "x", *option)
    assert (done.code, done.out) == (2, "")
    assert "need a chat template, which --raw does without" in done.err


# Templates


def test_another_template(run: Call, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages[-1].content }} there was", encoding="utf-8")
    raw = run("--raw", "-p", "Once upon a time there was", "-n", "8").out
    assert run("-p", "Once upon a time", "-n", "8", "--chat-template", path).out == raw
    assert SAID in run("-p", QUESTION, "--chat-template", "chatml").out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a built-in name"),
        (b"{% if %}", "isn't valid Jinja"),
        (b"\xff", "isn't UTF-8 text"),
        (b"{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "took too long"),
        (b"{{ 'x' * 10**10 }}", "memory"),
        (b"{{ raise_exception('not today') }}", "not today"),
        (b"{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ],
)
def test_templates_that_cannot_be_used(
    run: Call, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "t.jinja"
    if content is not None:
        path.write_bytes(content)
    done = run("-p", "x", "--chat-template", path)
    assert (done.code, done.out) == (1, "")
    assert message in done.err
    assert done.err.count("\n") == 1


# Probabilities


def test_logprobs_are_the_models(run: Call) -> None:
    """Against the NumPy backend's logits."""
    done = answer(
        run("--raw", "-p", "Once upon a time", "-n", "6", "--json", "--logprobs", "3", "--backend", "numpy")
    )
    model = load_model(GGUFFile(EMBEDDED))
    prompt = [1925, 346, 5193, 264, 882]
    tokens = prompt + done["tokens"]
    logits = (
        NumpyBackend(model)
        .run([LOGITS], Batch([Segment(KVSequence(), tokens, len(tokens))]))[LOGITS]
        .astype(np.float64)
    )
    logs = logits - logits.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    assert [entry["id"] for entry in done["logprobs"]] == done["tokens"]
    for entry, row in zip(done["logprobs"], logs[len(prompt) - 1 :]):
        assert entry["logprob"] == pytest.approx(row[entry["id"]], abs=1e-4)
        assert [other["id"] for other in entry["top_logprobs"]] == np.argsort(-row, kind="stable")[
            :3
        ].tolist()
        assert [other["logprob"] for other in entry["top_logprobs"]] == pytest.approx(
            np.sort(row)[::-1][:3].tolist(), abs=1e-4
        )
    assert "".join(entry["token"] for entry in done["logprobs"]) == done["text"]


def test_logprobs_of_the_chosen_alone(run: Call) -> None:
    done = answer(run("--raw", "-p", "Once", "-n", "2", "--json", "--logprobs", "0"))
    assert [entry["top_logprobs"] for entry in done["logprobs"]] == [[], []]


def test_logprobs_need_json(run: Call) -> None:
    done = run("-p", "x", "--logprobs", "3")
    assert done.code == 2
    assert "--logprobs needs --json" in done.err


def test_asking_for_probabilities_changes_no_token(run: Call) -> None:
    command = ("--raw", "-p", "Once upon a time", "-n", "60", "--json", "--temp", "0.9", "--seed", "5")
    assert answer(run(*command, "--logprobs", "5"))["tokens"] == answer(run(*command))["tokens"]


def test_explanations_are_a_line_a_token_on_stderr(run: Call) -> None:
    done = run("--raw", "-p", "Once upon a time", "-n", "5", "--temp", "0.8", "--seed", "3", "--explain")
    assert done.out == run("--raw", "-p", "Once upon a time", "-n", "5", "--temp", "0.8", "--seed", "3").out
    lines = done.err.splitlines()
    assert len(lines) == 5
    assert all("top_k 40" in line for line in lines)


def test_a_page_of_probabilities(run: Call, tmp_path: Path) -> None:
    path = tmp_path / "probs.html"
    done = run("--raw", "-p", "<script>", "-n", "5", "--show-probs", path)
    assert (done.code, done.err) == (0, "")
    tags: list[str] = []
    reader = html.parser.HTMLParser()
    reader.handle_starttag = lambda tag, attributes: tags.append(tag)  # type: ignore[method-assign]
    reader.feed(path.read_text(encoding="utf-8"))
    assert "script" not in tags
    assert tags.count("html") == 1
    assert "&lt;script&gt;" in path.read_text(encoding="utf-8")
    refused = run("--raw", "-p", "x", "-n", "1", "--show-probs", tmp_path / "no" / "probs.html")
    assert (refused.code, refused.out) == (1, "")  # before the model is asked
    assert refused.err.count("\n") == 1


# Sessions


def test_a_session_is_where_the_next_run_begins(run: Call, tmp_path: Path) -> None:
    session, prompt = tmp_path / "s", "Once upon a time there was a little boy " * 8
    first = answer(run("--raw", "-p", prompt, "-n", "4", "--json", "--session", session))
    again = answer(run("--raw", "-p", prompt, "-n", "4", "--json", "--session", session))
    assert [first["timings"]["cache_n"], again["timings"]["cache_n"]] == [0, first["prompt_tokens"] - 1]
    assert again["tokens"] == first["tokens"]
    longer = prompt + first["text"] + " and"
    on = answer(run("--raw", "-p", longer, "-n", "8", "--json", "--session", session))
    assert on["timings"]["cache_n"] >= first["prompt_tokens"]
    assert on["tokens"] == answer(run("--raw", "-p", longer, "-n", "8", "--json"))["tokens"]


@pytest.mark.parametrize("damage", ["another model", "cut", "flipped", "none of ours"])
def test_sessions_that_are_refused_are_left_alone(run: Call, call: Call, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s"
    run("--raw", "-p", "Once upon a time", "-n", "4", "--session", path)
    whole = path.read_bytes()
    if damage == "another model":
        model = tiny().write(tmp_path / "tiny.gguf")
        refused = call("run", "-q", "-m", model, "--raw", "-p", "x", "-n", "1", "--session", path)
    else:
        middle = len(whole) // 2
        path.write_bytes(
            {
                "cut": whole[:middle],
                "none of ours": b"a file of somebody's",
                "flipped": whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :],
            }[damage]
        )
        whole = path.read_bytes()
        refused = run("--raw", "-p", "Once upon a time", "-n", "4", "--session", path)
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.count("\n") == 1
    assert str(path) in refused.err
    assert path.read_bytes() == whole
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith((".", "s"))] == ["s"]


@pytest.mark.parametrize("raw", [True, False])
def test_ctrl_c_while_a_piece_is_written_ends_the_answer_too(
    raw: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads it may be slow, so that it comes then and not in a step of the model."""

    def interrupt(printer: AnswerPrinter, event: Event) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AnswerPrinter, "add", interrupt)
    llm = LLM(EMBEDDED)
    chat, settings = LocalChat(llm), Settings(SamplingParams(temp=0))
    events = (
        chat.go_on("Once upon a time", settings)
        if raw
        else chat.answer([{"role": "user", "content": QUESTION}], settings)
    )
    assert (
        generate(
            chat,
            events,
            Bar(False),
            ThinkingOptions(None, None, False),
            Probabilities(None, False, None),
            as_json=False,
        )
        == 130
    )
    assert (chat.stop_reason, llm.engine.running) == ("cancelled", [])
    assert len(llm.engine.prefixes.kept) == 1
