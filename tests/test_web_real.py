"""The page on the real server: headers, key, streaming, figures."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("starlette", reason="the extra server is not installed")
from serving import Serving, serving
from web_browser import browser, opened  # noqa: F401

QUESTION = "Hello! Who are you?"


def whole_answer(server: Serving) -> str:
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    request = Request(
        f"{server.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": "Bearer secret"},
    )
    with urlopen(request, timeout=60) as response:
        content: str = json.load(response)["choices"][0]["message"]["content"]
        return content


def test_the_page_on_the_real_server(browser: Any) -> None:  # noqa: F811
    with serving(n_slots=2, api_keys=["secret"]) as server, opened(browser, server.url) as (page, _):
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        page.click("#settings-open")
        page.fill("[name=temperature]", "0")
        page.keyboard.press("Escape")
        for _ in range(2):
            page.fill("#question", QUESTION)
            page.press("#question", "Enter")
            page.wait_for_selector("#send:not([hidden])", timeout=60_000)
            assert page.locator(".answer .error:visible").count() == 0
            page.keyboard.press("Control+k")
            page.wait_for_selector("#empty")
        page.click("#conversations a >> nth=0")
        page.wait_for_selector(".answer")
        assert page.locator(".answer > .answer-text").inner_text().split() == whole_answer(server).split()
        assert "cached" in page.inner_text(".stats")
        page.click("#tab-server")
        page.wait_for_selector(".slots tbody tr >> nth=1")
        assert server.options.name in page.inner_text("[aria-label=Model]")
        assert page.inner_text("[aria-label=Cache] dd >> nth=0") != "0"
        assert page.locator("#server .error:visible").count() == 0
