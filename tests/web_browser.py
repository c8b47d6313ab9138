"""Chromium for tests of the page; a fixture module. Tests skip where playwright or a browser is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from web_server import FakeServer


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path:
        pytest.skip("there is no Chromium on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shared_page(browser: Any) -> Iterator[tuple[Any, FakeServer, list[str]]]:
    fake = FakeServer()
    with opened(browser, fake.url) as (page, problems):
        yield page, fake, problems
    fake.close()


@pytest.fixture
def fake(shared_page: Any) -> FakeServer:
    return shared_page[1]


@pytest.fixture
def page(shared_page: Any) -> Iterator[Any]:
    """The page as a first visitor sees it. Whatever its policy forbids or fails in it fails the test."""
    page, fake, problems = shared_page
    page.goto(fake.url + "icon.svg")  # where nothing is saved when it is left
    page.evaluate("localStorage.clear(), sessionStorage.clear()")
    fake.reset()
    page.goto(fake.url)
    yield page
    assert problems == []


@contextmanager
def opened(browser: Any, url: str, **options: Any) -> Iterator[tuple[Any, list[str]]]:
    """A page of its own, and the list of what goes wrong in it."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
    page = context.new_page()
    page.set_default_timeout(60_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            problems.append(message.text)
            if message.type == "error" and "Failed to load resource" not in message.text
            else None
        ),
    )
    page.goto(url)
    yield page, problems
    context.close()
    assert problems == []
