"""Markdown in the page, in a real browser: against markdown-it (CommonMark's own test suite passes there), in pieces, and hostile."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from web_browser import browser, opened  # noqa: F401
from web_server import FakeServer


@pytest.fixture(scope="module")
def page(browser: Any) -> Iterator[Any]:  # noqa: F811
    fake = FakeServer()
    with opened(browser, fake.url) as (page, _):
        yield page
    fake.close()


# Renders pieces, and gives the DOM as HTML without what is only for looks: classes, wrappers of code and tables, buttons.
RENDER = """async (pieces) => {
  const { Markdown } = await import("./markdown.js");
  const root = document.createElement("div");
  const markdown = new Markdown(root);
  for (const piece of pieces) markdown.write(piece);
  markdown.end();
  const plain = (node) => {
    if (node.nodeType === Node.TEXT_NODE) return node.data.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
    const inside = [...node.childNodes].map(plain).join("");
    if (node === root || node.matches("span, tbody, div.table, div.code")) return inside;
    if (node.matches("div.code-bar")) return "";
    const href = node.matches("a") ? ` href="${plain(document.createTextNode(node.getAttribute("href")))}"` : "";
    const start = node.getAttribute("start") ? ` start="${node.getAttribute("start")}"` : "";
    return `<${node.localName}${href}${start}>${node.localName === "br" || node.localName === "hr" ? "" : inside + `</${node.localName}>`}`;
  };
  return plain(root);
}"""

SAMPLES = [
    "plain text",
    "two\nlines",
    "one\n\ntwo",
    "# Heading\ntext",
    "## With *emphasis* ##",
    "####### seven is none",
    "#none",
    "*a* **b** ***c*** _d_ __e__",
    "a*b*c a_b_c",
    "**a *b* c**",
    "*a **b** c*",
    "* not * emphasis",
    "2 * 3 * 4",
    "**unclosed",
    "a ** b **",
    "*a**b*",
    "**a*b**",
    "***a** b*",
    "foo_bar_baz _x_",
    "~~gone~~ and ~~ not",
    "`code` and ``co`de``",
    "`` ` ``",
    "` a `",
    "`unclosed",
    "`*a*`",
    "\\*a\\*",
    "a\\b",
    "line\\\nbreak",
    "line  \nbreak",
    "&amp; &lt;b&gt; &quot; &copying;",
    "[a](http://b.de/)",
    "[a](<http://b.de/x y>)",
    '[a](http://b.de/ "t")',
    "[a](http://b.de/(c))",
    "[a *b* c](https://b.de/) d",
    "[a]",
    "[a] (b)",
    "[a",
    "a]",
    "![a]",
    "<http://a.de/b>",
    "<not a link>",
    "- a\n- b",
    "* a\n* b",
    "+ a\n- b",
    "1. a\n2. b",
    "3) a\n4) b",
    "- a\n  - b\n    - c\n- d",
    "1. a\n   - b\n2. c",
    "- a\n\n  b",
    "- a\nlazy",
    "- a\n\nb",
    "-none",
    "1.none",
    "text\n- a",
    "text\n2. none",
    "- # heading",
    "-\n- a",
    "1. a\n\n   ```\n   code\n   ```\n2. b",
    "> a\n> b",
    "> a\nlazy",
    "> a\n\nb",
    "> > a",
    "> - a\n> - b",
    "> ```\n> code\n> ```",
    "> ```\ncode",
    "- > a\n- b",
    ">a",
    "```\ncode\n```",
    "```py\ndef f():\n    pass\n\nx\n```\ntext",
    "~~~\n```\n~~~",
    "````\n```\n````",
    "```\nunclosed\n\n  *a*",
    "``` a`b\nc",
    "  ```\n  a\n   b\n  ```",
    "text\n```\ncode\n```",
    "---",
    "***",
    "- - -",
    "--",
    "a\n***\nb",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "a | b\n--|--\n1 | 2\n\nc",
    "| a |\n|---|\n| `x` | \n| *y* |",
    "| a \\| b |\n|---|\n| c |",
    "| no | table |",
    "text\n| a | b |\n|---|---|",
    "| a | b |\n|---|---|\n| 1 | 2 |\n- item",
    "你好**世界**。",
    "*你好*世界",
    "a\tb",
    "\tx",
    "-\ta",
]


class Plain(HTMLParser):
    """markdown-it's HTML, written as RENDER writes it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.out = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kept = "".join(
            f' {name}="{self.text(value or "")}"' for name, value in attrs if name in ("href", "start")
        )
        self.out += f"<{self.renamed(tag)}{kept}>" if tag != "tbody" else ""

    def handle_endtag(self, tag: str) -> None:
        self.out += f"</{self.renamed(tag)}>" if tag not in ("tbody", "br", "hr") else ""

    def handle_data(self, data: str) -> None:
        self.out += self.text(data)

    @staticmethod
    def renamed(tag: str) -> str:
        tag = {"s": "del"}.get(tag, tag)
        return f"h{min(6, int(tag[1]) + 2)}" if tag[0] == "h" and tag[1:].isdigit() else tag

    @staticmethod
    def text(data: str) -> str:
        return "".join(f"&#{ord(c)};" if c in '&<>"' else c for c in data)


def expected(oracle: Any, text: str) -> str:
    """The page shows all lists alike: an item's text is a paragraph, as markdown-it has it in loose lists only."""
    tokens = oracle.parse(text)
    for token in tokens:
        token.hidden = token.hidden and not token.type.startswith("paragraph")
    html = Plain(oracle.renderer.render(tokens, oracle.options, {})).out
    parts = html.replace("<pre>", "\0<pre>").replace("</pre>", "</pre>\0").split("\0")
    return "".join(
        part.replace("\n</code>", "</code>") if part.startswith("<pre>") else part.replace("\n", "")
        for part in parts
    )


@pytest.fixture(scope="module")
def oracle() -> Any:
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    made = markdown_it.MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(
        ["table", "strikethrough"]
    )
    return made.disable(["code", "lheading", "html_block", "html_inline", "reference", "image"])


def test_markdown_is_as_commonmark_has_it(page: Any, oracle: Any) -> None:
    wrong = []
    for sample in SAMPLES:
        shown, right = page.evaluate(RENDER, [sample]), expected(oracle, sample)
        if shown != right:
            wrong.append((sample, shown, right))
    assert wrong == []


DOCUMENT = """# Title

A paragraph with **bold *and* italic**, `code`, a [link](https://example.org/), ~~old~~ and \\( x_1 \\).
Its second line, 2 * 3.

1. one
   - inner
   - [x] done

     text of it
2. two

   ```python
   def f(a):
       return a  # ``` and | a |
   ```

> quote
> - in it
lazy

| a | b |
|:-:|--:|
| 1 | `x` |
| 2 | **y** |

~~~
unclosed [code](
"""


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_pieces_make_what_the_whole_makes(page: Any, size: int) -> None:
    pieces = [DOCUMENT[i : i + size] for i in range(0, len(DOCUMENT), size)]
    assert page.evaluate(RENDER, pieces) == page.evaluate(RENDER, [DOCUMENT])


def test_every_beginning_of_a_text_is_rendered_as_if_it_was_all(page: Any) -> None:
    assert (
        page.evaluate(
            f"""async (text) => {{
      const render = {RENDER};
      const wrong = [];
      for (let n = 1; n <= text.length; n += 3) {{
        const begun = text.slice(0, n);
        if ((await render([...begun])) !== (await render([begun]))) wrong.push(n);
      }}
      return wrong;
    }}""",
            DOCUMENT,
        )
        == []
    )


def test_what_is_complete_is_never_touched_again(page: Any) -> None:
    """A block's nodes stay the same ones once there are two more; a row and an item do so as well."""
    assert (
        page.evaluate(
            """async (text) => {
      const { Markdown } = await import("./markdown.js");
      const root = document.createElement("div");
      const markdown = new Markdown(root);
      const seen = new Map();
      const moved = [];
      for (const c of text) {
        markdown.write(c);
        for (const parent of [root, ...root.querySelectorAll("ol, ul, tbody")])
          [...parent.childNodes].slice(0, -2).forEach((node, i) => {
            const key = [...(seen.get(parent) ?? [])];
            if (key[i] && key[i].node !== node || key[i] && key[i].text !== node.textContent) moved.push(node.textContent);
            key[i] = { node, text: node.textContent };
            seen.set(parent, key);
          });
      }
      return moved;
    }""",
            DOCUMENT,
        )
        == []
    )


def test_nothing_jumps_while_it_streams(page: Any) -> None:
    """Whatever comes, what is shown never gets lower: no line is taken back, no mark turns into something smaller."""
    assert (
        page.evaluate(
            """async (text) => {
      const { Markdown } = await import("./markdown.js");
      const root = document.createElement("div");
      root.className = "answer-text";
      document.querySelector("#messages").replaceChildren(root);
      const markdown = new Markdown(root);
      const lower = [];
      let height = 0;
      for (let i = 0; i < text.length; i++) {
        markdown.write(text[i]);
        const now = root.getBoundingClientRect().height;
        if (now < height - 0.5) lower.push(text.slice(0, i + 1));
        height = now;
      }
      return lower;
    }""",
            DOCUMENT,
        )
        == []
    )


@pytest.mark.parametrize(
    "unit", ["a few words ", "a few words\n", "a **b** `c`\n\n", "- item\n", "| a | b |\n", "x = 1\n"]
)
def test_what_a_stream_costs_grows_with_its_length(page: Any, unit: str) -> None:
    """Nodes put into the page for twice the text: about twice as many, where rendering all of it again makes it four times."""
    begin = {"| a | b |\n": "| a | b |\n|---|---|\n", "x = 1\n": "```\n"}.get(unit, "")
    small, large = (
        page.evaluate(
            """async ([begin, unit, times]) => {
      const { Markdown } = await import("./markdown.js");
      const root = document.createElement("div");
      let added = 0;
      const observer = new MutationObserver((records) => { for (const record of records) added += record.addedNodes.length + 1; });
      observer.observe(root, { childList: true, characterData: true, subtree: true });
      const markdown = new Markdown(root);
      markdown.write(begin);
      for (let i = 0; i < times; i++) markdown.write(unit);
      markdown.end();
      await null;
      return added;
    }""",
            [begin, unit, times],
        )
        for times in (400, 800)
    )
    assert 0 < large < 2.5 * small


HOSTILE = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg onload=window.hacked=1>",
    "<iframe srcdoc='x'>",
    "[a](javascript:window.hacked=1)",
    "[a](JaVaScRiPt:window.hacked=1)",
    "[a]( javascript:window.hacked=1)",
    "[a](<javascript:window.hacked=1>)",
    "[a](java\tscript:x)",
    "[a](data:text/html,<script>x</script>)",
    "[a](vbscript:x)",
    "[a](file:///etc/passwd)",
    "[a](//evil.example)",
    "[a](/local)",
    "<javascript:window.hacked=1>",
    "![a](javascript:x)",
    "![a](https://evil.example/pixel.png)",
    '[a](https://x.de"onclick=x)',
    '```"onmouseover=x\n<script>window.hacked = 1</script>',
    "```<script>\nx\n```",
    "| <script>x</script> | b |\n|---|---|\n| <img src=x> | c |",
    "# <script>x</script>",
    "- <b onclick=x>",
    "> <style>*{display:none}</style>",
    "`<script>`",
    "[<img src=x onerror=x>](https://x.de/)",
    "&lt;script&gt;window.hacked=1&lt;/script&gt;",
    "<a href='javascript:x'>a</a>",
    "<base href=//evil>",
    "\u0000<b>\u0000",
    "<br onclick=x>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_output_is_never_html(page: Any, text: str) -> None:
    found = page.evaluate(
        """async (text) => {
      const { Markdown } = await import("./markdown.js");
      const root = document.createElement("div");
      document.querySelector("#messages").replaceChildren(root);
      const markdown = new Markdown(root);
      for (const c of text) markdown.write(c);
      markdown.end();
      await new Promise((done) => setTimeout(done));
      const nodes = [...root.querySelectorAll("*")];
      return {
        tags: nodes.map((node) => node.localName),
        attributes: nodes.filter((node) => !node.closest("button")).flatMap((node) => node.getAttributeNames()),
        links: [...root.querySelectorAll("a")].map(({ protocol, rel, target }) => [protocol, rel, target]),
        hacked: window.hacked ?? null,
      };
    }""",
        text,
    )
    assert not {"script", "img", "iframe", "style", "base", "b"} & set(found["tags"])
    assert set(found["attributes"]) <= {"class", "dir", "href", "title", "target", "rel", "tabindex"}
    assert all(
        link in (["https:", "noopener noreferrer", "_blank"], ["http:", "noopener noreferrer", "_blank"])
        for link in found["links"]
    )
    assert found["hacked"] is None


UNITS = [
    "*",
    "*a ",
    "**a*_b_",
    "[",
    "![",
    "[a](",
    "](http://a.de/",
    "`",
    "`a``",
    "\\(",
    "$$a",
    "<",
    "> ",
    "- ",
    "1. ",
    "~~",
    "|",
    "| a |\n|---|\n",
    "#",
    "```\n",
    "a\n",
    "\n",
    "\t",
    "-\n",
    "&amp;",
    "http://a.de/(",
    "\u202e",
    "_a_*",
    "~~~\n> ",
]


@pytest.mark.parametrize("unit", UNITS)
def test_much_of_anything_is_shown(page: Any, unit: str) -> None:
    """Time, memory and depth stay bounded, and nothing that can be read is lost: playwright ends a page that hangs."""
    letters, depth = page.evaluate(MANY, [unit, 60_000])
    assert depth < 200
    if "a" in unit and not {"http", "&amp;", "| a |\n|---|\n"} & {unit[:4], unit} and "](" not in unit:
        assert letters == unit.count("a") * -(-60_000 // len(unit))


@pytest.mark.parametrize("begin", ["", "```\n", "- ", "> "])
def test_a_megabyte_is_shown_whole(page: Any, begin: str) -> None:
    assert page.evaluate(MANY, [begin + "a " * 500_000, 1])[0] == 500_000
    assert page.evaluate(MANY, [begin + "a word\n" * 140_000, 1])[0] == 140_000


MANY = """async ([unit, length]) => {
      const { Markdown } = await import("./markdown.js");
      const root = document.createElement("div");
      const markdown = new Markdown(root);
      const text = unit.repeat(Math.ceil(length / unit.length));
      for (let at = 0; at < text.length; at += 16384) markdown.write(text.slice(at, at + 16384));
      markdown.end();
      const depth = (node) => 1 + Math.max(0, ...Array.from(node.children).slice(-3).map(depth));
      return [(root.textContent.match(/a/g) ?? []).length, depth(root)];
    }"""


def test_turned_directions_are_shown(page: Any) -> None:
    assert (
        page.evaluate(RENDER, ["a\u202eb\n\n```\nif x\u2066:\n```\n\n`\u202d`"])
        == "<p>a⟦U+202E⟧b</p><pre><code>if x⟦U+2066⟧:</code></pre><p><code>⟦U+202D⟧</code></p>"
    )
