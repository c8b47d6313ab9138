"""docs/server.md stays true: each example runs against a server with the demo model and prints what is shown, and what it says there is,
and is not, is so."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from engine_runs import held
from prometheus_client.parser import text_string_to_metric_families
from serving import Serving, serving, until

from qwencli.cli import cli
from qwencli.cli._llama.table import PROGRAMS, spellings
from qwencli.hub.places import EMBEDDED, VARIABLE
from qwencli.server.llamacpp.fields import CompletionFields, InfillFields
from qwencli.server.openai.fields import ChatRequest, CompletionRequest

ROOT = Path(__file__).resolve().parents[1]
DOCS = (ROOT / "docs/server.md").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:8080"
FENCE = re.compile(r"^```(\w*)\n(.+?)^```$(?:\n+```text\n(.+?)^```$)?", re.M | re.S)
BLOCKS = [(kind, text, shown or None) for kind, text, shown in FENCE.findall(DOCS)]
"""Language, text, and the output that follows if there is one."""
CALLS = [block for block in BLOCKS if block[0] == "sh" and ADDRESS in block[1]]
TEXT: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 2}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
RESPONSE: dict[str, Any] = {"input": "hello", "max_output_tokens": 2}
EMBEDDING: dict[str, Any] = {"content": "a king"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/chat/completions": CHAT,
    "/v1/completions": TEXT,
    "/completion": TEXT,
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/completions": TEXT,
    "/v1/embeddings": {"input": "a king"},
    "/embedding": EMBEDDING,
    "/embeddings": EMBEDDING,
    "/props": {},
    "/tokenize": {"content": "Once"},
    "/detokenize": {"tokens": [1925]},
    "/apply-template": CHAT,
    "/v1/chat/completions/input_tokens": CHAT,
    "/chat/completions/input_tokens": CHAT,
    "/v1/responses": RESPONSE,
    "/responses": RESPONSE,
    "/v1/responses/input_tokens": RESPONSE,
    "/responses/input_tokens": RESPONSE,
    "/v1/messages": CHAT,
    "/v1/messages/count_tokens": CHAT,
    "/api/chat": CHAT | {"options": {"num_predict": 3}},
    "/api/generate": {"prompt": "Once", "options": {"num_predict": 3}},
    "/api/embed": {"input": "a king"},
    "/api/embeddings": {"prompt": "a king"},
}


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.+?)(?=^## |\Z)", DOCS, re.M | re.S)
    assert found, title
    return found[1]


def matches(shown: str, got: str) -> bool:
    """`...` matches anything, and a shown line may be broken where the output's isn't."""
    *parts, last = (r"\s*".join(map(re.escape, part.split())) for part in shown.split("..."))
    got, at = got.strip(), 0
    for i, part in enumerate(
        parts
    ):  # each where it comes first: one expression for all would try every way to divide the text
        found = re.compile(part).search(got, at) if i else re.compile(part).match(got)
        if found is None:
            return False
        at = found.end()
    end = re.compile(last + r"\Z")
    return (end.search(got, at) if parts else end.match(got)) is not None


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(metrics=True) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `qwencli` is the package under test and the model is the embedded one."""
    if os.name != "posix" or not shutil.which("curl"):
        pytest.skip("the examples are for a POSIX shell with curl")
    program = tmp_path_factory.mktemp("bin") / "qwencli"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m qwencli "$@"\n')
    program.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        VARIABLE: str(EMBEDDED),
    }


def output(command: list[str], env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bash(line: str, env: dict[str, str], cwd: Path | None = None) -> str:
    return output(["bash", "-o", "pipefail", "-c", line], env, cwd)


def examples(kind: str) -> list[Any]:
    """As parameters: program, shown output."""
    blocks = CALLS if kind == "sh" else [block for block in BLOCKS if block[0] == kind]
    return [pytest.param(text, shown, id=text.replace("\n", " ")[:60]) for _, text, shown in blocks]


def check(got: str, shown: str | None) -> None:
    assert got.strip()
    assert shown is None or matches(shown, got), got


def test_there_are_examples_of_each_kind() -> None:
    assert all(examples(kind) for kind in ("sh", "python", "js"))
    assert DOCS.count("```") == 2 * (len(BLOCKS) + sum(shown is not None for *_, shown in BLOCKS))


@pytest.mark.parametrize(("line", "shown"), examples("sh"))
def test_shell(line: str, shown: str | None, server: Serving, shell: dict[str, str]) -> None:
    check(bash(line.replace(ADDRESS, f"127.0.0.1:{server.port}"), shell), shown)


@pytest.mark.parametrize(("program", "shown"), examples("python"))
def test_python(program: str, shown: str | None, server: Serving) -> None:
    check(output([sys.executable, "-c", program.replace(ADDRESS, f"127.0.0.1:{server.port}")]), shown)


@pytest.mark.parametrize(("program", "shown"), examples("js"))
def test_javascript(program: str, shown: str | None, server: Serving, tmp_path: Path) -> None:
    node = shutil.which("node")
    if not node or int(output([node, "--version"])[1:].partition(".")[0]) < 18:
        pytest.skip("Node.js 18 or later is not installed")
    (tmp_path / "example.mjs").write_text(
        program.replace(ADDRESS, f"127.0.0.1:{server.port}"), encoding="utf-8"
    )
    check(output([node, "example.mjs"], cwd=tmp_path), shown)


def test_an_answer_of_a_given_form(server: Serving, shell: dict[str, str]) -> None:
    """The example whose output is another one each time."""
    (line,) = (text for _, text, shown in CALLS if shown is None)
    answer = json.loads(bash(line.replace(ADDRESS, f"127.0.0.1:{server.port}"), shell))
    found = json.loads(answer["choices"][0]["message"]["content"])
    assert found.keys() == {"colour", "share"}
    assert found["colour"] in ("red", "green", "blue")
    assert 0 <= found["share"] <= 100


@contextmanager
def started(line: str, env: dict[str, str], cwd: Path) -> Iterator[list[str]]:
    """The server that a line starts, on a port that is free: what it has said when it is there. It ends with code 0."""
    process = subprocess.Popen(
        ["bash", "-c", line.replace("qwencli serve", "exec qwencli serve --port 0")],
        env=env,
        cwd=cwd,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    try:
        for text in process.stderr or ():
            said.append(text)
            if text.startswith("listening"):
                break
        yield said
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_how_it_starts(shell: dict[str, str], tmp_path: Path) -> None:
    (_, line, shown), *_ = BLOCKS
    with started(line, {name: value for name, value in shell.items() if name != VARIABLE}, tmp_path) as said:
        port = re.search(r":(\d+) ", said[-1])
        assert port
        check("".join(said).replace(f":{port[1]} ", ":8080 "), shown)


def test_keys_and_tls(shell: dict[str, str], tmp_path: Path) -> None:
    """The three lines about it, as shown except for the port."""
    make, serve, call = (
        text for kind, text, _ in BLOCKS if kind == "sh" and ("openssl" in text or "8443" in text)
    )
    (shown,) = (shown for _, text, shown in BLOCKS if text == call)
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    bash(make, shell, tmp_path)
    with started(serve.replace(" --port 8443", ""), shell, tmp_path) as said:
        port = re.match(r"listening on https://127\.0\.0\.1:(\d+) ", said[-1])
        assert port
        call = call.replace("8443", port[1])
        check(bash(call, shell, tmp_path), shown)
        assert (
            json.loads(bash(call.replace("secret", "wrong"), shell, tmp_path))["error"]["code"]
            == "invalid_api_key"
        )


# What the tables and lists say


REFUSED = re.compile(r"refused with (\d+)")


def endpoints() -> dict[tuple[str, str], str]:
    """What the last column says, "" for nothing, of each method and path that a table of this section names."""
    found = {}
    for row in section("Endpoints").splitlines():
        if match := re.match(r"\| `([A-Z]+) (/\S*)`.*\|(.*)\|$", row):
            method, _, says = match.groups()
            named = re.findall(r"`([A-Z]+) (/[^`\s]*)`", row)
            named += [(method, other) for other in re.findall(r"`(/[^`\s]*)`", row.partition("; also ")[2])]
            found |= dict.fromkeys(named, says.strip())
    return found


@pytest.mark.parametrize(("method", "path"), endpoints())
def test_each_endpoint_answers(client: httpx.Client, method: str, path: str) -> None:
    says = endpoints()[method, path]
    body = BODIES.get(path, {})
    kept = path.startswith("/v1/responses/{id}")
    id = client.post("/v1/responses", json=RESPONSE).json()["id"] if kept else "demo-q4_k_m.gguf"
    url = path.replace("{id}", id)
    answer = client.request(method, url, json=body) if method != "GET" else client.get(url)
    refused = REFUSED.search(says)
    assert answer.status_code == (int(refused[1]) if refused else 200)
    if method == "POST" and not refused:
        kind = client.post(url, json=body | {"stream": True}).headers["content-type"]
        stream = "application/x-ndjson" if path.startswith("/api/") else "text/event-stream"
        assert kind.startswith(stream if "streams" in says else "application/json")


def test_the_table_has_all_endpoints(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()["paths"]
    there = {(method.upper(), path) for path, methods in described.items() for method in methods}
    assert endpoints().keys() == there | {("GET", "/"), ("GET", "/openapi.json")}


UNSUPPORTED = re.findall(r"^\| `(\S+)` \| `(\{.*\})`.* \| (\d+) \|$", section("What is not supported"), re.M)


@pytest.mark.parametrize(("path", "fields", "status"), UNSUPPORTED)
def test_what_is_not_supported_is_refused(client: httpx.Client, path: str, fields: str, status: str) -> None:
    assert client.post(path, json=BODIES[path] | json.loads(fields)).status_code == int(status)


def test_all_rows_of_what_is_not_supported_are_tried() -> None:
    assert len(UNSUPPORTED) == section("What is not supported").count("\n| `") > 8


def test_paths_that_are_not_there(client: httpx.Client) -> None:
    paths = re.findall(r"`(/\S+)`", section("What is not supported").partition("404:")[2].partition(".\n")[0])
    assert len(paths) > 5
    assert {
        client.request(method, path, json={}).status_code for path in paths for method in ("GET", "POST")
    } == {404}


FIELDS_OF = {
    "/completion": CompletionFields,
    "/infill": InfillFields,
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
}


def test_fields_of_llama_servers() -> None:
    """Each is said to be known where it is, and nowhere else."""
    rows = re.findall(r"^\| (.+?) \| (`.+?) \| (.+?) \|$", section("Fields"), re.M)
    assert len(rows) == section("Fields").count("\n| ") - 1 > 10
    told = {path: set[str]() for path in FIELDS_OF}
    for where, fields, says in rows:
        paths = FIELDS_OF if where == "all" else re.findall(r"`(\S+)`", where)
        for path in paths:
            known = {f.alias or name for name, f in FIELDS_OF[path].model_fields.items()}
            for field in re.findall(r"`(\S+)`", fields):
                if field in ("prompt", "messages"):
                    continue
                there = says.startswith(("the same", "different")) or field == "n_indent"
                assert (field in known) == there, (path, field)
                told[path].add(field)
    ours = {"prompt", "messages", "model", "user", "think", "reasoning_budget"}
    for path, model in FIELDS_OF.items():
        assert {f.alias or name for name, f in model.model_fields.items()} - told[path] <= ours, path


def test_fields_that_are_ignored(client: httpx.Client) -> None:
    names = set(
        re.findall(r"`(\w+)`", section("What is not supported").partition("Ignored:")[2].partition(".\n")[0])
    ) - {"strict"}
    values = {
        "functions": [{"name": "f"}],
        "function_call": {"name": "f"},
        "image_data": [{"data": "", "id": 1}],
    }
    assert values.keys() < names
    for path, body in ("/v1/chat/completions", CHAT), ("/completion", TEXT):
        greedy = body | {"temperature": 0, "max_tokens": 8}
        answers = [
            client.post(path, json=greedy | fields).json()
            for fields in ({}, {name: values.get(name, "high") for name in names})
        ]
        said = [answer.get("content") or answer["choices"][0]["message"] for answer in answers]
        assert said[0] == said[1]


@pytest.mark.parametrize(
    ("path", "fits", "too_much"),
    [
        ("/v1/completions", {"prompt": ["a"] * 68}, {"prompt": ["a"] * 129}),
        ("/completion", {"prompt": ["a"] * 68}, {"prompt": ["a"] * 69}),
        ("/v1/embeddings", {}, {"input": ["a"] * 2049}),
        ("/embedding", {}, {"content": ["a"] * 1025}),
        ("/v1/chat/completions", {"n": 68}, {"n": 69}),
        ("/completion", {"n_cmpl": 4}, {"n_cmpl": 5}),
        ("/completion", {"stop": ["a" * 256] * 32}, {"stop": ["a"] * 33}),
        ("/completion", {"stop": "a" * 256}, {"stop": "a" * 257}),
        (
            "/completion",
            {"logit_bias": [[i, 1] for i in range(1024)]},
            {"logit_bias": [[i, 1] for i in range(1025)]},
        ),
        ("/completion", {"n_probs": 1000}, {"n_probs": 1001}),
        ("/v1/completions", {"logprobs": 20}, {"logprobs": 21}),
        (
            "/v1/chat/completions",
            {"logprobs": True, "top_logprobs": 20},
            {"logprobs": True, "top_logprobs": 21},
        ),
        ("/completion", {"prompt": [1925] * 1023}, {"prompt": [1925] * 1024}),
        ("/apply-template", {}, {"tools": [{"type": "function", "function": {"name": "f"}}] * 1001}),
        ("/apply-template", {}, {"messages": CHAT["messages"] * 10_001}),
    ],
)
def test_limits(client: httpx.Client, path: str, fits: dict[str, Any], too_much: dict[str, Any]) -> None:
    assert client.post(path, json=BODIES[path] | fits).status_code == 200
    assert client.post(path, json=BODIES[path] | too_much).status_code == 400


def test_a_body_has_2_mib(client: httpx.Client) -> None:
    body = b'{"tokens": [1925]}'
    assert client.post("/detokenize", content=body.ljust(2 << 20)).status_code == 200
    assert client.post("/detokenize", content=body.ljust((2 << 20) + 1)).status_code == 413


@pytest.mark.parametrize(("item", "n"), [("1", 300_000), ("[   ]", 19_998)])
def test_values_of_a_body(client: httpx.Client, item: str, n: int) -> None:
    statuses = [
        client.post(
            "/v1/completions", content=f'{{"prompt": "a", "max_tokens": 1, "x": [{",".join([item] * k)}]}}'
        ).status_code
        for k in (n - 2, n + 1)
    ]
    assert statuses == [200, 413]


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"type": "object"}},
        {"if": {"type": "object"}, "then": {"required": ["a"]}},
        {"contains": {"type": "integer"}},
        {"uniqueItems": True},
        {"propertyNames": {"pattern": "^a"}},
        {"dependentRequired": {"a": ["b"]}},
        {"unevaluatedItems": False},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"$ref": "https://example.com/schema.json"},
    ],
)
def test_schemas_that_cannot_be_used(client: httpx.Client, schema: dict[str, Any]) -> None:
    key = next(iter(schema))
    assert key == "$ref" or f"`{key}`" in section("Answers of a given form")
    form = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    assert client.post("/v1/chat/completions", json=CHAT | form).status_code == 400


def options(name: str) -> set[str]:
    """A command's own, and those of llama.cpp's that it knows."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    own = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return own | {"--help"} | (spellings(name).keys() if name in PROGRAMS else set())


def test_options_exist() -> None:
    prose = re.sub(r"^```.+?^```$", "", DOCS, flags=re.M | re.S)
    mentioned = {text.split()[0] for text in re.findall(r"`(-[^`]*)`", prose)}
    assert len(mentioned) > 25
    assert mentioned <= options("serve")
    calls = re.findall(r'qwencli(?:", "| )(serve|chat|warmup)\b([^`\n]*)', DOCS)
    assert {name for name, _ in calls} == {"serve", "chat", "warmup"}
    for name, rest in calls:
        assert set(re.findall(r'(?<=[ "])--?[a-z][a-z-]*', rest)) <= options(name)


def test_a_start_line_of_llama_servers(shell: dict[str, str]) -> None:
    """The one that is shown, in which an option is refused."""
    (found,) = ((line, shown) for _, line, shown in BLOCKS if "LLAMA_ARG_" in line)
    done = subprocess.run(["bash", "-c", found[0]], env=shell, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", found[1])


def test_a_full_queue() -> None:
    """As it is shown, but for the queue's length; other headers come with it."""
    (shown,) = re.findall(r"^```text\n(HTTP/1\.1 429.+?)^```$", DOCS, re.M | re.S)
    head, _, body = shown.strip().partition("\n\n")
    with serving(n_slots=1, n_queue=1) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        with ThreadPoolExecutor(2) as pool, held(server.service.llm.engine):
            others = [pool.submit(client.post, "/completion", json=TEXT) for _ in range(2)]
            until(lambda: server.service.n_waiting == 1)
            answer = client.post("/completion", json=TEXT)
        assert [other.result().status_code for other in others] == [200, 200]
    status, *headers = head.splitlines()
    assert status == f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}"
    assert {header.partition(":")[0] for header in headers} <= answer.headers.keys()
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json() == json.loads(body.replace("64 requests", "1 requests"))


def test_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """A line has the fields that are shown, and there is none for what is polled."""
    (shown,) = re.findall(r"^```text\n(time=.+?)^```$", DOCS, re.M | re.S)
    with (
        serving(log_format="text", metrics=True) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        client.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "mine"})
        for path in "/health", "/slots", "/metrics":
            client.get(path)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.findall(r"(\w+)=", line) == re.findall(r"(\w+)=", shown)
    assert " id=mine " in line


def test_figures_that_prometheus_reads(client: httpx.Client) -> None:
    yaml = pytest.importorskip("yaml")
    (text,) = (text for kind, text, _ in BLOCKS if kind == "yaml")
    (job,) = yaml.safe_load(text)["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [ADDRESS]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert len(list(text_string_to_metric_families(client.get("/metrics").text))) > 10


def test_defaults_of_sampling(client: httpx.Client) -> None:
    params = client.get("/props").json()["default_generation_settings"]["params"]
    text = section("What is not supported")
    assert f"temperature {params['temperature']:g}" in text
    for name in "top_k", "top_p", "min_p":
        assert re.search(rf"`{name}`\s+{params[name]:g}\b", text)


def test_links_lead_to_headings() -> None:
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", DOCS, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", DOCS)) <= headings
