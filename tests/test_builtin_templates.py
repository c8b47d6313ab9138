"""The templates that are built in, by what llama.cpp's own of the same names write (tests/oracles/templates.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwencli.text.chat.template import BUILT_IN, ChatTemplate

TOLD = json.loads((Path(__file__).parent / "oracles" / "templates.json").read_text(encoding="utf-8"))
PARTS: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": None},
]


def test_their_names_are_llama_cpps() -> None:
    assert set(BUILT_IN) == set(TOLD["texts"])


@pytest.mark.parametrize("name", TOLD["texts"])
def test_a_built_in_template(name: str) -> None:
    template = ChatTemplate.named(name)
    for messages, texts in zip(TOLD["conversations"], TOLD["texts"][name], strict=True):
        for answer, text in zip((False, True), texts, strict=True):
            assert template.render(messages, add_generation_prompt=answer) == text


def test_parts_of_a_message_are_lines() -> None:
    """As llama-server joins them."""
    text = ChatTemplate.named("llama4").render(PARTS, add_generation_prompt=False)
    begin, end = "<|header_start|>{}<|header_end|>\n\n", "<|eot|>"
    assert text == begin.format("user") + "a\nb" + end + begin.format("assistant") + end
