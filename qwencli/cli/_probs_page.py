"""How an answer's tokens were chosen, made visible: an HTML page of their probabilities, and a line of text for each."""

from __future__ import annotations

import base64
import hashlib
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..sampling.sampler import TokenReport

COLOURS = [0.9, 0.7, 0.5, 0.3, 0.1, 0.03, 0.01, 0.0]
"""The lowest probability of each."""
SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
N_BARS = 40  # different lengths of a bar

# Colours are steps of equal lightness in OKLCH, which is perceptual; one hue, so that they order alike for the colour-blind and in print.
STYLE = """
:root { color-scheme: light dark; --text: #1d2128; --dim: #636b78; --back: #fff; --card: #fff; --line: #d9dde3; --mark: #2f74c8;
  --base: .985; --step: -.042 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8eaee; --dim: #9aa3b2; --back: #14161a; --card: #20242b; --line: #3a404a; --mark: #5b9ff0;
    --base: .2; --step: .04 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2.5rem 1.25rem 16rem; max-width: 48rem; color: var(--text); background: var(--back);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { margin: 0; font-size: 1.3rem; overflow-wrap: anywhere }
dl { display: flex; flex-wrap: wrap; gap: .25rem 2rem; margin: .75rem 0 1.25rem }
dl div { display: flex; gap: .5rem }
dt, summary, .legend { color: var(--dim) }
dd { margin: 0; font-variant-numeric: tabular-nums; font-weight: 600 }
.legend { display: flex; flex-wrap: wrap; gap: .25rem .8rem; margin: 0; padding: 0; list-style: none; font-size: .8rem }
.legend i { display: inline-block; width: 1.1rem; height: 1.1rem; margin-right: .35rem; border: 1px solid var(--line); border-radius: .2rem;
  vertical-align: -.2rem }
pre, .answer { font: 1rem/1.75 ui-monospace, "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; tab-size: 4 }
pre { margin: .5rem 0 0; font-size: .9rem }
details { margin: 0 0 1.25rem }
summary { cursor: pointer }
.answer { margin: 1.25rem 0; padding: 1rem 0; border-top: 1px solid var(--line); border-bottom: 1px solid var(--line) }
.t, .legend i { background: oklch(calc(var(--base) + var(--step) * var(--u)) calc(.02 * var(--u)) 58);
  print-color-adjust: exact; -webkit-print-color-adjust: exact }
.t { position: relative; border-radius: .2rem; padding: .12rem 0 }
.t:hover, .t:focus { outline: 2px solid var(--mark); z-index: 1 }
.e { font-size: .85em; border-bottom: 1px dotted }
.n::before { content: "\\21B5"; opacity: .6; font-size: .85em }
.a { display: none; grid-template-columns: auto 6rem auto; gap: .15rem .75rem; align-items: center; position: absolute; z-index: 2;
  top: 1.9rem; left: 0; padding: .5rem .8rem .5rem 1.2rem; width: max-content; max-width: 22rem; color: var(--text);
  background: var(--card); border: 1px solid var(--line); border-radius: .5rem; box-shadow: 0 .4rem 1.5rem #0004;
  font-size: .85rem; line-height: 1.5; white-space: normal }
.t:hover > .a, .t:focus > .a { display: grid }
.answer:hover .t:focus:not(:hover) > .a { display: none }
.r { display: contents }
.r > :first-child { justify-self: start; white-space: pre-wrap; overflow-wrap: anywhere; background: #8882; border-radius: .2rem }
.r > :last-child { text-align: right; font-variant-numeric: tabular-nums }
.k { font-weight: 700 }
.k > :first-child::before { content: "\\25B8"; position: absolute; left: .45rem; color: var(--mark) }
.w { display: block; height: .6rem; border-radius: .15rem; background: var(--dim); opacity: .75 }
.k .w { background: var(--mark); opacity: 1 }
@media (max-width: 78rem) {
  .a { position: fixed; top: auto; right: 0; bottom: 0; width: auto; max-width: none; border-radius: .7rem .7rem 0 0;
    padding: .8rem 1.25rem .8rem 1.6rem; grid-template-columns: minmax(5rem, auto) 1fr auto }
}
@media print { body { padding: 0; max-width: none } .t .a { display: none } details:not([open]) { display: none } }
"""
STYLE += "".join(f".c{i} {{ --u: {i} }}\n" for i in range(len(COLOURS)))
STYLE += "".join(f".w{i} {{ width: {100 * i / N_BARS:g}% }}\n" for i in range(1, N_BARS + 1))


def page(reports: Sequence[TokenReport], bytes_of: Callable[[int], bytes], model: str, prompt: str) -> str:
    """A self-contained HTML page: each token of an answer coloured by the model's probability, with the alternatives on hover and on
    keyboard focus. `bytes_of` gives the bytes that a token stands for, which may be part of a character."""
    style_hash = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'"
    tokens = "".join(_token(report, bytes_of, i) for i, report in enumerate(reports))
    labels = [*(f"&ge; {100 * least:g}%" for least in COLOURS[:-1]), f"&lt; {100 * COLOURS[-2]:g}%"]
    legend = "".join(f'<li><i class="c{i}"></i>{label}</li>' for i, label in enumerate(labels))
    figures = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _figures(reports))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(model)}: probabilities</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{_text(model)}</h1>
<dl>{figures}</dl>
</header>
<details><summary>Prompt</summary><pre>{_text(prompt)}</pre></details>
<ul class="legend"><li>Probability</li>{legend}</ul>
<main class="answer" aria-label="Answer">{tokens}</main>
</body>
</html>
"""


def explanation(report: TokenReport, text_of: Callable[[int], str]) -> str:
    """How a token was chosen, in a line: `' time'  top_k 40 > top_p 7 > min_p 3, p 0.61`. Samplers that left out nothing are not named."""
    text = "'" + "".join(c if c.isprintable() else _escape(c) for c in text_of(report.token)) + "'"
    width = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
    counts = [None, *(n for _, n in report.stages)]
    stages = " > ".join(f"{name} {n}" for (name, n), before in zip(report.stages, counts) if n != before)
    p = f"{report.probability:.2f}" if report.probability >= 0.01 else f"{report.probability:.1e}"
    return text + " " * max(0, 14 - width) + "  " + (f"{stages}, " if stages else "") + f"p {p}"


def _figures(reports: Sequence[TokenReport]) -> list[tuple[str, str]]:
    if not reports:
        return [("Tokens", "0")]
    mean = math.fsum(report.logprob for report in reports) / len(reports)
    perplexity = f"{math.exp(-mean):.4g}" if mean > -700 else "over 1e300"
    return [
        ("Tokens", str(len(reports))),
        ("Mean log-probability", f"{mean:.4f}"),
        ("Perplexity", perplexity),
    ]


def _token(report: TokenReport, bytes_of: Callable[[int], bytes], index: int) -> str:
    p = math.exp(report.logprob)
    colour = next(i for i, least in enumerate(COLOURS) if p >= least)
    ranked = (
        report.top
        if any(token == report.token for token, _ in report.top)
        else [*report.top, (report.token, report.logprob)]
    )
    rows = "".join(
        _row(_decoded(bytes_of, token), math.exp(logprob), token == report.token) for token, logprob in ranked
    )
    return (
        f'<span class="t c{colour}" tabindex="0" aria-describedby="a{index}">{_text(_decoded(bytes_of, report.token), marks=True)}'
        f'<span class="a" role="tooltip" id="a{index}">{rows}</span></span>'
    )


def _row(text: str, p: float, chosen: bool) -> str:
    bar = min(max(1, round(p * N_BARS)), N_BARS)
    return (
        f'<span class="r{" k" if chosen else ""}"><span>{_text(text, escape_all=True)}</span>'
        f'<span><span class="w w{bar}"></span></span><span>{_percent(p)}</span></span>'
    )


def _percent(p: float) -> str:
    return f"{100 * p:.1f}%" if p >= 0.01 else f"{100 * p:.2g}%" if p >= 0.0001 else "&lt; 0.01%"


def _decoded(bytes_of: Callable[[int], bytes], token: int) -> str:
    """A token's text; bytes that aren't a character become the surrogates that `_escape` knows."""
    return bytes_of(token).decode("utf-8", "surrogateescape") or f"[{token}]"


def _text(text: str, marks: bool = False, escape_all: bool = False) -> str:
    """HTML of a text, with escapes for what can't be seen. Newlines and tabs stay, newlines with a mark if `marks`, or are escaped too."""

    def parts() -> Iterable[str]:
        for c in text:
            if c.isprintable():
                yield escape(c)
            elif c in "\n\t" and not escape_all:
                yield '<span class="n"></span>\n' if marks and c == "\n" else c
            else:
                yield f'<span class="e">{_escape(c)}</span>'

    return "".join(parts())


def _escape(c: str) -> str:
    """An escape for a character that can't be seen, or for a byte that is part of one."""
    n = ord(c)
    if 0xDC80 <= n <= 0xDCFF:
        return f"\\x{n - 0xDC00:02x}"
    return SHORT.get(c) or (f"\\x{n:02x}" if n < 0x80 else f"\\u{n:04x}" if n < 0x10000 else f"\\U{n:08x}")
