"""The page in a real browser, under its Content-Security-Policy, against a server with scripted answers."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import pytest
from web_browser import browser, fake, opened, page, shared_page  # noqa: F401
from web_server import WEB, Answer, FakeServer, Raw, Thought

# ruff: noqa: F811


def ask(page: Any, question: str, wait: bool = True) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")
    if wait:
        page.wait_for_selector("#send:not([hidden])")


def begin_anew(page: Any) -> None:
    page.keyboard.press("Control+k")
    page.wait_for_selector("#empty")


def shows(page: Any, selector: str, *expected: str) -> None:
    """Wait until it does: what follows a click may come later."""
    end = monotonic() + 60
    while (found := tuple(page.locator(selector).all_inner_texts())) != expected and monotonic() < end:
        page.wait_for_timeout(10)
    assert found == expected


def answers(page: Any, *expected: str) -> None:
    shows(page, ".answer > .answer-text", *expected)


def until(page: Any, condition: str) -> None:
    """Wait for it. (playwright's own way needs eval, which the page's policy forbids.)"""
    end = monotonic() + 60
    while not page.evaluate(condition):
        assert monotonic() < end, condition
        page.wait_for_timeout(10)


# What the files are, without a browser

SOURCES = sorted(WEB.iterdir())


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.suffix == ".js"], ids=lambda path: path.name
)
def test_nothing_is_given_to_a_parser_of_html_or_code(path: Path) -> None:
    assert (
        re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|document\.write|DOMParser|createContextualFragment|srcdoc"
            r"|\beval\b|new Function",
            path.read_text("utf-8"),
        )
        == []
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_is_loaded_from_elsewhere(path: Path) -> None:
    code = re.sub(r"^\s*(//|/\*).*|// .*$", "", path.read_text("utf-8"), flags=re.MULTILINE)
    assert set(re.findall(r"(?:https?:)?//[\w.]+", code)) <= {"http://www.w3.org"}  # the name of SVG
    assert "@import" not in code
    for name in re.findall(r'from "\./([^"]+)"', code):
        assert (WEB / name).is_file()


def test_markup_has_neither_scripts_nor_styles_nor_missing_files() -> None:
    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            named = dict(attrs)
            assert tag != "style"
            assert tag != "script" or named.get("src")
            assert not [name for name in named if name.startswith("on") or name == "style"]
            for file in filter(None, (named.get("src"), named.get("href"))):
                assert file.startswith("#") or (WEB / file).is_file()

    Checker().feed((WEB / "index.html").read_text("utf-8"))


# Asking and answering


def test_an_answer_streams_in(page: Any, fake: FakeServer) -> None:
    more = Event()
    fake.answers["Hi?"] = Answer(["Hello ", "**you", more, "** there."])
    ask(page, "Hi?", wait=False)
    until(page, "document.querySelector('.answer strong')?.textContent === 'you'")
    assert page.get_attribute(".answer", "aria-busy") == "true"
    more.set()
    page.wait_for_selector("#send:not([hidden])")
    answers(page, "Hello you there.")
    assert page.get_attribute(".answer", "aria-busy") == "false"
    body = fake.requests[0]
    assert body["messages"] == [{"role": "user", "content": "Hi?"}]
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    stats = page.inner_text(".stats")
    assert re.fullmatch(
        r"56 tokens · 23\.4 tokens/s · first after [\d.]+ m?s · prompt 1,234, 1,200 cached", stats
    )
    ask(page, "And?")
    assert fake.requests[1]["messages"] == [
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Hello **you** there."},
        {"role": "user", "content": "And?"},
    ]


def test_events_may_be_cut_anywhere(page: Any, fake: FakeServer) -> None:
    begin = Raw(b"\xef\xbb\xbf: comment\r\n\r\nevent: x\r\nid: 1\r\n")
    fake.answers["Hi?"] = Answer([begin, "Zoë ", "你好 ", "🙂\n\ndata: [DONE]"], newline="\r\n", cut=1)
    ask(page, "Hi?")
    answers(page, "Zoë 你好 🙂\n\ndata: [DONE]")


# The examples of the standard, https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
EVENTS = [
    ("data: YHOO\ndata: +2\ndata: 10\n\n", ["YHOO\n+2\n10"]),
    (
        ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
        ["first event", "second event"],
    ),
    ("data:test\n\ndata: test\n\n", ["test", "test"]),
]


def test_events_are_read_as_the_standard_has_them(page: Any) -> None:
    for text, expected in EVENTS:
        for newline in "\n", "\r\n", "\r":
            assert page.evaluate(READ_EVENTS, [text.replace("\n", newline), expected]) == []


READ_EVENTS = """async ([text, expected]) => {
      const { EventParser } = await import("./sse.js");
      const wrong = [];
      for (let i = 0; i <= text.length; i++) for (let j = i; j <= text.length; j++) {
        const parser = new EventParser();
        const events = [text.slice(0, i), text.slice(i, j), text.slice(j)].flatMap((piece) => parser.add(piece));
        if (JSON.stringify(events) !== JSON.stringify(expected)) wrong.push([i, j, events]);
      }
      return wrong;
    }"""  # cut at any two places


def test_thoughts_are_folded(page: Any, fake: FakeServer) -> None:
    more = Event()
    fake.answers["Hi?"] = Answer([Thought("I *muse*."), more, "Hello."])
    ask(page, "Hi?", wait=False)
    until(page, "document.querySelector('summary')?.textContent.startsWith('Thinking')")
    assert not page.is_visible(".thoughts")
    more.set()
    page.wait_for_selector("#send:not([hidden])")
    assert re.fullmatch(r"Thought for [\d.]+ m?s", page.inner_text("summary").strip())
    page.click("summary")
    until(page, "document.querySelector('.thoughts').textContent === 'I muse.'")
    ask(page, "And?")
    assert "muse" not in json.dumps(fake.requests[1])


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_stop_ends_the_request(page: Any, fake: FakeServer, how: str) -> None:
    fake.answers["Hi?"] = Answer(["Hello ", "you", Event()])
    ask(page, "Hi?", wait=False)
    until(page, "document.querySelector('.answer > .answer-text').textContent === 'Hello you'")
    page.keyboard.press("Escape") if how == "Escape" else page.click("#stop")
    assert fake.left.acquire(timeout=60)
    page.wait_for_selector("#send:not([hidden])")
    answers(page, "Hello you")
    page.wait_for_selector(".stats:has-text('stopped')")


def test_answers_and_questions_branch(page: Any, fake: FakeServer) -> None:
    fake.answers |= {"One?": Answer(["first"]), "Two?": Answer(["other"])}
    ask(page, "One?")
    fake.answers["One?"] = Answer(["second"])
    page.click("[aria-label='Answer again']")
    until(page, "document.querySelector('.answer > .answer-text')?.textContent === 'second'")
    page.wait_for_selector("#send:not([hidden])")
    shows(page, ".answer .switcher", "2/2")
    page.click(".answer [aria-label='Previous version']")
    answers(page, "first")
    page.click(".question [aria-label=Edit]")
    page.fill(".question textarea", "Two?")
    page.press(".question textarea", "Enter")
    until(page, "document.querySelector('.answer > .answer-text')?.textContent === 'other'")
    page.wait_for_selector("#send:not([hidden])")
    assert fake.requests[-1]["messages"] == [{"role": "user", "content": "Two?"}]
    page.reload()
    shows(page, ".question-text", "Two?")
    answers(page, "other")
    page.click(".question [aria-label='Previous version']")
    shows(page, ".question-text", "One?")
    answers(page, "second")  # its latest branch


def test_an_edit_can_be_dropped(page: Any, fake: FakeServer) -> None:
    ask(page, "One?")
    page.click(".question [aria-label=Edit]")
    page.fill(".question textarea", "Two?")
    page.press(".question textarea", "Escape")
    shows(page, ".question-text", "One?")
    assert len(fake.requests) == 1


# What goes wrong


def test_errors_are_shown_in_place_and_tried_again(page: Any, fake: FakeServer) -> None:
    fake.answers["Hi?"] = Answer(status=429, error="the queue is full", headers={"Retry-After": "7"})
    ask(page, "Hi?")
    shows(page, ".answer .error p", "The queue is full. Try again in 7 s.")
    fake.answers["Hi?"] = Answer(["Hello."])
    page.click(".answer .error button")
    until(page, "document.querySelector('.answer > .answer-text')?.textContent === 'Hello.'")
    shows(page, ".error:visible, .switcher:visible")


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (Answer(["Hel"], done=False), "The connection ended before the answer did."),
        (
            Answer(
                ["Hel", Raw(b'data: {"error": {"message": "out of pages", "code": 500}}\n\n')], done=False
            ),
            "Out of pages.",
        ),
        (
            Answer(["Hel", Raw(b'error: {"code": 500, "message": "out of pages"}\n\n')], done=False),
            "Out of pages.",
        ),
        (Answer(["Hel", Raw(b"data: {nonsense\n\n")]), "The server sent something that is not JSON."),
    ],
)
def test_what_came_before_an_error_stays(page: Any, fake: FakeServer, answer: Answer, shown: str) -> None:
    fake.answers["Hi?"] = answer
    ask(page, "Hi?")
    answers(page, "Hel")
    shows(page, ".answer .error p", shown)


def test_a_server_that_is_gone(page: Any, fake: FakeServer) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "Hi?")
    page.unroute_all()
    page.wait_for_selector(".answer .error:has-text('does not answer')")


def test_a_key_is_asked_for_and_kept_in_the_tab(page: Any, fake: FakeServer) -> None:
    fake.key = "secret"
    fake.texts["v1/models"] = json.dumps({"data": [{"id": "qwen"}]})
    ask(page, "Hi?")
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    page.wait_for_selector("#key-bar:not([hidden])")
    page.fill("#key", "secret")
    page.press("#key", "Enter")
    until(page, "document.querySelector('.answer > .answer-text')?.textContent === 'Hello.'")
    assert page.evaluate("JSON.stringify(localStorage).includes('secret')") is False
    assert page.evaluate("JSON.stringify(sessionStorage).includes('secret')") is True


# Conversations


def test_conversations_are_kept(page: Any, fake: FakeServer) -> None:
    ask(page, "First question\nwith a second line")
    begin_anew(page)
    ask(page, "Second question")
    page.reload()
    shows(page, "#conversations a", "Second question", "First question")
    page.click("#conversations >> text=First question")
    answers(page, "Hello.")
    page.click("text=Rename")
    page.keyboard.type("Renamed")
    page.keyboard.press("Enter")
    shows(page, "#conversations a", "Second question", "Renamed")
    page.click("#conversations >> text=Delete")
    shows(page, "#conversations a", "Second question")
    page.wait_for_selector("#empty")
    page.click("text=Undo")
    page.wait_for_selector("#conversations >> text=Renamed")
    shows(page, "#conversations a", "Second question", "Renamed")
    answers(page, "Hello.")


def test_an_answer_goes_on_while_another_conversation_is_open(page: Any, fake: FakeServer) -> None:
    more = Event()
    fake.answers["Slow?"] = Answer(["a", more, "b"])
    ask(page, "Slow?", wait=False)
    until(page, "document.querySelector('.answer > .answer-text').textContent === 'a'")
    begin_anew(page)
    ask(page, "Quick?")
    answers(page, "Hello.")
    more.set()
    until(page, "!document.querySelector('.row.running')")
    page.click("#conversations >> text=Slow?")
    answers(page, "ab")


def test_export_and_import(page: Any, fake: FakeServer, tmp_path: Path) -> None:
    ask(page, "Question?")
    with page.expect_download() as found:
        page.click("#export-all")
    file = tmp_path / "all.json"
    found.value.save_as(file)
    value = json.loads(file.read_text("utf-8"))
    assert [m["content"] for m in value["conversations"][0]["messages"]] == ["Question?", "Hello."]
    page.evaluate("localStorage.clear()")
    page.goto(fake.url)
    page.set_input_files("#import-file", file)
    page.click("#conversations >> text=Question?")
    answers(page, "Hello.")


ODD = [
    None,
    {
        "id": "a",
        "parent": None,
        "role": "user",
        "content": "<img src=x onerror=alert(1)>",
        "stats": {"tokens": "<b>", "speed": {}},
    },
    {
        "id": "b",
        "parent": "a",
        "role": "assistant",
        "content": {"x": 1},
        "stats": {"speed": "fast", "reason": "constructor"},
    },
    {"id": "c", "parent": "c", "role": "user", "content": "loop"},
    {"id": "a", "parent": "b", "role": "user", "content": "again"},
    {"id": "d", "parent": "b", "role": "system", "content": "no"},
]
ODDER = [
    None,
    1,
    {},
    {"messages": []},
    {"messages": [{"id": "a", "parent": "b"}]},
    {"id": "__proto__", "title": "<b>x", "leaf": 5, "messages": ODD},
]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "The file is not JSON."),
        ("[]", "The file has no exported conversations."),
        ("null", "The file has no exported conversations."),
        (json.dumps({"format": "qwencli-conversations", "conversations": ODDER}), "1 imported."),
    ],
)
def test_import_believes_nothing(page: Any, fake: FakeServer, tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "file.json"
    file.write_text(text, "utf-8")
    page.set_input_files("#import-file", file)
    page.wait_for_selector(".notice")
    shows(page, ".notice", told)
    if told == "1 imported.":
        page.click("#conversations a")
        shows(page, ".question-text", "<img src=x onerror=alert(1)>")


def test_a_full_browser_is_told_of(page: Any, fake: FakeServer) -> None:
    page.evaluate(
        "() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; }"
    )
    ask(page, "Hi?")
    page.wait_for_selector(".notice:has-text('no more room')")
    answers(page, "Hello.")
    ask(page, "And?")
    assert len(fake.requests[1]["messages"]) == 3


def test_not_more_conversations_than_the_limit(page: Any, fake: FakeServer) -> None:
    page.evaluate("""async () => {
      const [store, { addMessage, newConversation }] = await Promise.all([import("./store.js"), import("./conversation.js")]);
      for (let i = 0; i < store.MOST; i++) {
        const conversation = newConversation();
        addMessage(conversation, null, { role: "user", content: `n ${i}` });
        store.save(conversation);
      }
    }""")
    ask(page, "One more?")
    page.wait_for_selector(".notice:has-text('keeps 200 conversations')")
    answers(page, "Hello.")


# Settings, keys, looks


def test_settings_are_sent_where_they_are_set(page: Any, fake: FakeServer) -> None:
    page.click("#settings-open")
    values = {
        "temperature": "0.7",
        "top_k": "20",
        "top_p": "7",
        "min_p": "0.05",
        "repeat_penalty": "1.1",
        "max_tokens": "99",
        "seed": "42",
        "system": "Be brief.",
    }
    for name, value in values.items():
        page.fill(f"#settings [name={name}]", value)
    page.select_option("#settings [name=thinking]", "off")
    page.keyboard.press("Escape")
    page.reload()
    ask(page, "Hi?")
    body = fake.requests[0]
    assert {name: body.get(name) for name in values if name != "system"} == {
        "temperature": 0.7,
        "top_k": 20,
        "top_p": None,
        "min_p": 0.05,
        "repeat_penalty": 1.1,
        "max_tokens": 99,
        "seed": 42,
    }
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    page.click("#settings-open")
    page.click("#settings-reset")
    page.keyboard.press("Escape")
    begin_anew(page)
    ask(page, "Hi?")
    assert set(fake.requests[1]) == {"model", "messages", "stream", "stream_options"}


def test_keys(page: Any, fake: FakeServer) -> None:
    page.keyboard.press("Tab")  # the focus leaves the question
    page.keyboard.press("/")
    page.keyboard.type("a")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b/")
    page.evaluate("""document.querySelector("#question").dispatchEvent(
        new KeyboardEvent("keydown", { key: "Enter", isComposing: true, bubbles: true, cancelable: true }))""")  # of an input method
    assert fake.requests == []
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer[aria-busy=false]")
    assert fake.requests[0]["messages"][0]["content"] == "a\nb/"


def test_everything_is_reached_by_tab_and_seen(page: Any, fake: FakeServer) -> None:
    fake.answers["Hi?"] = Answer(
        [Thought("hm"), "[a](https://b.de/)\n\n```\ncode\n```\n\n| a |\n|---|\n| b |"]
    )
    ask(page, "Hi?")
    page.emulate_media(reduced_motion="reduce")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("""() => {
          const node = document.activeElement, style = getComputedStyle(node);
          let shown = style.outlineStyle !== "none" || node.id === "question" || node === document.body;  // the field's frame is coloured
          for (let at = node; at; at = at.parentElement) shown &&= getComputedStyle(at).opacity > 0.3;
          return (shown ? "" : "UNSEEN ") + (node.id || node.getAttribute("aria-label") || node.textContent.trim() || node.localName);
        }""")
        )
    assert reached >= {
        "question",
        "send",
        "settings-open",
        "theme",
        "tab-server",
        "export-all",
        "import",
        "Rename",
        "Edit",
        "Copy",
        "Answer again",
        "a",
    }
    assert not [name for name in reached if name.startswith("UNSEEN")]
    page.emulate_media(reduced_motion="no-preference")


@pytest.mark.parametrize("system", ["light", "dark"])
def test_light_and_dark(browser: Any, fake: FakeServer, system: str) -> None:
    with opened(browser, fake.url, color_scheme=system) as (page, _):

        def is_dark() -> bool:
            return page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128")

        assert is_dark() == (system == "dark")
        page.click("#theme")
        assert is_dark() == (system == "light")
        page.reload()
        assert is_dark() == (system == "light")


def test_reduced_motion(browser: Any, fake: FakeServer) -> None:
    with opened(browser, fake.url, reduced_motion="reduce") as (page, _):
        fake.answers["Hi?"] = Answer([Thought("hm"), Event()])
        ask(page, "Hi?", wait=False)
        page.wait_for_selector("summary")
        assert page.evaluate("document.getAnimations().length") == 0


def test_a_phone(browser: Any, fake: FakeServer) -> None:
    fake.answers["Hi?"] = Answer(
        [
            "```\n"
            + "wide " * 100
            + "\n```\n\n"
            + "x" * 300
            + "\n\n|"
            + " wide cell |" * 20
            + "\n|"
            + "---|" * 20
        ]
    )
    with opened(
        browser, fake.url, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True
    ) as (page, _):
        page.fill("#question", "Hi?")
        page.tap("#send")
        page.wait_for_selector(".answer[aria-busy=false]")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert (
            page.evaluate(
                "(node => node.scrollWidth - node.clientWidth)(document.querySelector('#scroller'))"
            )
            == 0
        )
        page.tap("#menu-open")
        page.tap("#conversations >> text=Delete")
        page.wait_for_selector("#shade", state="hidden")
        page.tap("#tab-server")
        page.wait_for_selector("#server", state="visible")
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_end_is_kept_in_view_while_the_user_is_there(page: Any, fake: FakeServer) -> None:
    more, most = Event(), Event()
    lines = "line\n\n" * 40
    fake.answers["Hi?"] = Answer([lines, more, lines, most, lines])
    above_end = "(node => node.scrollHeight - node.clientHeight - node.scrollTop)(document.querySelector('#scroller'))"
    ask(page, "Hi?", wait=False)
    until(page, "document.querySelectorAll('.answer p').length >= 40")
    until(page, f"{above_end} < 2")
    page.hover("#messages")
    page.mouse.wheel(0, -300)
    until(page, f"{above_end} > 298")  # where the wheel's own motion ends
    top = page.evaluate("document.querySelector('#scroller').scrollTop")
    more.set()
    until(page, "document.querySelectorAll('.answer p').length >= 80")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("document.querySelector('#scroller').scrollTop") == top
    page.click("#to-end")
    most.set()
    until(page, f"document.querySelectorAll('.answer p').length >= 120 && {above_end} < 2")


# The server's state

METRICS = """# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 48213
llamacpp:tokens_predicted_total{{model="a"}} 9000.0
llamacpp:tokens_predicted_total{{model="b"}} 1.2e2
llamacpp:prompt_tokens_seconds 812.5
llamacpp:predicted_tokens_seconds 41.7
llamacpp:requests_processing 2
llamacpp:requests_deferred {waiting}
llamacpp:kv_cache_tokens 3072
"""


BUSY = {
    "id": 0,
    "is_processing": True,
    "n_prompt_tokens": 812,
    "n_prompt_tokens_cache": 640,
    "n_prompt_tokens_processed": 100,
    "next_token": [{"n_decoded": 0}],
}


def test_the_view_of_the_server(page: Any, fake: FakeServer) -> None:
    fake.texts |= {
        "metrics": METRICS.format(waiting=3),
        "props": json.dumps(
            {
                "model_alias": "Qwen3 <b>",
                "total_slots": 2,
                "default_generation_settings": {"n_ctx": 40960},
                "buffers": [
                    {
                        "buffer": "KV <b>",
                        "device": "cpu",
                        "layers": "0-5",
                        "bytes": 16_515_072,
                        "resident": 294_784,
                    },
                    {"buffer": "tokenizer", "device": None, "layers": None, "bytes": 999, "resident": 999},
                    {"buffer": "graph", "device": None, "layers": None, "bytes": 1000, "resident": None},
                    {"buffer": "Python", "device": None, "layers": None, "bytes": None, "resident": 1.5e9},
                ],
            }
        ),
        "slots": json.dumps([BUSY, {"id": 1, "is_processing": False}]),
    }
    page.click("#tab-server")
    until(page, "document.querySelector('[aria-label=Waiting] .value').textContent === '3'")
    shows(page, "[aria-label=Running] .value", "2")
    shows(page, ".slots tbody tr:first-child td", "0", "reading", "740 of 812", "640", "0")
    shows(page, ".slots tbody tr:last-child td:nth-child(-n+2)", "1", "free")
    shows(page, ".tables section:first-child dd", "Qwen3 <b>", "40,960 tokens", "2")
    shows(page, "[aria-label=Memory] dt", "KV <b>, cpu, layers 0-5", "tokenizer", "graph", "Python")
    shows(page, "[aria-label=Memory] dd", "294.8 kB of 16.5 MB", "999 bytes", "unknown of 1.0 kB", "1.5 GB")
    page.wait_for_selector("[aria-label='Since the start']:has-text('9,120')")
    page.wait_for_selector("[aria-label=Cache]:has-text('3,072')")
    fake.texts["metrics"] = METRICS.format(waiting=4)
    until(page, "document.querySelector('[aria-label=Waiting] .value').textContent === '4'")


def test_a_server_without_figures_says_so(page: Any, fake: FakeServer) -> None:
    page.click("#tab-server")
    page.wait_for_selector("#server .error:not([hidden]):has-text('not there')")


def test_figures_that_the_server_does_not_have_stay_away(page: Any, fake: FakeServer) -> None:
    fake.texts["slots"] = json.dumps([BUSY])
    refused = json.dumps({"error": {"message": "Start it with `--metrics`", "code": 501}})
    asked: list[Any] = []

    def refuse(route: Any) -> None:
        asked.append(route)
        route.fulfill(status=501, body=refused, content_type="application/json")

    page.route("**/metrics", refuse)
    page.click("#tab-server")
    page.wait_for_selector("#server .hint:has-text('Start it with `--metrics`')")
    page.wait_for_selector("#server .figures", state="hidden")
    shows(page, ".slots tbody tr:first-child td", "0", "reading", "740 of 812", "640", "0")
    page.wait_for_timeout(2500)
    assert len(asked) == 1
    page.unroute_all()


def test_the_server_is_asked_only_while_its_view_is_shown(page: Any, fake: FakeServer) -> None:
    held: list[Any] = []
    page.route("**/metrics", lambda route: held.append(route))
    page.click("#tab-server")
    end = monotonic() + 60
    while not (
        held and {"v1/models", "slots", "props"} <= set(fake.polls)
    ):  # all that was asked for until now has arrived
        assert monotonic() < end, fake.polls
        page.wait_for_timeout(10)
    page.click("#tab-chat")  # while an answer is on its way
    page.wait_for_selector("#question", state="visible")
    fake.polls.clear()
    held[0].continue_()
    page.wait_for_timeout(1200)
    page.unroute_all()
    assert set(fake.polls) <= {"metrics"}
    assert len(fake.polls) <= 1


def test_a_worker_that_llama_server_left_is_replaced_and_gone(page: Any) -> None:
    """Theirs is called sw.js and answers from caches."""
    page.evaluate(
        """async () => {
          await (await caches.open("theirs")).put("/", new Response("their page"));
          await navigator.serviceWorker.register("./sw.js");
        }"""
    )
    until(page, "(async () => !(await caches.keys()).length)()")
    until(page, "(async () => !(await navigator.serviceWorker.getRegistrations()).length)()")
    page.reload()
    page.wait_for_selector("#question")
