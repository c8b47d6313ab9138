"""The forms that a prompt may have in both APIs: a text, token ids, or several of either."""

from __future__ import annotations

from typing import Any

from ...llm import LLM
from ...request.prompt import check_length
from ...text.tokenizer import Tokenizer
from ..http.errors import ApiError


def is_id(value: object) -> bool:
    return type(value) is int


def mixed(
    tokenizer: Tokenizer, prompt: Any, add_special: bool = True, parse_special: bool = True
) -> list[int]:
    """Token ids of a text, or of texts and ids in a list; a list gets a BOS token only where it starts with a text.

    Raises ApiError, InputError.
    """
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, add_special, parse_special)
    if not isinstance(prompt, list) or not all(is_id(part) or isinstance(part, str) for part in prompt):
        raise ApiError("expected a text, or a list of texts and token ids")
    ids: list[int] = []
    for i, part in enumerate(prompt):
        ids += [part] if is_id(part) else tokenizer.encode(part, add_special and i == 0, parse_special)
    return ids


def prompts_of(llm: LLM, value: Any, most: int, name: str = "prompt") -> list[list[int]]:
    """The token ids of each prompt. A list is one prompt if an id is in it, else a list of prompts. Slow.

    Raises ApiError, InputError, ContextFull.
    """
    prompts = value if isinstance(value, list) and not any(map(is_id, value)) else [value]
    if not 1 <= len(prompts) <= most:
        raise ApiError(f"{name} has {len(prompts)} prompts, expected 1 to {most}", param=name)
    return [_tokens_of(llm, prompt, name) for prompt in prompts]


def _tokens_of(llm: LLM, prompt: Any, name: str) -> list[int]:
    if isinstance(prompt, dict):
        if prompt.get("multimodal_data"):
            raise ApiError("multimodal_data: this model reads text alone", 501, param=name)
        prompt = _text_of(prompt["content"], name) if "content" in prompt else prompt.get("prompt_string")
    whole = isinstance(prompt, str) or (isinstance(prompt, list) and (not prompt or any(map(is_id, prompt))))
    if not whole:
        raise ApiError(
            f"{name} has to be a text, a list of token ids, an object with a prompt_string, or a list of such",
            param=name,
        )
    texts = [prompt] if isinstance(prompt, str) else [part for part in prompt if isinstance(part, str)]
    check_length(texts, llm.tokenizer, llm.engine.n_ctx)
    return mixed(llm.tokenizer, prompt)


def _text_of(content: Any, name: str) -> str:
    """The text of an object's content, which llama-server has as parts for what a model reads besides. Raises ApiError."""
    texts: list[str] = []
    for part in content if isinstance(content, list) and content else [None]:
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
        if kind in ("image_url", "input_audio", "input_video"):
            raise ApiError(f"{name} has a part of type {kind}: this model reads text alone", 501, param=name)
        if kind != "text" or not isinstance(text, str):
            raise ApiError(f"the content of {name} has to be a list of parts of type text", param=name)
        texts.append(text)
    return "".join(texts)
