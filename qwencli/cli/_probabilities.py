"""How likely each token was: --logprobs, --explain and --show-probs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._streams import say

if TYPE_CHECKING:
    from ..engine.engine import Sequence
    from ..sampling.sampler import TokenReport
    from ..text.tokenizer import Tokenizer

SHOWN = 10  # alternatives on a page, unless another number is asked for


@dataclass
class Probabilities:
    """What was asked for: the N likeliest tokens in JSON, a line per token on stderr, a page."""

    logprobs: int | None
    explain: bool
    show_probs: str | None

    def sampling(self) -> dict[str, Any]:
        """The settings that make the sampler report it."""
        n_probs = (
            max(self.logprobs or 0, SHOWN if self.show_probs else 0, int(self.logprobs is not None)) or None
        )
        return {"n_probs": n_probs, "explain": self.explain or None}

    def check(self) -> None:
        """Raises QwenError now if the page can't be written later."""
        if self.show_probs:
            from ..system.files import check_replaceable

            check_replaceable(self.show_probs)

    def explanation(self, seq: Sequence, place: int, tokenizer: Tokenizer) -> None:
        """Say how the answer's token at `place` was chosen, if that was asked for."""
        if self.explain and (report := seq.reports.get(place)):
            from ._probs_page import explanation

            say(explanation(report, lambda token: tokenizer.decode([token])))

    def json(self, seq: Sequence, tokenizer: Tokenizer) -> dict[str, Any]:
        """What is added to an answer's JSON: natural logarithms of probabilities before any sampler."""
        if self.logprobs is None:
            return {}

        def entry(token: int, logprob: float) -> dict[str, Any]:
            return {"id": token, "token": tokenizer.decode([token]), "logprob": logprob}

        def whole(report: TokenReport) -> dict[str, Any]:
            return entry(report.token, report.logprob) | {
                "top_logprobs": [entry(*other) for other in report.top[: self.logprobs]]
            }

        return {"logprobs": [whole(report) for _, report in sorted(seq.reports.items())]}

    def write_page(self, seq: Sequence, tokenizer: Tokenizer, model: str, prompt: str) -> None:
        """Write the page, if one was asked for. Raises QwenError if that fails."""
        if self.show_probs:
            from ..system.files import replacing
            from ._probs_page import page

            text = page(
                [report for _, report in sorted(seq.reports.items())], tokenizer.token_bytes, model, prompt
            )
            with replacing(Path(self.show_probs)) as file:
                file.write(text.encode())


def probability_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Passed on to the command as one Probabilities, `probabilities`."""

    @wraps(command)
    def wrapper(**kwargs: Any) -> Any:
        asked = Probabilities(*(kwargs.pop(name) for name in Probabilities.__dataclass_fields__))
        return command(probabilities=asked, **kwargs)

    for option in (
        click.option(
            "--show-probs",
            metavar="FILE",
            help="Write an HTML page that shows each token's probability and the likeliest alternatives.",
        ),
        click.option(
            "--explain",
            is_flag=True,
            help="Show on stderr, for each token, how many tokens each sampler left.",
        ),
        click.option(
            "--logprobs",
            type=click.IntRange(0, 1000),
            metavar="N",
            help="With --json: each token's log-probability, and those of the N likeliest.",
        ),
    ):
        wrapper = option(wrapper)
    return wrapper
