"""How likely an answer's tokens were, as /v1/completions reports it."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any


class TextLogprobs:
    """What tokens were, in the form of /v1/completions: four lists, part by part. Offsets count characters of the whole text."""

    NAMES = "tokens", "token_logprobs", "top_logprobs", "text_offset"

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_characters = 0

    def add(self, reports: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
        """The next tokens' part."""
        found: dict[str, list[Any]] = {name: [] for name in self.NAMES}
        for report in reports:
            found["tokens"].append(text_form(report))
            found["token_logprobs"].append(report["logprob"])
            tops = report["top_logprobs"]
            found["top_logprobs"].append(
                None if tops is None else {text_form(top): top["logprob"] for top in tops}
            )
            found["text_offset"].append(self._n_characters)
            self._n_characters += len(self._utf8.decode(bytes(report["bytes"])))
        return found


def text_form(report: dict[str, Any]) -> str:
    """A token's text; bytes that aren't UTF-8 as OpenAI writes them, so that different bytes stay different."""
    raw = bytes(report["bytes"])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
