"""The page of probabilities, read by html.parser: what it shows, and that no text of a model can make it do anything."""

import base64
import hashlib
import math
import re
import unicodedata
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest

from qwencli.cli._probs_page import explanation, page
from qwencli.sampling.sampler import TokenReport

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</style><script>",
    "</span></main></body>",
    "&lt;b&gt;",
    "javascript:x",
    "<!-- ",
    "]]>",
    "https://example.org/",
    "url(//x)",
    "' onmouseover='x",
    "\x00\x1b[2J\x7f",
    "\u202e\u2066\ufeff",
    "<svg/onload=x>",
    "\ud800",
]
VOID = {"meta", "link", "img", "br", "input", "base"}


@dataclass
class Node:
    tag: str
    attributes: dict
    children: list = field(default_factory=list)

    def find(self, tag: str, css: str = "") -> "list[Node]":
        nodes = [child for child in self.children if isinstance(child, Node)]
        own = [n for n in nodes if n.tag == tag and (not css or css in n.attributes.get("class", "").split())]
        return own + [found for n in nodes for found in n.find(tag, css)]

    def text(self, without: str = "") -> str:
        return "".join(
            c
            if isinstance(c, str)
            else ""
            if without and c.attributes.get("class") == without
            else c.text(without)
            for c in self.children
        )


class Tree(HTMLParser):
    """A document whose elements are all closed in their order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self._open = [self.root]
        self.feed(source)
        self.close()
        assert self._open == [self.root]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        node = Node(tag, dict(attrs))
        self._open[-1].children.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_endtag(self, tag):
        assert self._open.pop().tag == tag

    def handle_data(self, data):
        self._open[-1].children.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")


def tree(
    vocabulary: list[bytes], reports: list[TokenReport], model: str = "model.gguf", prompt: str = "Hi"
) -> Node:
    text = page(reports, vocabulary.__getitem__, model, prompt)
    text.encode()
    return Tree(text).root


def report(token: int, p: float, others: dict[int, float] | None = None) -> TokenReport:
    top = sorted({token: p, **(others or {})}.items(), key=lambda item: -item[1])
    return TokenReport(
        token, math.log(p), [(t, math.log(q)) for t, q in top], [("top_k", 40), ("top_p", 2)], 0.5
    )


def rows(token: Node) -> list[list[str]]:
    return [[cell.text() for cell in row.children] for row in token.find("span", "r")]


def test_tokens_and_what_else_was_likely():
    root = tree(
        [b"Once", b" upon", b" a"],
        [report(0, 0.95, {1: 0.0304, 2: 0.00001}), report(1, 0.005, {0: 0.7, 2: 0.002})],
    )
    tokens = root.find("main")[0].find("span", "t")
    assert [token.text(without="a") for token in tokens] == ["Once", " upon"]
    assert rows(tokens[0]) == [["Once", "", "95.0%"], [" upon", "", "3.0%"], [" a", "", "< 0.01%"]]
    assert rows(tokens[1]) == [["Once", "", "70.0%"], [" upon", "", "0.5%"], [" a", "", "0.2%"]]
    assert [[row.text() for row in token.find("span", "k")] for token in tokens] == [
        ["Once95.0%"],
        [" upon0.5%"],
    ]
    for token in tokens:  # for the keyboard and for screen readers
        assert token.attributes["tabindex"] == "0"
        (shown,) = token.find("span", "a")
        assert (shown.attributes["role"], shown.attributes["id"]) == (
            "tooltip",
            token.attributes["aria-describedby"],
        )
    ids = [node.attributes["id"] for node in root.find("span") if "id" in node.attributes]
    assert len(set(ids)) == len(ids) == 2


def test_a_token_that_is_none_of_the_likeliest_stands_last():
    others = [(1, math.log(0.6)), (2, math.log(0.3))]
    (token,) = tree([b"a", b"b", b"c"], [TokenReport(0, math.log(0.05), others, [], 0.1)]).find("span", "t")
    assert rows(token) == [["b", "", "60.0%"], ["c", "", "30.0%"], ["a", "", "5.0%"]]


@pytest.mark.parametrize("ps", [[0.5, 0.25, 1.0], [1e-5], [1 / 3] * 7])
def test_figures(ps):
    root = tree([b"a"], [report(0, p) for p in ps])
    figures = dict(zip((n.text() for n in root.find("dt")), (n.text() for n in root.find("dd"))))
    assert figures["Tokens"] == str(len(ps))
    assert float(figures["Mean log-probability"]) == pytest.approx(
        sum(map(math.log, ps)) / len(ps), abs=5.1e-5
    )
    assert float(figures["Perplexity"]) == pytest.approx(
        math.prod(1 / p for p in ps) ** (1 / len(ps)), rel=6e-4
    )


def test_no_tokens_and_tokens_that_are_all_but_impossible():
    root = tree([b"a"], [])
    assert [n.text() for n in root.find("dd")] == ["0"]
    root = tree([b"a"], [TokenReport(0, -5000.0, [(0, -5000.0)], [], 1.0)])
    assert [n.text() for n in root.find("dd")] == ["1", "-5000.0000", "over 1e300"]
    assert rows(root.find("span", "t")[0]) == [["a", "", "< 0.01%"]]


def test_likelier_tokens_have_earlier_colours_and_longer_bars():
    ps = [1.0, 0.95, 0.901, 0.89, 0.71, 0.51, 0.49, 0.31, 0.11, 0.031, 0.011, 0.0099, 1e-9]
    root = tree([b"a"], [report(0, p) for p in ps])
    colours = [
        int(token.attributes["class"].split()[1].removeprefix("c")) for token in root.find("span", "t")
    ]
    assert colours == [0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 6, 7, 7]
    legend = [item.text() for item in root.find("li")]
    assert legend == ["Probability", "≥ 90%", "≥ 70%", "≥ 50%", "≥ 30%", "≥ 10%", "≥ 3%", "≥ 1%", "< 1%"]
    assert [item.find("i")[0].attributes["class"] for item in root.find("li")[1:]] == [
        f"c{i}" for i in range(8)
    ]
    (style,) = (node.text() for node in root.find("style"))
    assert all(re.search(rf"\.c{i} {{ --u: {i} }}", style) for i in range(8))
    widths = dict(re.findall(r"\.(w\d+) { width: ([\d.]+)% }", style))
    bars = [float(widths[bar.attributes["class"].split()[1]]) for bar in root.find("span", "w")]
    assert bars == pytest.approx([max(100 * p, 2.5) for p in ps], abs=1.26)


def test_whitespace_and_parts_of_characters():
    party = "🎉".encode()
    vocabulary = [b"\n", b"a\n\n\tb", party[:2], party[2:] + b"!", "你".encode(), b"", b"\r\x1b", b"\\n"]
    root = tree(vocabulary, [report(i, 0.5) for i in range(len(vocabulary))])
    tokens = root.find("span", "t")
    assert [token.text(without="a") for token in tokens] == [
        "\n",
        "a\n\n\tb",
        "\\xf0\\x9f",
        "\\x8e\\x89!",
        "你",
        "[5]",
        "\\r\\x1b",
        "\\n",
    ]
    assert [len(token.find("span", "n")) for token in tokens] == [
        1,
        2,
        0,
        0,
        0,
        0,
        0,
        0,
    ]  # where newlines are made visible
    assert [rows(token)[0][0] for token in tokens] == [
        "\\n",
        "a\\n\\n\\tb",
        "\\xf0\\x9f",
        "\\x8e\\x89!",
        "你",
        "[5]",
        "\\r\\x1b",
        "\\n",
    ]
    marked = [
        [e.text() for e in token.children if isinstance(e, Node) and e.attributes["class"] == "e"]
        for token in tokens
    ]
    assert marked[2:] == [
        ["\\xf0", "\\x9f"],
        ["\\x8e", "\\x89"],
        [],
        [],
        ["\\r", "\\x1b"],
        [],
    ]  # no backslash that the model wrote


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_is_more_than_text(text):
    harmless = tree([b"x", b"y"], [report(0, 0.5, {1: 0.2})], "m", "p")
    data = text.encode("utf-8", "surrogatepass")
    root = tree([data, data], [report(0, 0.5, {1: 0.2})], text, text)

    def shape(node: Node) -> list:
        same = {k: v for k, v in node.attributes.items() if v is not None}
        return [
            node.tag,
            same,
            [shape(c) for c in node.children if isinstance(c, Node) and c.attributes.get("class") != "e"],
        ]

    assert shape(root) == shape(harmless)
    for node in root.find("title") + root.find("h1") + root.find("pre") + root.find("span", "t"):
        shown = re.sub(r"(\\x..|\\u....)+", "", node.text(without="a"))
        assert shown.removesuffix(": probabilities") == "".join(c for c in text if c.isprintable())
        assert all(c == "\n" or unicodedata.category(c)[0] != "C" for c in node.text())


def test_the_page_runs_and_loads_nothing():
    source = page([report(0, 0.5)], [b"a"].__getitem__, "m", "p")
    root = Tree(source).root
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "h1",
        "dl",
        "div",
        "dt",
        "dd",
        "details",
        "summary",
        "pre",
        "ul",
        "li",
        "i",
        "main",
        "span",
    }
    tags = set(re.findall(r"<([a-z0-9]+)", source))
    assert tags <= allowed
    attributes = {name for tag in tags for node in root.find(tag) for name in node.attributes}
    assert attributes <= {
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "class",
        "tabindex",
        "aria-describedby",
        "aria-label",
        "role",
        "id",
    }
    assert "//" not in source.replace("<!DOCTYPE html>", "")
    assert not re.search(r"url\(|@import|expression", source)
    policy = next(
        m.attributes["content"]
        for m in root.find("meta")
        if m.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    digest = base64.b64encode(hashlib.sha256(root.find("style")[0].text().encode()).digest()).decode()
    assert directives == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def explained(text: str, stages: list[tuple[str, int]], probability: float) -> str:
    return explanation(TokenReport(7, -1.0, [], stages, probability), {7: text}.__getitem__)


def test_explanations():
    default = [("top_k", 40), ("top_p", 7), ("min_p", 3), ("temperature", 3)]
    assert explained(" time", default, 0.613) == "' time'         top_k 40 > top_p 7 > min_p 3, p 0.61"
    assert explained("\n\x1b[2J\u202e", [], 1.0) == "'\\n\\x1b[2J\\u202e'  p 1.00"
    assert explained("a", [("penalties", 99), ("top_k", 40), ("top_p", 40), ("xtc", 1)], 0.00042) == (
        "'a'             penalties 99 > top_k 40 > xtc 1, p 4.2e-04"
    )
    assert (
        explained("你好", default, 0.5).index("top_k") == explained("four", default, 0.5).index("top_k") - 2
    )  # as wide on a terminal
