"""The prompt of /infill: a gap in a file, after other files of its repository, as llama-server puts them together."""

from __future__ import annotations

from ...llm import LLM
from ...text.fim import fim_prompt
from ..http.errors import ApiError
from ..options import ServerOptions
from ..shared.prompts import mixed
from .fields import InfillFields

REPOSITORY, FILE = "myproject\n", "filename\n"
"""The names that llama-server has for the repository and for the file with the gap, which requests don't name."""
SNIPPET = "\n\n--- snippet ---\n\n"
"""What precedes another file where the vocabulary has no token for it."""


def infill_prompt(body: InfillFields, llm: LLM, options: ServerOptions) -> list[int]:
    """The prompt's tokens. Slow. Raises ApiError where the model has no tokens for it, InputError.

    Of the text around the gap three quarters of `n_batch` tokens before it and a quarter after it are taken, the nearest ones, and of other
    files as many as the context then has room for, the last ones. (llama.cpp, server-common.cpp, format_prompt_infill)
    """
    tokenizer, n_batch = llm.tokenizer, options.n_batch
    fim = tokenizer.fim
    if missing := fim.missing:
        reasons = " ".join(f"{name} token is missing." for name in missing)
        raise ApiError(f"Infill is not supported by this model: {reasons}", 501)
    prompt = tokenizer.encode(body.prompt, parse_special=True)
    before, after = (_tokens(llm, body, name) for name in ("input_prefix", "input_suffix"))
    n_before = 3 * (n_batch // 4)
    n_after = max(0, n_batch // 4 - (2 + len(prompt)))
    before = [*before[max(0, len(before) - n_before) :], *prompt]
    gap = fim_prompt(fim, before, after[:n_after], options.suffix_first)
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        gap.insert(0, tokenizer.bos_id)
    others = repository(body, llm)
    n_predict = -1 if options.max_tokens is None else options.max_tokens
    room = max(0, llm.engine.n_ctx - n_batch - 2 * n_predict)
    return [*others[max(0, len(others) - room) :], *gap]


def _tokens(llm: LLM, body: InfillFields, name: str) -> list[int]:
    """One side of the gap. Raises ApiError, InputError."""
    try:
        return mixed(llm.tokenizer, getattr(body, name), False, False)
    except ApiError as error:
        raise ApiError(f"{name}: {error}", param=name) from None


def repository(body: InfillFields, llm: LLM) -> list[int]:
    """The other files, each after its name, and the name of the one with the gap. Raises InputError."""
    tokenizer = llm.tokenizer
    fim = tokenizer.fim
    tokens = [] if fim.repo is None else [fim.repo, *tokenizer.encode(REPOSITORY)]
    for file in body.input_extra or ():
        if fim.separator is None:
            tokens += tokenizer.encode(SNIPPET)
        else:
            tokens += [fim.separator, *tokenizer.encode(file.filename + "\n")]
        tokens += tokenizer.encode(file.text)
    return tokens if fim.separator is None else [*tokens, fim.separator, *tokenizer.encode(FILE)]
