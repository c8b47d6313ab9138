"""What an answer can be held to: JSON of a schema, a grammar, or a call of a function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import InputError, QwenError
from ...llm import LLM
from ..http.errors import ApiError

if TYPE_CHECKING:
    from ...text.grammar.constraints import Start


def grammar_of(llm: LLM, forms: dict[str, dict[str, Any] | str]) -> Start | None:
    """What an answer has to follow, by the field that asks for it; None for nothing. Slow. Raises ApiError, QwenError."""
    from ...text.grammar.constraints import gbnf, json_schema

    if len(forms) > 1:
        raise ApiError(f"{' and '.join(forms)} cannot be used together", param=next(iter(forms)))
    for field, form in forms.items():
        try:
            return gbnf(llm.vocabulary, form) if isinstance(form, str) else json_schema(llm.vocabulary, form)
        except InputError as error:
            raise ApiError(f"{field}: {error}", param=field) from None
    return None


def call_or_answer(
    llm: LLM, functions: list[dict[str, Any]], field: str, schema: Any, several: bool
) -> Start:
    """A call of one of some functions, with `several` also more than one, or JSON of a schema. Slow. Raises ApiError, QwenError."""
    from ...text.grammar.constraints import call_or_json, json_schema

    try:
        return call_or_json(llm.vocabulary, call_schema(functions), schema, several)
    except InputError as error:
        try:
            json_schema(llm.vocabulary, schema)
        except InputError:
            pass
        else:
            field = "tools"
        raise ApiError(f"{field}: {error}", param=field) from None


def after_beginning(llm: LLM, grammar: Start, text: str, field: str) -> Start:
    """What an answer has to follow from the end of its beginning on. Slow. Raises ApiError where no answer begins so, QwenError."""
    from ...text.grammar.continued import Continued

    tokens = llm.tokenizer.encode(text)
    try:
        grammar().mask(tokens)
    except QwenError:
        raise ApiError(
            f"{field}: the last message, which the answer goes on from, does not follow it", param=field
        ) from None
    return lambda: Continued(grammar(), tokens)


def call_schema(functions: list[dict[str, Any]]) -> dict[str, Any]:
    """A call of one of some functions, as Qwen writes it."""
    calls = [
        {
            "type": "object",
            "required": ["name", "arguments"],
            "additionalProperties": False,
            "properties": {
                "name": {"const": f["name"]},
                "arguments": moved(
                    f.get("parameters") or {"type": "object"}, f"/anyOf/{i}/properties/arguments"
                ),
            },
        }
        for i, f in enumerate(functions)
    ]
    return {"anyOf": calls}


def moved(schema: Any, to: str) -> Any:
    """A schema as a part of another: its references to parts of itself still lead there."""
    if isinstance(schema, list):
        return [moved(item, to) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: f"#{to}{value[1:]}"
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else moved(value, to)
        for key, value in schema.items()
    }
