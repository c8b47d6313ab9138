"""llama-server's options: each in every spelling and by its variable means something, is taken without effect, or is refused in one line.

What options there are is what a llama-server of 2026 lists with --help (oracles/llama_server_options.txt); how booleans, letters and
underscores are read is in its common/arg.cpp.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from command_line import Call, process

from qwencli.cli import cli
from qwencli.cli._answers import TemplateOptions
from qwencli.cli._chats import ChatOptions
from qwencli.cli._llama.command import Refused
from qwencli.cli._llama.entries import Entry, Kind
from qwencli.cli._llama.meanings import MEANINGS
from qwencli.cli._llama.table import PROGRAMS, TABLE, entries, find
from qwencli.cli._loading import Loader
from qwencli.cli._machine import MachineOptions, ThreadOptions
from qwencli.cli._serving import ServingOptions
from qwencli.errors import InputError
from qwencli.hub.places import EMBEDDED

ORACLE = Path(__file__).parent / "oracles/llama_server_options.txt"
LISTED = [line.split("\t") for line in ORACLE.read_text().splitlines() if not line.startswith("#")]
"""Spellings, number of values, variable."""
SERVE = cli.get_command(click.Context(cli), "serve")
assert SERVE


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("LLAMA_", "MTMD_", "QWENCLI_MODEL")):
            monkeypatch.delenv(name)


def parsed(*args: object, command: str = "serve") -> dict[str, Any]:
    """The values of a command's parameters."""
    found = cli.get_command(click.Context(cli), command)
    assert found
    parent = click.Context(cli, **cli.context_settings)
    return found.make_context(command, [str(arg) for arg in args], parent=parent).params


def one_line(message: str) -> bool:
    return message.count("\n") == 1


# The table


def test_the_list_is_whole() -> None:
    assert len(LISTED) == 255 == len(set(TABLE))


@pytest.mark.parametrize(("names", "n_values", "variable"), LISTED)
def test_every_option_is_in_the_table(names: str, n_values: str, variable: str) -> None:
    found = [find(name) for name in names.split()]
    assert all(entry is found[0] for entry in found)
    assert sorted((*found[0].names, *found[0].negations)) == sorted(names.split())
    assert len(found[0].values) == int(n_values)
    assert (found[0].variable or "") == variable


def test_nothing_is_in_the_table_twice() -> None:
    for program in PROGRAMS:
        names = [name for entry in entries(program) for name in (*entry.names, *entry.negations)]
        assert len(names) == len(set(names)), program


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_what_is_said_to_mean_something_does(entry: Entry) -> None:
    own = {name: param for param in SERVE.params for name in (*param.opts, *param.secondary_opts)}
    has = {name for name in (*entry.names, *entry.negations) if name in own}
    if entry.kind in (Kind.SAME, Kind.DIFFERENT):
        assert entry.name in MEANINGS or has == {*entry.names, *entry.negations}
        assert len({own[name] for name in has}) <= 1
    if entry.kind is Kind.NO_MEANING:
        assert not has
    if entry.kind in (Kind.DIFFERENT, Kind.NO_MEANING, Kind.REFUSED, Kind.PRINTS):
        assert entry.note
        assert "\n" not in entry.note


def test_the_docs_have_the_table() -> None:
    import document_options

    docs = document_options.DOCS.read_text(encoding="utf-8")
    assert document_options.written(docs) == docs
    for names, *_ in LISTED:
        assert all(f"`{name}`" in docs for name in names.split())


def test_help_names_the_variables(call: Call) -> None:
    shown = call("serve", "--help").out
    for entry in TABLE:
        own = next((p for p in SERVE.params if set(p.opts) & set(entry.names)), None)
        if entry.variable and own and not getattr(own, "hidden", False):
            assert entry.variable in shown
    assert "LLAMA_ARG" not in call("bench", "--help").out  # llama-bench reads none
    assert "LLAMA_ARG" not in call("info", "--help").out


# How start lines are read


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        ("-np 2", "n_slots", 2),
        ("-tb 4", "threads_batch", 4),
        ("--threads_batch 4", "threads_batch", 4),
        ("--threads-batch=4", "threads_batch", 4),
        ("-ctk q8_0", "cache_type_k", "q8_0"),
        ("--cache_type_k q8_0", "cache_type_k", "q8_0"),
        ("-kvu", "kv_unified", True),
        ("-no-kvu", "kv_unified", False),
        ("--no_kv_unified", "kv_unified", False),
        ("-hfr a/b", "hf_repo", "a/b"),
        ("-C 0xf -Cr 0-3", "cpu_range", "0-3"),
        ("-c 0", "n_ctx", None),
        ("-t -1", "threads", None),
        ("-t 3", "threads", 3),
        ("-np -1", "n_slots", None),
        ("-s -1", "seed", None),
        ("-s 7", "seed", 7),
        ("-fit on", "fit", True),
        ("--fit off", "fit", False),
        ("--fit", "fit", True),
        ("--no-fit", "fit", False),
        ("-rea off", "think", False),
        ("--reasoning on", "think", True),
        ("--reasoning auto", "think", None),
        ("-lm none", "no_mmap", True),
        ("-lm mmap+mlock", "mlock", True),
        ("-lm mlock", "no_mmap", True),
        ("--load-mode mmap", "no_mmap", False),
        ("--mmap", "no_mmap", False),
        ("--no-mmap", "no_mmap", True),
        ("--mlock", "mlock", True),
        ("-dev none", "device", None),
        ("-ot .*=CPU", "override_tensor", ()),
        ("-ot a=CPU,b=cpu:0", "override_tensor", ("b=cpu:0",)),
        ("-mu https://huggingface.co/a/b/resolve/main/c/d.gguf", "hf_file", "c/d.gguf"),
        ("-mu https://huggingface.co/a/b/resolve/main/d.gguf?download=true", "hf_repo", "a/b"),
        ("--log-jsonl", "log_format", "json"),
        ("-lv 1", "quiet", True),
        ("-lv 5", "verbose", True),
        ("-lv 3", "verbose", False),
        ("--log-disable", "quiet", True),
        ("--host a.sock,127.0.0.1", "host", ("a.sock", "127.0.0.1")),
        ("--no-slots", "slots", False),
        ("--no-webui", "ui", False),
        ("--api-prefix /a/b/", "api_prefix", "/a/b"),
        ('--chat-template-kwargs {"a":1}', "chat_template_kwargs", {"a": 1}),
        ("--reranking", "reranking", True),
        ("--embedding", "embeddings", True),
        ("--jinja", "slots", True),
        ("-r -ngl", "stop", ("-ngl",)),  # a value that looks like an option
    ],
)
def test_what_is_read(args: str, name: str, value: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert parsed(*args.split())[name] == value
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("entry", [e for e in TABLE if e.kind is Kind.REFUSED], ids=lambda entry: entry.name)
def test_refused_options_say_why_in_one_line(entry: Entry, call: Call) -> None:
    for name in entry.names:
        result = call("serve", name, *["x"] * len(entry.values))
        assert (result.code, result.out) == (2, "")
        assert result.err == f"qwencli: error: {name}: {entry.note}\n"
    for name in {*entry.negations} & entry.nothing:
        parsed(name)


@pytest.mark.parametrize(
    "entry", [e for e in TABLE if e.kind is Kind.NO_MEANING], ids=lambda entry: entry.name
)
def test_options_without_a_meaning_are_named_in_one_line(
    entry: Entry, capfd: pytest.CaptureFixture[str]
) -> None:
    spelt = [name for name in (*entry.names, *entry.negations) if name not in entry.nothing]
    value = [word for word in entry.words if word not in entry.nothing][:1] or ["7"] * len(entry.values)
    parsed("-nkvo", *(word for name in spelt for word in (name, *value)))
    names = list(dict.fromkeys(["-nkvo", *spelt]))
    assert capfd.readouterr().err == f"qwencli: warning: without effect here: {', '.join(names)}\n"
    parsed("-q", "-nkvo")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "args",
    [
        "-fa on -fa auto -fa -fa 1",
        "-ngl 0 -sm none --n-cpu-moe 0",
        "--warmup -cb --jinja --no-mmproj --cache-reuse 0",
        "--spec-type none --models-max 1 --adaptive-target -1 --poll 10 --poll-batch 10",
        "-Crb 0-1 -Cr 0-1 --prio-batch 1 --prio 1",
        "--no-ui-mcp-proxy -no-ag --cors-headers *",
    ],
)
def test_what_asks_for_nothing_is_taken_silently(args: str, capfd: pytest.CaptureFixture[str]) -> None:
    parsed(*args.split())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("-ngl", "'-ngl' requires an argument"),
        ("--control-vector-layer-range 1", "'--control-vector-layer-range' requires 2 arguments"),
        ("-ngll 99", "-ngl"),
        ("-np2 4", "-np"),
        ("--paralel 4", "--parallel"),
        ("-np x", "'x' is not a valid integer"),
        ("-lm dio", "-lm: direct I/O doesn't exist here: `none` reads the file into memory"),
        ("-lm x", "-lm: 'x' is not one of auto, mmap, none, mlock, mmap+mlock"),
        ("-fit maybe", "unexpected extra argument"),
        ("-mu https://example.org/a.gguf", "-mu: models come from huggingface.co only"),
        ("--host ,", "it names no address"),
        ("--api-prefix a b", "is no path such as"),
        ("--sleep-idle-seconds 0", "0 is neither a number of seconds nor -1"),
        ("--chat-template-kwargs [1]", "expected a JSON object"),
        ("--ui-config {", "not JSON"),
        ("--slot-save-path /none/such", "does not exist"),
        ("--cpu-strict 2", "'2' is not one of '0', '1'"),
        ("-Cb f", "-Cb: the threads that answer also read prompts: give -C"),
        ("-Cb f -C e", "-Cb: the threads that answer also read prompts: give -C"),
    ],
)
def test_what_is_wrong(args: str, said: str, call: Call) -> None:
    result = call("serve", *args.split())
    assert (result.code, result.out) == (2, "")
    assert said in result.err


@pytest.mark.parametrize(
    ("option", "begin"),
    [
        ("--version", "qwencli, version "),
        ("--usage", "Usage: "),
        ("--completion-bash", "_qwencli_completion()"),
    ],
)
def test_what_prints_and_exits(option: str, begin: str, call: Call) -> None:
    result = call("serve", option)
    assert result.code == 0
    assert result.out.lstrip().startswith(begin)


def test_lists_are_those_of_the_commands(call: Call) -> None:
    shown = call("serve", "--list-devices").out
    assert shown.split(",")[0] == call("devices").out.split(",")[0]  # how much memory is free changes
    assert call("serve", "-cl").out == call("list").out


# Variables


@pytest.mark.parametrize(
    ("variable", "value", "name", "expected"),
    [
        ("LLAMA_ARG_CTX_SIZE", "64", "n_ctx", 64),
        ("LLAMA_ARG_MODEL", "a.gguf", "model", "a.gguf"),
        ("LLAMA_ARG_HOST", "0.0.0.0", "host", ("0.0.0.0",)),
        ("LLAMA_ARG_N_PREDICT", "-1", "max_tokens", -1),
        ("LLAMA_ARG_TOP_K", "5", "top_k", 5),
        ("LLAMA_ARG_ENDPOINT_METRICS", "enabled", "metrics", True),
        ("LLAMA_ARG_ENDPOINT_METRICS", "1", "metrics", True),
        ("LLAMA_ARG_ENDPOINT_METRICS", "off", "metrics", False),
        ("LLAMA_ARG_ENDPOINT_SLOTS", "false", "slots", False),
        ("LLAMA_ARG_NO_ENDPOINT_SLOTS", "1", "slots", False),
        ("LLAMA_ARG_NO_ENDPOINT_SLOTS", "0", "slots", False),  # as in llama.cpp: that it is there says no
        ("LLAMA_ARG_NO_UI", "", "ui", False),
        ("LLAMA_ARG_CONTEXT_SHIFT", "true", "context_shift", True),
        ("LLAMA_ARG_NO_MMAP", "1", "no_mmap", True),
        ("LLAMA_ARG_MMAP", "0", "no_mmap", True),
        ("LLAMA_ARG_MLOCK", "on", "mlock", True),
        ("LLAMA_ARG_FIT", "off", "fit", False),
        ("LLAMA_ARG_REASONING", "0", "think", False),
        ("LLAMA_ARG_LOG_JSONL", "1", "log_format", "json"),
        ("LLAMA_ARG_OFFLINE", "1", "offline", True),
        ("LLAMA_ARG_CTX_SIZE", "", "n_ctx", None),
    ],
)
def test_what_variables_set(
    variable: str, value: str, name: str, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert parsed()[name] == expected


def test_a_flag_counts_before_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "64")
    monkeypatch.setenv("LLAMA_ARG_TEMPERATURE", "nonsense")
    monkeypatch.setenv("LLAMA_ARG_NO_ENDPOINT_SLOTS", "1")
    monkeypatch.setenv("LLAMA_ARG_SPEC_DRAFT_MODEL", "")
    found = parsed("-c", 128, "--temp", 0, "--slots")
    assert (found["n_ctx"], found["temp"], found["slots"]) == (128, 0.0, True)
    found = parsed("--ctx-size", 0, "--temp", 0)
    assert (found["n_ctx"], found["slots"]) == (None, False)


def test_a_flag_for_the_model_counts_before_all_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_HF_REPO", "a/b")
    found = parsed("-m", "c.gguf")
    assert (found["model"], found["hf_repo"]) == ("c.gguf", None)
    assert parsed()["hf_repo"] == "a/b"


def test_the_order_of_what_names_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    """flag, LLAMA_ARG_MODEL, QWENCLI_MODEL, ./models, demo."""
    files = {}
    for name in "flag", "llama", "ours", "folder":
        files[name] = tmp_path / f"{name}.gguf"
        files[name].write_bytes(EMBEDDED.read_bytes())
    (tmp_path / "models").mkdir()
    files["folder"].rename(tmp_path / "models/folder.gguf")

    def used(*args: object) -> str:
        monkeypatch.chdir(tmp_path)
        said = call("run", "-p", "hi", "-n", 1, *args).err
        return Path(said.partition("model: ")[2].partition(" (")[0]).stem

    assert used().startswith("folder")
    monkeypatch.setenv("QWENCLI_MODEL", str(files["ours"]))
    assert used() == "ours"
    monkeypatch.setenv("LLAMA_ARG_MODEL", str(files["llama"]))
    assert used() == "llama"
    assert used("-m", files["flag"]) == "flag"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("LLAMA_ARG_CTX_SIZE", "big", "'big' is not a valid integer"),
        ("LLAMA_ARG_PORT", "99999", "99999 is not in the range"),
        ("LLAMA_ARG_ENDPOINT_METRICS", "maybe", "'maybe' is neither on nor off"),
        ("LLAMA_ARG_FIT", "maybe", "'maybe' is not one of on, off"),
        ("LLAMA_ARG_LOAD_MODE", "x", "'x' is not one of"),
        ("LLAMA_ARG_TOP_P", "2", "2.0 is not in the range"),
        ("LLAMA_ARG_CACHE_TYPE_K", "q5_1", "'q5_1' is not one of"),
        ("LLAMA_ARG_UI_CONFIG", "[]", "expected a JSON object"),
        ("LLAMA_ARG_SPEC_DRAFT_MODEL", "x.gguf", "speculative decoding doesn't exist here yet"),
        ("LLAMA_ARG_MMPROJ", "x", "come later"),
    ],
)
def test_errors_name_the_variable(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.setenv(variable, value)
    result = call("serve", "--port" if variable != "LLAMA_ARG_PORT" else "--queue", 0)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"qwencli: error: {variable}: ")
    assert said in result.err
    assert one_line(result.err)


def test_variables_without_effect_join_the_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMA_ARG_N_GPU_LAYERS", "99")
    monkeypatch.setenv("LLAMA_ARG_NO_KV_OFFLOAD", "1")
    monkeypatch.setenv("LLAMA_ARG_TYPO", "1")
    monkeypatch.setenv("LLAMA_ARG_FLASH_ATTN", "on")
    parsed("-sm", "row")
    assert (
        capfd.readouterr().err
        == "qwencli: warning: without effect here: -sm, LLAMA_ARG_NO_KV_OFFLOAD, LLAMA_ARG_N_GPU_LAYERS, LLAMA_ARG_TYPO\n"
    )


def test_what_is_for_a_server_alone_says_nothing_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_PORT", "nonsense")
    monkeypatch.setenv("LLAMA_ARG_TOOLS", "all")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "64")
    monkeypatch.setenv("LLAMA_ARG_N_PREDICT", "3")
    assert parsed(command="run")["n_ctx"] == 64
    assert parsed(command="chat")["max_tokens"] == 3
    assert parsed("-f", "x", command="perplexity")["n_ctx"] == 64
    monkeypatch.setenv("LLAMA_ARG_MODEL", "x.gguf")
    found = parsed(command="bench")  # llama-bench reads none
    assert (found["n_batch"], found["models"]) == ([512], ())
    with pytest.raises(Refused):
        parsed()
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "nonsense")
    assert parsed("--url", "http://127.0.0.1:1", command="chat")["n_ctx"] is None
    parsed(command="bench")


@pytest.mark.parametrize("command", ["run", "chat", "perplexity"])
def test_other_commands_read_the_same(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    file = ("-f", "x") if command == "perplexity" else ()
    found = parsed(*file, "-ngl", 99, "-tb", 3, "--cpu_range", "0-1", "-ctk", "q8_0", command=command)
    assert (found["threads_batch"], found["cpu_range"], found["cache_type_k"]) == (3, "0-1", "q8_0")
    assert capfd.readouterr().err == "qwencli: warning: without effect here: -ngl\n"
    with pytest.raises(click.NoSuchOption):
        parsed(*file, "--cors-origins", "x", command=command)


def test_shares_without_devices_have_no_meaning(capfd: pytest.CaptureFixture[str]) -> None:
    assert parsed("-ts", "3,1")["tensor_split"] is None
    assert capfd.readouterr().err == "qwencli: warning: without effect here: -ts\n"
    assert parsed("-ts", "3,1", "-dev", "cpu:0,cpu:0")["tensor_split"] == "3,1"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("command", ["run", "chat"])
def test_grammars_and_schemas_in_every_spelling(command: str) -> None:
    assert parsed("--grammar-file", "a.gbnf", command=command)["grammar"] == "a.gbnf"
    for option in "-j", "--json-schema", "-jf", "--json_schema_file":
        assert parsed(option, "a.json", command=command)["json_schema"] == "a.json"


def test_bench_takes_llama_benchs(capfd: pytest.CaptureFixture[str]) -> None:
    found = parsed(
        *[
            "-p",
            "16",
            "-n",
            "4",
            "-ngl",
            "99",
            "-fa",
            "1",
            "-nkvo",
            "1",
            "-ub",
            "8,16",
            "-t",
            "1,2",
            "-v",
            "--prio",
            "0",
        ],
        command="bench",
    )
    assert (found["n_ubatch"], found["n_threads"]) == ([8, 16], [1, 2])
    assert capfd.readouterr().err == "qwencli: warning: without effect here: -ngl, -nkvo, -v\n"


# What becomes of them


def serving(*args: object) -> ServingOptions:
    return gathered_from(ServingOptions, parsed(*args))


def gathered_from(kind: type[Any], params: dict[str, Any]) -> Any:
    return kind(**{name: params[name] for name in kind.__annotations__})


@pytest.mark.parametrize(
    ("args", "context"),
    [
        ("", None),
        ("-c 1000", 1000),
        ("-c 2048 -np 2", 1024),
        ("-c 2048 -np 2 -kvu", 2048),
        ("-c 2048 -np 2 -no-kvu", 1024),
        ("-c 1000 -np 3", 512),  # 1000 becomes 1024, a third of it 341, which becomes 512
        ("-c 100 -np 1", 256),
        ("-np 3", None),
        ("--kv-unified-per-slot 300", 300),
        ("-c 2048 --kv-unified-per-slot 300", 300),
        ("-c 2048 -np 8 --kv-unified-per-slot 300", 256),
    ],
)
def test_slots_divide_the_context(args: str, context: int | None) -> None:
    """llama_context in llama.cpp's src/llama-context.cpp, n_ctx_seq; server.cpp for what is by default."""
    assert serving(*args.split()).context(parsed(*args.split())["n_ctx"]) == context


def test_all_that_a_server_is_told_reaches_it(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"theme": "dark"}')
    options = f"""-a b,a --tags z,y --metrics --no-slots --props --slot-save-path {tmp_path} --context-shift --keep 5
        --sleep-idle-seconds 60 --embeddings --embd-normalize -1 --spm-infill --path {tmp_path} --no-cache-prompt
        --ui-config-file {config} --no-ui"""
    assert serving(*options.split()).settings("file.gguf") == {
        "name": "a",
        "aliases": ("a", "b"),
        "tags": ("y", "z"),
        "metrics": True,
        "slots": False,
        "props": True,
        "slot_save_path": tmp_path,
        "context_shift": True,
        "n_keep": 5,
        "sleep_idle_seconds": 60,
        "only": "embeddings",
        "embd_normalize": -1,
        "suffix_first": True,
        "static_path": tmp_path,
        "cache_prompt": False,
        "ui_config": {"theme": "dark"},
        "ui": False,
    }


def chats(*args: object) -> dict[str, Any]:
    params = parsed(*args)
    templates = gathered_from(TemplateOptions, params)
    names = [name for name in ChatOptions.__annotations__ if name != "templates"]
    return ChatOptions(templates=templates, **{name: params[name] for name in names}).settings()


def test_what_is_said_of_chats_reaches_the_server() -> None:
    assert chats() == {
        "template_kwargs": {},
        "think": None,
        "reasoning_budget": None,
        "reasoning_message": "",
        "reasoning_effort": None,
        "reasoning_format": "auto",
        "parse_answers": True,
        "prefill_assistant": True,
    }
    found = chats(
        *("--chat-template-kwargs", '{"enable_thinking": false, "a": 1}', "--reasoning-budget", 0),
        *("--reasoning-effort", "high", "--reasoning-format", "deepseek", "--skip-chat-parsing"),
        *("--no-prefill-assistant", "--no-reasoning-preserve", "--reasoning-budget-message", "enough"),
    )
    assert found == {
        "template_kwargs": {"a": 1, "preserve_reasoning": False},
        "think": False,
        "reasoning_budget": 0,
        "reasoning_message": "enough",
        "reasoning_effort": "high",
        "reasoning_format": "deepseek",
        "parse_answers": False,
        "prefill_assistant": False,
    }
    assert chats("--reasoning-effort", "default")["reasoning_effort"] is None
    assert chats("-rea", "on", "--chat-template-kwargs", '{"enable_thinking": false}')["think"] is True
    with pytest.raises(InputError, match="enable_thinking is 'maybe', expected true or false"):
        chats("--chat-template-kwargs", '{"enable_thinking": "maybe"}')


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("chatml", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
        ("zephyr", "<|user|>\nhi<|endoftext|>\n<|assistant|>\n"),
        ("{{ messages[0].content }}!", "hi!"),
        ("Once upon a time", "Once upon a time"),
        ("FILE", "hi?"),
    ],
)
def test_templates_by_name_text_or_file(value: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ messages[0].content }}?")
    name = value.replace("FILE", str(path))
    found = gathered_from(TemplateOptions, parsed("--chat-template", name)).template()
    assert found.render([{"role": "user", "content": "hi"}]) == text
    if value == "FILE":
        found = gathered_from(TemplateOptions, parsed("--chat-template-file", name)).template()
        assert found.render([{"role": "user", "content": "hi"}]) == text


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        (
            "--chat-template",
            "none/such",
            "No such file or directory, expected a built-in name such as chatml, the path of a Jinja file",
        ),
        ("--chat-template-file", "chatml", "No such file or directory, expected a Jinja file"),
    ],
)
def test_templates_that_are_not_there(option: str, value: str, said: str, call: Call) -> None:
    result = call("run", "-p", "hi", option, value)
    assert (result.code, result.out) == (1, "")
    assert said in result.err
    assert one_line(result.err)


def test_what_the_machine_is_told_reaches_it() -> None:
    params = parsed(
        *[
            "-tb",
            "3",
            "-C",
            "0x5",
            "-Cr",
            "1-1",
            "--cpu-strict",
            "1",
            "--prio",
            "2",
            "--poll",
            "0",
            "--numa",
            "isolate",
            "--mlock",
            "--rope-scaling",
            "yarn",
            "--rope-scale",
            "2",
        ],
        *[
            "--yarn-orig-ctx",
            "64",
            "--override-kv",
            "a=int:1",
            "--override-kv",
            "b=bool:true",
            "--check-tensors",
        ],
    )
    machine = MachineOptions(
        cpus=gathered_from(ThreadOptions, params),
        **{name: params[name] for name in MachineOptions.__annotations__ if name != "cpus"},
    )
    found = machine.arguments()
    threads, rope = found["threads"], found["rope"]
    assert (threads.batch, threads.cpus, threads.strict) == (3, {0, 1, 2}, True)
    assert (threads.priority, threads.poll, threads.numa) == (2, 0, "isolate")
    assert (rope.scaling, rope.scale, rope.yarn_orig_ctx) == ("yarn", 2.0, 64)
    assert found["overrides"] == {"a": 1, "b": True}
    assert found["mlock"]
    assert found["check_tensors"]


def test_run_takes_a_start_line_of_llama_cpps(call: Call, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    args = [
        "-ngl",
        "99",
        "-fa",
        "on",
        "-t",
        "2",
        "-tb",
        "2",
        "-c",
        "256",
        "-b",
        "64",
        "-ub",
        "32",
        "--temp",
        "0",
        "-n",
        "4",
        "--no_escape",
        "--mlock",
        "-r",
        "xyz",
    ]
    plain = call("run", "-p", "Once", "-n", 4, "--temp", 0)
    done = process("run", "-p", "Once", *args, "--log-file", log)
    assert done.stdout.decode() == plain.out
    assert log.read_bytes() == done.stderr[done.stderr.index(b"model:") :]


@pytest.mark.skipif(sys.platform == "win32", reason="signals and unix sockets are POSIX's")
def test_serve_takes_a_start_line_of_llama_servers(tmp_path: Path) -> None:
    from test_serve import serve

    os.environ["LLAMA_ARG_ALIAS"] = "zz,aa"
    try:
        with serve(
            *[
                "-c",
                "512",
                "-np",
                "2",
                "-ngl",
                "99",
                "-fa",
                "on",
                "--jinja",
                "-rea",
                "off",
                "--tags",
                "b,a",
                "--no-slots",
                "--reasoning-format",
                "none",
            ],
            *("--host", "127.0.0.1"),
        ) as server:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                models = client.get("/v1/models").json()
                assert models["data"][0]["id"] == "aa"
                props = client.get("/props").json()
                assert props["total_slots"] == 2
                assert props["default_generation_settings"]["n_ctx"] == 256
            server.process.send_signal(signal.SIGTERM)
            assert "qwencli: warning: without effect here: -ngl" in server.lines
    finally:
        del os.environ["LLAMA_ARG_ALIAS"]


def test_loader_knows_whether_something_was_asked() -> None:
    assert not gathered_loader().asked
    assert gathered_loader("-t", 2).asked
    assert gathered_loader("--mlock").asked


def gathered_loader(*args: object) -> Loader:
    params = parsed(*args)
    machine = MachineOptions(
        cpus=gathered_from(ThreadOptions, params),
        **{name: params[name] for name in MachineOptions.__annotations__ if name != "cpus"},
    )
    names = [name for name in Loader.__annotations__ if name not in ("machine", "devices", "model")]
    from qwencli.cli._devices import DeviceOptions

    return Loader(
        model=None, devices=DeviceOptions(), machine=machine, **{name: params[name] for name in names}
    )
