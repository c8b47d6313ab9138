"""A picture as SVG, readable in light and in dark. Weights that one node alone reads are drawn inside its box."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from ..units import size
from . import colours
from .labels import crossing, details, heading, heat, is_heated, plain, summary, timing
from .layout import Layout, lay_out
from .picture import OUTSIDE, Box, Edge, Picture
from .rows import Place

FONT = "ui-monospace, 'DejaVu Sans Mono', 'Cascadia Mono', Menlo, Consolas, 'Liberation Mono', monospace"
NAME, SMALL = 12.0, 10.5
"""Sizes of text: names, and all else."""
CHARACTER = 0.61
"""The width of a character as a part of its size; monospaced fonts hardly differ."""
LINE_HEIGHT = 15
PAD = 9
MARGIN = 24
LEGEND_ROW = 30
RADIUS = 5


def write_svg(picture: Picture) -> bytes:
    """The picture as an SVG file, UTF-8."""
    return "".join(Writer(picture).lines()).encode("utf-8", "replace")


class Writer:
    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._weights: dict[Box, list[Box]] = {}
        for weight, reader in picture.attached().items():
            self._weights.setdefault(reader, []).append(weight)
        self._devices = {device.name: i % len(colours.DEVICES) for i, device in enumerate(picture.devices)}
        self._layout: Layout = lay_out(picture, self._size)
        self._legend = list(self._legend_rows())

    # -- sizes ----------------------------------------------------------------------------------------------------------

    def _texts(self, box: Box) -> list[str]:
        """The lines of a box: its name, what it is, and its time if there is one."""
        if box.kind == "weight":
            return [plain(box.name), details(box)]
        time = timing(box)
        return [plain(box.name), f"{box.op} {details(box)}", *([time] if time else [])]

    def _size(self, box: Box) -> tuple[float, float]:
        name, *others = self._texts(box)
        height: float
        width = max(len(name) * NAME, *(len(text) * SMALL for text in others)) * CHARACTER + 2 * PAD
        height = LINE_HEIGHT * (1 + len(others)) + 10
        for weight in self._weights.get(box, []):
            w, h = self._weight_size(weight)
            width, height = max(width, w + 2 * 6), height + h + 5
        return width + (12 if box.kind in ("input", OUTSIDE) else 0), height

    def _weight_size(self, weight: Box) -> tuple[float, float]:
        texts = self._texts(weight)
        return max(map(len, texts)) * SMALL * CHARACTER + 2 * 12, LINE_HEIGHT * len(texts) + 5

    # -- the file -------------------------------------------------------------------------------------------------------

    def lines(self) -> Iterator[str]:
        out, legend_height = self._layout, MARGIN + 44 + LEGEND_ROW * len(self._legend) + 12
        title, about = plain(self._picture.title, 80), summary(self._picture)
        legend_width = max(
            *(row_width for row_width, _ in self._legend),
            len(title) * 17 * CHARACTER,
            len(about) * SMALL * CHARACTER * 1.1,
        )
        width = max(out.right - out.left, legend_width) + 2 * MARGIN
        height = out.height + legend_height + MARGIN
        yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
        yield f' font-family="{FONT}" font-size="{SMALL}" role="img">\n'
        yield f"<title>{escape(title)}: {escape(about)}</title>\n<style>\n{self._style()}</style>\n"
        yield f'<rect class="paper" width="{width:.0f}" height="{height:.0f}"/>\n'
        yield f'<text class="heading" x="{MARGIN}" y="{MARGIN + 14}">{escape(title)}</text>\n'
        yield f'<text class="dim" x="{MARGIN}" y="{MARGIN + 34}" font-size="11.5">{escape(about)}</text>\n'
        for i, (_, row) in enumerate(self._legend):
            yield f'<g transform="translate({MARGIN} {MARGIN + 46 + LEGEND_ROW * i})">{row}</g>\n'
        left = (width - out.left - out.right) / 2
        left = min(max(left, MARGIN - out.left), width - MARGIN - out.right)
        yield f'<g transform="translate({left:.1f} {legend_height})">\n'
        yield from self._frames()
        crossing = [edge for edge in out.routes if edge.crosses]
        for edge in [*(edge for edge in out.routes if not edge.crosses), *crossing]:
            yield self._edge(edge)
        for place in out.places.values():
            yield from self._box(place)
        yield from map(self._edge_text, crossing)
        yield "</g>\n</svg>\n"

    def _style(self) -> str:
        """Rules for light, and in a media query those for dark. Only plain rules, so that simple renderers show it too."""
        always = (
            "rect, path { stroke-width: 1.2 } .heading { font-size: 17px; font-weight: bold }"
            f" .name {{ font-size: {NAME}px; font-weight: bold }} .bold {{ font-weight: bold }}"
            " text { text-anchor: middle } .heading, .dim, .title, .key { text-anchor: start }"
            " .title { font-size: 12px; font-weight: bold } .edge { fill: none; stroke-width: 1.3 }"
            " .crosses { fill: none; stroke-width: 3 } .view, .outside { stroke-dasharray: 4 3 } .result { stroke-width: 2.6 }"
            " .bytes { text-anchor: start; font-weight: bold; paint-order: stroke; stroke-width: 3px }\n"
        )
        light, dark = (self._rules(i) for i in range(2))
        return f"{always}{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"

    def _rules(self, scheme: int) -> str:
        paper, dim, bold = colours.PAPER[scheme], colours.DIM[scheme], colours.BOLD[scheme]
        rules = {
            ".paper": f"fill: {paper.fill}; stroke: none",
            "text": f"fill: {paper.text}",
            ".dim": f"fill: {dim}",
            ".frame": f"fill: {colours.FRAME[scheme]}; stroke: {paper.line}",
            ".edge": f"stroke: {dim}",
            ".tip": f"fill: {dim}; stroke: none",
            ".crosses": f"stroke: {bold}",
            ".crossing": f"fill: {bold}; stroke: none",
            ".bytes": f"fill: {bold}; stroke: {paper.fill}",
            ".outside": f"fill: {paper.fill}",
        }
        for number in self._devices.values():
            c = colours.DEVICES[number][scheme]
            rules |= {
                f".d{number}": f"fill: {c.fill}; stroke: {c.line}",
                f".d{number}-text": f"fill: {c.text}",
            }
            rules |= {f".d{number}-line": f"stroke: {c.line}"}
        for kind, pair in colours.KINDS.items():
            rules |= {f".{kind}": f"fill: {pair[scheme].fill}", f".{kind}-text": f"fill: {pair[scheme].text}"}
            if len(self._devices) == 1 or kind == "weight":
                rules[f".{kind}"] += f"; stroke: {pair[scheme].line}"
        if self._picture.is_profiled:
            for i, pairs in enumerate(colours.HEAT):
                fill, text = pairs[scheme]
                rules |= {f".h{i}": f"fill: {fill}", f".h{i}-text": f"fill: {text}"}
        return "".join(f"{name} {{ {rule} }}\n" for name, rule in rules.items())

    # -- parts ----------------------------------------------------------------------------------------------------------

    def _frames(self) -> Iterator[str]:
        for r in self._layout.frames:
            yield (
                f'<rect class="frame" x="{r.left:.1f}" y="{r.top:.1f}" width="{r.right - r.left:.1f}"'
                f' height="{r.bottom - r.top:.1f}" rx="10"/>\n'
                f'<text class="title" x="{r.left + 14:.1f}" y="{r.top + 21:.1f}">{escape(heading(r.frame))}</text>\n'
            )

    def _edge(self, edge: Edge) -> str:
        points = self._layout.routes[edge]
        x, y = points[-1]
        tip, kind, tip_kind = (7, "crosses", "crossing") if edge.crosses else (5, "edge", "tip")
        return (
            f'<path class="{kind}" d="{rounded([*points[:-1], (x, y - tip)])}"/>'
            f'<path class="{tip_kind}" d="M{x:.1f} {y:.1f}l{-0.6 * tip:.1f} {-1.4 * tip:.1f}h{1.2 * tip:.1f}z"/>\n'
        )

    def _edge_text(self, edge: Edge) -> str:
        x, y = self._layout.routes[edge][-1]
        return f'<text class="bytes" x="{x + 7:.1f}" y="{y - 4:.1f}">{escape(crossing(edge))}</text>\n'

    def _classes(self, box: Box) -> tuple[str, str]:
        """The classes of a box and of its texts."""
        device = f"d{self._devices.get(box.device, 0)}"
        if box.kind == OUTSIDE:
            return f"{device} outside", "dim-text"
        if is_heated(box, self._picture):
            level = heat(box, self._picture)
            return f"{device} {box.kind} h{level}", f"h{level}-text"
        return f"{device} {box.kind}", f"{box.kind if box.kind in colours.KINDS else device}-text"

    def _box(self, place: Place) -> Iterator[str]:
        box, width, height = place.source, place.width, place.height
        shape, text = self._classes(box)
        name, *others = self._texts(box)
        yield f'<g transform="translate({place.x - width / 2:.1f} {place.y:.1f})" data-node="{escape(plain(box.name, 200))}">'
        yield self._tooltip(box) + outline(box.kind, shape, width, height)
        yield f'<text class="name {text}" x="{width / 2:.1f}" y="18">{escape(name)}</text>'
        for i, line in enumerate(others, 1):
            yield f'<text class="{text}" x="{width / 2:.1f}" y="{17.5 + LINE_HEIGHT * i:.1f}">{escape(line)}</text>'
        y = LINE_HEIGHT * (1 + len(others)) + 8.0
        for weight in self._weights.get(box, []):
            w, h = self._weight_size(weight)
            yield f'<g transform="translate({(width - w) / 2:.1f} {y:.1f})" data-node="{escape(plain(weight.name, 200))}">'
            yield self._tooltip(weight) + outline("weight", self._classes(weight)[0], w, h)
            for i, line in enumerate(self._texts(weight)):
                yield f'<text class="weight-text" x="{w / 2:.1f}" y="{14 + LINE_HEIGHT * i}">{escape(line)}</text>'
            yield "</g>"
            y += h + 5
        yield "</g>\n"

    def _tooltip(self, box: Box) -> str:
        sources = " ".join(plain(source.name) for source in box.nodes[0].src)
        about = f"{plain(box.name, 200)}: {box.op} {details(box)} on {plain(box.device)}"
        return f"<title>{escape(about)}{escape(' of ' + sources) if sources else ''}</title>"

    # -- legend ---------------------------------------------------------------------------------------------------------

    def _legend_rows(self) -> Iterator[tuple[float, str]]:
        """Each row's width and what is in it."""
        kinds = ["input", "weight", "op", "view", "result"]
        used = {box.kind for box in self._picture.boxes}
        keys = [(outline(k, f"d0 {k}", 30, 16), k) for k in kinds if k in used]
        if OUTSIDE in used:
            keys.append((outline(OUTSIDE, f"d0 {OUTSIDE}", 30, 16), "of a layer not shown"))
        yield row_of_keys(keys)
        devices = [
            (
                f'<rect class="d{self._devices[d.name]}" width="30" height="16" rx="4"/>',
                device_text(d.name, d.weight_bytes),
            )
            for d in self._picture.devices
        ]
        if any(edge.crosses for edge in self._picture.edges):
            devices.append(('<path class="crosses" d="M0 8h30"/>', "copied from device to device"))
        yield row_of_keys(devices)
        if self._picture.is_profiled:
            steps = "".join(
                f'<rect class="h{i} d0-line" x="{14 * i}" width="14" height="16"/>'
                for i in range(len(colours.HEAT))
            )
            yield row_of_keys(
                [(steps, "time: each colour is for twice the time of the one before")], 14 * len(colours.HEAT)
            )


def device_text(name: str, weight_bytes: int) -> str:
    return f"{plain(name)}, {size(weight_bytes)} of weights"


def row_of_keys(keys: list[tuple[str, str]], width: float = 30) -> tuple[float, str]:
    """A row of the legend: symbols of that width, each with a text after it."""
    x, text = 0.0, ""
    for symbol, meaning in keys:
        text += f'<g transform="translate({x:.1f} 0)">{symbol}<text class="key" x="{width + 8:.0f}" y="12">{escape(meaning)}</text></g>'
        x += width + 8 + len(meaning) * SMALL * CHARACTER + 24
    return x, text


def outline(kind: str, classes: str, width: float, height: float) -> str:
    """The form of a kind of node: inputs lean, weights are round, results have a heavy line, views and what is outside a broken one."""
    if kind == "input":
        lean = min(10.0, height / 3)
        return f'<path class="{classes}" d="M{lean:.1f} 0H{width:.1f}L{width - lean:.1f} {height:.1f}H0z" stroke-linejoin="round"/>'
    radius = height / 2 if kind == "weight" and height < 40 else 12 if kind == "weight" else 4
    return f'<rect class="{classes}" width="{width:.1f}" height="{height:.1f}" rx="{radius:.0f}"/>'


def rounded(points: list[tuple[float, float]]) -> str:
    """A path through points, whose corners are right angles, with the corners rounded."""
    parts = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (ax, ay), (bx, by), (cx, cy) in zip(points, points[1:], points[2:]):
        before, after = abs(bx - ax) + abs(by - ay), abs(cx - bx) + abs(cy - by)
        r = min(RADIUS, before / 2, after / 2)
        x, y = bx - r * sign(bx - ax), by - r * sign(by - ay)
        parts.append(
            f"L{x:.1f} {y:.1f}Q{bx:.1f} {by:.1f} {bx + r * sign(cx - bx):.1f} {by + r * sign(cy - by):.1f}"
        )
    return "".join(parts) + f"L{points[-1][0]:.1f} {points[-1][1]:.1f}"


def sign(x: float) -> int:
    return (x > 0) - (x < 0)
