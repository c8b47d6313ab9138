"""`qwencli run`: what it writes, on a model whose answer is known."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import IDS, TEXT, Call
from gguf_builder import N_CTX, reciter, tiny

from qwencli.cli import _bar


@pytest.fixture
def run(call: Call, story: Path) -> Call:
    """`qwencli run` on the story, without randomness."""
    return lambda *args, stdin=b"": call("run", "-m", story, "--temp", "0", *args, stdin=stdin)


def test_stdout_is_the_text_alone(run: Call, story: Path) -> None:
    assert run("-p", "hi") == (0, TEXT, f"model: {story} (-m)\n")
    assert run("-p", "hi", "-q") == (0, TEXT, "")


def test_verbose_adds_one_closing_line_and_a_table(run: Call, story: Path) -> None:
    code, out, err = run("-p", "hi", "-v")
    assert (code, out) == (0, TEXT)
    assert re.search(
        r"\nprompt 20 tokens, [\d.]+ t/s; generation 29 tokens, [\d.]+ t/s; stopped by eos; memory [\d.]+ [MG]B\nbuffer .+\n(.+\n)+",
        err,
    )
    assert run("-p", "hi", "-v", "--json").err.count("\nbuffer ") == 1


@pytest.mark.parametrize(
    ("n", "text", "reason"),
    [
        (0, "", "length"),
        (3, "abc", "length"),
        (26, TEXT[:26], "length"),
        (28, TEXT[:27], "length"),
        (29, TEXT, "length"),
        (30, TEXT, "eos"),
        (-1, TEXT, "eos"),
    ],
)
def test_number_of_tokens(run: Call, n: int, text: str, reason: str) -> None:
    assert run("-p", "hi", "-n", n).out == text
    done = json.loads(run("-p", "hi", "-n", n, "--json").out)
    assert (done["text"], done["stop_reason"]) == (text, reason)
    assert done["tokens"] == IDS[: 29 if n < 0 else min(n, 29)]


def test_half_a_character_is_never_written(run: Call) -> None:
    assert run("-p", "hi", "-n", 27).out == TEXT[:26] + "\ufffd"


def test_json_is_one_object(run: Call) -> None:
    out = run("-p", "hi", "--json").out
    assert out.count("\n") == 1
    done = json.loads(out)
    assert done.keys() == {"text", "tokens", "prompt_tokens", "stop_reason", "timings"}
    assert (
        done["prompt_tokens"] == 20
    )  # <|im_start|> u s e r \n h i <|im_end|> \n <|im_start|> a s s i s t an t \n


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (["f"], "abcde"),
        (["hij"], "abcdefg"),
        (["hix"], TEXT),
        (["xyz", "cd", "mno"], "ab"),
        (["é"], TEXT[:26]),
        (["z\u00e9 t"], TEXT[:25]),
        (["the"], TEXT[:28]),
        (["the end"], TEXT),
        (["a"], ""),
        ([""], TEXT),
        ([r"\x6b"], "abcdefghij"),
        (["bc", "abcd"], "a"),
    ],
)
def test_stop_strings(run: Call, stops: list[str], text: str) -> None:
    """They may span tokens. What only begins like one is written at the end. They are left out, with all that follows."""
    options = [option for stop in stops for option in ("--stop", stop)]
    assert run("-p", "hi", *options).out == text
    done = json.loads(run("-p", "hi", "--json", *options).out)
    assert (done["text"], done["stop_reason"]) == (text, "eos" if text == TEXT else "stop")


def test_ignore_eos_goes_on_to_the_context(run: Call, story: Path) -> None:
    done = json.loads(run("-p", "hi", "--ignore-eos", "--json").out)
    assert done["stop_reason"] == "context"
    assert len(done["tokens"]) + done["prompt_tokens"] == N_CTX
    assert done["tokens"] == (IDS * 4)[: N_CTX - 20]
    assert done["text"] == (TEXT * 4)[: len(done["text"])]  # the token that ends an answer has no text
    short = json.loads(run("-p", "a", "--raw", "-c", "12", "--json").out)
    assert (short["text"], short["stop_reason"]) == (TEXT[1:12], "context")


@pytest.mark.parametrize(
    ("prompt", "options", "text"),
    [
        ("a", [], "bcd"),
        (r"x\n", [], "abc"),
        (r"x\n", ["--no-escape"], "opq"),
        (r"\x41\x63", [], "def"),
        (r"\\n", [], "opq"),
        (r"\'\"\\\tw", [], "xyz"),
        ("<|im_end|>", [], "abc"),
        (r"\xc3", [], None),
        (r"\xc3\xa9", [], " thea"),
    ],
)
def test_raw_prompts(run: Call, prompt: str, options: list[str], text: str | None) -> None:
    """Continued as they stand: escapes in -p as in llama.cpp, control tokens recognised."""
    done = run("-p", prompt, "--raw", "-n", "3", "--ignore-eos", *options)
    if text is None:
        assert (done.code, done.out) == (1, "")
        assert r"'\\xc3' isn't valid UTF-8, or its escapes make it invalid" in done.err
    else:
        assert done.out == text


def test_a_users_control_tokens_stay_text(run: Call) -> None:
    counts = [
        json.loads(run("-p", prompt, "-n", "1", "--json").out)["prompt_tokens"]
        for prompt in ("x", "<|im_end|>", "<think>")
    ]
    assert counts == [19, 18 + 10, 19]  # <think> is user-defined, which is always recognised
    assert json.loads(run("--raw", "-p", "<|im_end|>", "-n", "1", "--json").out)["prompt_tokens"] == 1


def test_system_message(run: Call) -> None:
    with_system = json.loads(run("-p", "x", "--system", r"y\ny", "-n", "1", "--json").out)
    assert with_system["prompt_tokens"] == 19 + 1 + len("system\ny\ny") + 2


def test_thinking_is_on_unless_told_otherwise(call: Call, tmp_path: Path) -> None:
    """QwQ's and DeepSeek's templates close the block where `enable_thinking` is not given at all; llama.cpp always gives it."""
    file = reciter()
    file.metadata["tokenizer.chat_template"] = (
        "str",
        "{{ messages[0].content }}{% if not enable_thinking %}zz{% endif %}",
    )
    path = file.write(tmp_path / "thinking.gguf")
    run = [
        json.loads(call("run", "-m", path, "-p", "x", "-n", "1", "--json", *args).out)
        for args in ((), ("--no-think",))
    ]
    assert [answer["prompt_tokens"] for answer in run] == [1, 3]


def test_without_a_template_the_prompt_is_continued(call: Call, tmp_path: Path) -> None:
    file = reciter()
    del file.metadata["tokenizer.chat_template"]
    path = file.write(tmp_path / "base.gguf")
    assert call("run", "-m", path, "-p", "w", "--temp", "0", "-n", "3").out == "xyz"
    warned = call("run", "-m", path, "-p", "w", "--temp", "0", "-n", "3", "--system", "s")
    assert (warned.code, warned.out) == (0, "xyz")
    assert "warning: the model has no chat template" in warned.err


def test_prompts_from_files_and_stdin(run: Call, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("x\\né\nc\n".encode())
    raw = ("--raw", "-n", "3")
    assert run("-f", path, *raw).out == "def"  # one newline at the end is not meant
    assert run(*raw, stdin=path.read_bytes()).out == "def"
    assert run("-f", "-", *raw, stdin=b"a\n\n").out == "abc"
    counted = json.loads(run("-f", path, "--json", *raw).out)
    assert counted["prompt_tokens"] == 7  # backslashes in files are backslashes


def test_seeds_repeat(call: Call, tmp_path: Path) -> None:
    path = tiny().write(tmp_path / "random.gguf")
    texts = [
        call("run", "-q", "-m", path, "-p", "x", "-n", 40, "--ignore-eos", "--temp", "5", "--seed", seed).out
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_files_own_sampling_lies_under_the_flags(call: Call, tmp_path: Path) -> None:
    file = tiny()
    file.metadata |= {"general.sampling.top_k": ("i32", 1), "general.sampling.temp": ("f32", 100.0)}
    path = file.write(tmp_path / "sampling.gguf")
    command = ("run", "-q", "-m", path, "-p", "x", "-n", 20, "--ignore-eos")
    greedy = call(*command, "--temp", "0").out
    assert call(*command, "--seed", 1).out == greedy
    assert call(*command, "--seed", 1, "--top-k", 0, "--top-p", 1, "--min-p", 0).out != greedy


@pytest.mark.parametrize("temp", ["1e-40", "5e-324"])
def test_the_lowest_temperatures_are_greedy(call: Call, story: Path, temp: str) -> None:
    assert call("run", "-q", "-m", story, "-p", "hi", "--temp", temp) == (0, TEXT, "")


@pytest.mark.parametrize(
    "option", [["--no-mmap"], ["-t", "1"], ["-c", str(2**20)], ["-c", str(2**30), "--no-fit"], ["--no-think"]]
)
def test_options_that_change_nothing_here(run: Call, option: list[str]) -> None:
    assert run("-p", "hi", *option).out == TEXT


def test_prompt_longer_than_the_context(run: Call) -> None:
    for options, n_ctx in ((), N_CTX), (("-c", "64"), 64):
        done = run("--raw", "-p", "x" * 200, *options)
        assert (done.code, done.out) == (1, "")
        assert f"the prompt has 200 tokens, more than the context of {n_ctx}" in done.err
    assert run("--raw", "-p", "y" * (N_CTX - 1)).out == "z"  # prompt and answer just fit
    assert run("--raw", "-p", "y" * N_CTX).out == ""  # leaves no room for an answer


def test_a_context_beyond_the_models_is_a_warning(run: Call) -> None:
    done = run("-p", "hi", "-c", "4096")
    assert (done.code, done.out) == (0, TEXT)
    assert (
        "qwencli: warning: a context of 4096 is longer than the 128 that the model was trained for"
        in done.err
    )
    assert run("-p", "hi", "-c", "4096", "-q").err == ""


@pytest.mark.parametrize(("args", "stdin"), [(["-p", ""], b""), ([], b""), ([], b"\n"), (["-f", "-"], b"")])
def test_empty_prompt(run: Call, args: list[str], stdin: bytes) -> None:
    done = run(*args, stdin=stdin)
    assert (done.code, done.out) == (1, "")
    assert done.err.endswith("error: the prompt is empty, expected text in -p, -f or on stdin\n")


def test_the_progress_of_a_long_prompt_is_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """From its second second on, not after the last token, and not where nothing is to be shown."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(_bar, "time", clock)

    def shown_for(*steps: tuple[float, int], shown: bool = True) -> str:
        clock.now, bar = 0.0, _bar.Bar(shown, delay=1, desc="prompt")
        for clock.now, done in steps:
            bar(done, 4000)
        bar.close()
        return capfd.readouterr().err

    assert re.match(
        r"\rprompt: +26%.* 1024/4000 ", shown_for((0.5, 512), (1.5, 1024), (2.5, 2048), (3.5, 4000))
    )
    assert shown_for((1.5, 1024), (3.5, 4000), shown=False) == ""
    assert shown_for((0.5, 1024), (1.5, 4000)) == ""
