"""A model file, opened and ready to answer: the entry for those who use qwencli as a library."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .answer_text import AnswerText
from .backends.choose import choose_backend, make_backend
from .backends.kv_cache import CacheTypes
from .engine.engine import Engine
from .engine.engine import Sequence as EngineSequence
from .engine.fit import STATES, measure
from .gguf.file import GGUFFile
from .network.model import load_model
from .sampling import Breakers, Constraint, SamplingParams
from .text.chat.template import ChatTemplate
from .text.chat.thinking import ReasoningBudget
from .text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from .text.grammar.constraints import Vocabulary

MOST_BREAKERS = 16
"""So many sets of texts that end DRY's repetitions are kept with their tokens."""


class LLM:
    """A GGUF file with its tokenizer, its chat template and an engine that runs it.

        llm = LLM("model.gguf")
        print("".join(llm.stream(llm.tokenizer.encode("Once upon a time"), max_tokens=32)))

    `n_ctx` is the longest a prompt and its answer may be together, by default the model's own, or as much of that as fits into the free
    memory. An `n_ctx` that doesn't fit is an error, but with `fit` the longest that does is taken in its place; with `fit` False nothing is
    checked. `n_batch` is the most tokens of a step, `n_threads` how many run it, by default as many as there are cores; `backend` is "cpu",
    compiled kernels, "numpy", the slow reference, or "auto", the first that can run the file. `report` is told in a line that kernels are
    compiled, which happens once, or that the context is shorter than the model's; `progress` how many of how many kernels are done. With
    `chat` the process of the chat template starts at once, beside all else. `cache_type_k` and `cache_type_v` say as what keys and values
    are kept: f16, the default, bf16, f32, q8_0 or q4_0. Raises QwenError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        n_ctx: int | None = None,
        n_threads: int | None = None,
        use_mmap: bool = True,
        backend: str = "auto",
        report: Callable[[str], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
        chat: bool = False,
        cache_type_k: str | None = None,
        cache_type_v: str | None = None,
        fit: bool | None = None,
        n_batch: int = 512,
    ) -> None:
        self.file = GGUFFile(path)
        if chat and self.chat_template:
            self.chat_template.start()
        self.model, types = load_model(self.file), CacheTypes(cache_type_k, cache_type_v)
        backend = choose_backend(backend, self.model, report)
        self.fit = measure(self.model, types, backend, n_batch)
        n_ctx = self.fit.choose(n_ctx, fit, report)
        if not use_mmap:  # read only now that it is known to fit
            self.file = GGUFFile(path, use_mmap)
            self.model = load_model(self.file)
        self.tokenizer = Tokenizer(self.file)
        self._breakers: dict[tuple[str, ...], Breakers] = {}
        self.engine = Engine(
            make_backend(backend, self.model, n_threads, report, progress, types), n_ctx, n_batch, n_ctx
        )
        if fit is not False and (most := self.fit.for_sequences) is not None:
            self.engine.backend.cache.bound(most, self.fit.page, self.fit.state // STATES)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The file's own template, None if it has none."""
        source = self.file.metadata.string("tokenizer.chat_template", None)
        return ChatTemplate(source) if source else None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens as grammars need them. Raises QwenError without the package for that."""
        from .text.grammar.constraints import Vocabulary

        return Vocabulary(self.tokenizer)

    def sampling(self, **chosen: Any) -> SamplingParams:
        """Sampling with llama.cpp's defaults, the file's recommendations over them, and over both what is given and not None."""
        return SamplingParams.from_metadata(self.file.metadata, **chosen)

    def breakers(self, sampling: SamplingParams) -> Breakers:
        """The tokens that end repetitions for the DRY sampler, if it is used; looked up once, in the whole vocabulary."""
        texts = sampling.dry_sequence_breakers
        if not sampling.dry_multiplier or not texts:
            return {}
        found = self._breakers.get(texts)
        if found is None:
            from .sampling.breakers import find_breakers

            words = list(map(self.tokenizer.token_bytes, range(self.tokenizer.n_vocab)))
            found = self._breakers[texts] = find_breakers(texts, words, self.tokenizer.encode)
            for old in list(self._breakers)[:-MOST_BREAKERS]:  # a server's clients may name ever new ones
                self._breakers.pop(old, None)
        return found

    def load_session(
        self, path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Take a session's tokens, keys and values into the cache: a prompt that begins with them begins there. Raises QwenError."""
        from .engine.session import load

        session = load(path, self.engine.backend, self.engine.n_ctx, progress)
        self.engine.prefixes.keep(session.tokens, session.kv)

    def save_session(
        self, path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Write what was run last to a session, whole or not at all. Raises QwenError."""
        from .engine.session import save

        if self.engine.prefixes.kept:
            last = self.engine.prefixes.kept[-1]
            save(path, self.engine.backend, last.tokens, last.kv, progress)

    def stream(
        self, tokens: Sequence[int], max_tokens: int | None = None, sampling: SamplingParams | None = None
    ) -> Iterator[str]:
        """The text that continues `tokens`, piece by piece."""
        completion = Completion(self, tokens, sampling or self.sampling(), max_tokens)
        return completion.run()


class Completion:
    """One prompt and its answer.

    `stop` are strings that end the answer and are left out of it; with `ignore_eos` tokens that end an answer do not. `budget` ends the
    answer's thinking, `constraint` says what it may consist of. `on_step` is called after each step of the engine with how many of how
    many prompt tokens are done, `on_token` with the place of each of the answer's tokens. After `run`, `sequence` says why it stopped and
    how long it took.
    """

    def __init__(
        self,
        llm: LLM,
        tokens: Sequence[int],
        sampling: SamplingParams,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        on_step: Callable[[int, int], None] | None = None,
        on_token: Callable[[int], None] | None = None,
        budget: ReasoningBudget | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self._llm, self._stop, self._on_step, self._on_token, self._budget = (
            llm,
            stop,
            on_step,
            on_token,
            budget,
        )
        ends = frozenset[int]() if ignore_eos and not constraint else llm.tokenizer.eog_ids
        self.sequence = EngineSequence(
            list(tokens), sampling, max_tokens, ends, breakers=llm.breakers(sampling), constraint=constraint
        )

    def run(self) -> Generator[str, None, None]:
        """Generate, yielding text as soon as it can neither be half a character nor begin a stop string. Raises InputError, QwenError."""
        seq, engine = self.sequence, self._llm.engine
        text = AnswerText(self._llm, seq, self._stop, self._budget)
        engine.submit(seq)
        try:
            while True:
                while text.unread:
                    piece = text.next()
                    if self._on_token:
                        self._on_token(text.n_read - 1 - seq.n_prompt)
                    if piece:
                        yield piece
                if seq.stop_reason:
                    break
                engine.step()
                if self._on_step:
                    self._on_step(seq.n_prompt_done, seq.n_prompt)
            if rest := text.end():
                yield rest
        finally:
            engine.cancel(seq)

    def timings(self) -> dict[str, float]:
        """llama.cpp's names. The prompt's time includes the first token's sampling; `cached_n` of its tokens needed none."""
        seq = self.sequence
        prompt_n, predicted_n = seq.n_prompt - seq.n_cached, max(0, len(seq.generated) - 1)
        return {
            "cached_n": seq.n_cached,
            "prompt_n": prompt_n,
            "prompt_ms": 1e3 * seq.prompt_seconds,
            "prompt_per_second": prompt_n / seq.prompt_seconds if seq.prompt_seconds else 0.0,
            "predicted_n": len(seq.generated),
            "predicted_ms": 1e3 * seq.generation_seconds,
            "predicted_per_second": predicted_n / seq.generation_seconds if seq.generation_seconds else 0.0,
        }
