"""/infill: prompts are those of llama-server, which was asked the same with the same model (`-c 200 -b 64 -n 20`, and `--spm-infill`)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from demo_with import demo_with
from serving import serving

from qwencli.llm import LLM
from qwencli.server.llamacpp.endpoints import LLAMACPP
from qwencli.server.llamacpp.fields import InfillFields
from qwencli.server.llamacpp.infill import infill_prompt
from qwencli.server.options import ServerOptions

NAMES = "pre", "suf", "mid", "pad", "rep", "sep"
FIRST = 6009
"""The first unused token of the demo's vocabulary. llama.cpp shows no text for them, so prompts are compared by what is between them."""
NUMBERS = "one two three four five six seven eight nine ten "
MORE = "eleven twelve thirteen fourteen fifteen sixteen "
SIMPLE = {"input_prefix": "def add(a, b):\n    ", "input_suffix": "\n\nprint(add(1, 2))\n"}
WITH_FILES = {
    "input_prefix": "def add(a, b):\n    ",
    "input_suffix": "\n",
    "prompt": "return ",
    "input_extra": [{"text": "x = 1\n", "filename": "x.py"}, {"text": "y = 2\n"}],
}
LONG = {
    "input_prefix": NUMBERS * 8,
    "input_suffix": MORE * 5,
    "prompt": "so <|im_end|>",
    "input_extra": [{"text": "once upon a time there was a little boy. " * 20, "filename": "a.txt"}],
}
OF_TOKENS = {"input_prefix": ["a <|im_end|> b", 300, 301], "input_suffix": [302]}
SHORT_CONTEXT = [
    (SIMPLE, "myproject\nfilename\ndef add(a, b):\n    \n\nprint(add(1, 2))\n", 28),
    (WITH_FILES, "myproject\nx.py\nx = 1\ntmp\ny = 2\nfilename\ndef add(a, b):\n    return \n", 39),
    (
        LONG,
        " little boy. "
        + "once upon a time there was a little boy. " * 13
        + "filename\n six seven eight nine ten "
        + NUMBERS * 3
        + "so <|im_end|>eleven twelve thirteen four",
        217,
    ),
    (OF_TOKENS, "myproject\nfilename\na <|im_end|> baselct", 23),
]
SUFFIX_FIRST = [
    (SIMPLE, "\n\nprint(add(1, 2))\ndef add(a, b):\n    ", 20),
    (WITH_FILES, "\ndef add(a, b):\n    return ", 13),
    (LONG, MORE * 5 + NUMBERS * 8 + "so <|im_end|>", 212),
    (OF_TOKENS, "cta <|im_end|> basel", 15),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = {f"tokenizer__ggml__fim_{name}_token_id": FIRST + i for i, name in enumerate(NAMES)}
    return demo_with(tmp_path_factory.mktemp("models") / "gaps.gguf", **keys)


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[httpx.Client]:
    llm = LLM(model, n_threads=2, n_ctx=256)
    with (
        serving(llm, apis=[LLAMACPP], n_batch=64, max_tokens=20) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def check(client: httpx.Client, body: dict[str, Any], prompt: str, n: int) -> None:
    answer = client.post("/infill", json=body | {"n_predict": 1}).json()
    assert (re.sub(r"\[PAD\d+\]", "", answer["prompt"]), answer["tokens_evaluated"]) == (prompt, n)
    assert answer["tokens_predicted"] == 1


@pytest.mark.parametrize(("body", "prompt", "n"), SHORT_CONTEXT)
def test_prompts(client: httpx.Client, body: dict[str, Any], prompt: str, n: int) -> None:
    check(client, body, prompt, n)


def test_the_tokens_stand_where_the_models_training_had_them(model: Path) -> None:
    llm = LLM(model, n_threads=2, n_ctx=256)
    prompt = infill_prompt(InfillFields(**WITH_FILES), llm, ServerOptions("", n_batch=64, max_tokens=20))
    before, suffix, middle, _, repository, file = range(FIRST, FIRST + 6)
    assert [token for token in prompt if token >= FIRST] == [
        repository,
        file,
        file,
        file,
        before,
        suffix,
        middle,
    ]
    assert (prompt[0], prompt[-1]) == (repository, middle)
    place = prompt.index(suffix)
    gap = prompt[prompt.index(before) + 1 : place], prompt[place + 1 : -1]
    assert tuple(map(llm.tokenizer.decode, gap)) == ("def add(a, b):\n    return ", "\n")


def test_prompts_with_the_suffix_first_and_no_room_for_other_files(model: Path) -> None:
    with serving(LLM(model, n_threads=2, n_ctx=1024), apis=[LLAMACPP], suffix_first=True) as server:
        assert server.options.n_batch == ServerOptions("").n_batch == 2048
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for case in SUFFIX_FIRST:
                check(client, *case)


def test_a_stream_ends_with_the_whole(client: httpx.Client) -> None:
    with client.stream("POST", "/infill", json=SIMPLE | {"stream": True, "temperature": 0}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert '"stop":true' in response.read().decode().split("\n\n")[-2]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": 1}, "prompt"),
        ({"input_prefix": None}, "input_prefix"),
        ({"input_suffix": {"a": 1}}, "expected a text"),
        ({"input_extra": 3}, "input_extra"),
        ({"input_extra": [{}]}, "input_extra.0.text"),
        ({"input_extra": [{"filename": "ok"}]}, "input_extra.0.text"),
        ({"input_extra": [{"filename": 123, "text": "abc"}]}, "input_extra.0.filename"),
        ({"input_extra": [{"filename": "a", "text": 456}]}, "input_extra.0.text"),
        ({"input_prefix": [10**9]}, "vocabulary"),
    ],
)
def test_bodies_that_are_wrong(client: httpx.Client, change: dict[str, Any], field: str) -> None:
    answer = client.post("/infill", json=SIMPLE | change)
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]


def test_both_sides_have_to_be_there(client: httpx.Client) -> None:
    for name in SIMPLE:
        answer = client.post("/infill", json={name: SIMPLE[name]})
        assert answer.status_code == 400


def test_a_model_without_tokens_for_gaps_says_which_are_missing() -> None:
    with serving(apis=[LLAMACPP]) as server:
        answer = httpx.post(f"{server.url}/infill", json=SIMPLE)
    assert answer.status_code == 501
    assert answer.json()["error"]["message"] == (
        "Infill is not supported by this model: "
        "prefix token is missing. suffix token is missing. middle token is missing."
    )
