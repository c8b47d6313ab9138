"""What bench_peers.py reports: the verdict on a test, the table and the chart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from peer_runs import TESTS

US, THEM = "qwencli", "llama.cpp"
PAIRS = 5
"""A ratio from fewer pairs is marked: on a shared machine, single ratios vary by 15 % and more."""


def judge(name: str, found: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any]:
    """Return the medians of both, and the median, the least and the greatest of the pairs' ratios, above 1 where ours is better.

    For generation also our bandwidth and its share of the highest one seen. The values in `found` belong together by their places: the
    first of ours and the first of theirs are a pair.
    """
    test, runs = TESTS[name], found[name]
    ratios = [test.speed(mine) / test.speed(other) for mine, other in zip(runs[US], runs[THEM], strict=True)]
    verdict: dict[str, Any] = {
        "unit": test.unit,
        **{engine: statistics.median(runs[engine]) for engine in (US, THEM)},
        "ratio": statistics.median(ratios),
        "least_ratio": min(ratios),
        "greatest_ratio": max(ratios),
        "runs": runs,
    }
    if test.shape and test.shape[1]:
        bandwidth, limit = (statistics.median(found[f"{name} {what}"][US]) for what in ("bandwidth", "limit"))
        # the machine can read at least as fast as llama.cpp does
        limit = max(limit, bandwidth / verdict["ratio"])
        verdict |= {"bandwidth": bandwidth, "bandwidth_share": bandwidth / limit}
    return verdict


def shown(verdict: Mapping[str, Any], engine: str) -> str:
    value = verdict[engine]
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {verdict['unit']}"


def table(compared: Mapping[str, Any]) -> str:
    """The verdicts as Markdown, and below them the settings in which llama.cpp failed."""
    lines = [
        f"| {compared['model']} | {US} | {THEM} | ratio | least to greatest | {THEM}'s best setting | weights and KV read |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    failures = []
    for name, verdict in compared["tests"].items():
        cells = [
            TESTS[name].title,
            shown(verdict, US),
            shown(verdict, THEM),
            f"{verdict['ratio']:.2f}",
            f"{verdict['least_ratio']:.2f} to {verdict['greatest_ratio']:.2f}",
            verdict["setting"],
            f"{verdict['bandwidth'] / 1e9:.1f} GB/s, {verdict['bandwidth_share']:.0%}"
            if "bandwidth" in verdict
            else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
        failures += [
            f"{THEM} failed in {TESTS[name].title} with {setting}: {reason}"
            for setting, reason in verdict.get("failed", {}).items()
        ]
    return "\n".join(lines + (["", *failures] if failures else []))


def draw(report: Mapping[str, Any], path: str) -> None:
    """Draw a panel for each model: llama.cpp's bars are 1, ours say how many times as fast we are, with the figures above them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = report["models"]
    figure, panels = plt.subplots(
        len(models), 1, figsize=(9, 0.6 + 3.2 * len(models)), squeeze=False, layout="constrained"
    )
    for panel, compared in zip(panels[:, 0], models):
        verdicts = {TESTS[name].title: verdict for name, verdict in compared["tests"].items()}
        places = range(len(verdicts))
        tallest = max(1.0, *(verdict["ratio"] for verdict in verdicts.values()))
        for shift, engine, colour in (-0.2, US, "#2563a8"), (0.2, THEM, "#b9bec6"):
            heights = [verdict["ratio"] if engine == US else 1.0 for verdict in verdicts.values()]
            panel.bar([place + shift for place in places], heights, 0.38, color=colour, label=engine)
            for place, height, verdict in zip(places, heights, verdicts.values()):
                panel.text(
                    place + shift, height + 0.02 * tallest, shown(verdict, engine), ha="center", fontsize=8
                )
                if engine == US:
                    panel.text(
                        place + shift,
                        height + 0.09 * tallest,
                        f"{height:.1f} x",
                        ha="center",
                        fontweight="bold",
                    )
        panel.set_xticks(
            list(places), [title.replace(", ", ",\n").replace(" @", "\n@") for title in verdicts], fontsize=9
        )
        panel.set_ylim(0, 1.2 * tallest)
        panel.set_yticks([])
        panel.set_title(compared["model"], loc="left", fontsize=11)
        panel.spines[["top", "right", "left"]].set_visible(False)
    panels[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0)
    figure.text(
        0.01,
        -0.02,
        f"{report['cpu']}, {report['n_threads']} threads, {report['date']}; higher bars are better",
        fontsize=8,
    )
    figure.savefig(path, dpi=160, facecolor="white", bbox_inches="tight")
