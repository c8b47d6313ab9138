"""A model file, opened and ready to answer: the entry for those who use qwencli as a library."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .backends.choose import choose_backend, make_backend, make_devices
from .backends.kv_cache import CacheTypes, KVSequence
from .backends.protocol import Batch, Segment
from .backends.threads import USUAL, Threads
from .engine.embedding import Embedding, check_reading, read_at_once
from .engine.engine import Engine, tokens_of_a_step
from .engine.fit import STATES, measure, measure_devices
from .errors import ContextFull, InputError, shown
from .gguf.file import GGUFFile
from .gguf.overrides import Scalar
from .network.config import POOLINGS
from .network.load import load_model
from .network.rope_options import AS_IN_FILE, RopeOptions
from .request.answer import RunningAnswer
from .request.ranking import Ranking
from .request.request import Request
from .sampling import Breakers, SamplingParams
from .system.locked import lock
from .system.memory import Meter
from .text.chat.template import ChatTemplate
from .text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .backends.scheduler.placement import Placement
    from .backends.scheduler.wishes import Wishes
    from .text.grammar.constraints import Vocabulary

MOST_BREAKERS = 16
"""Sets of texts that end DRY's repetitions, of which the tokens are kept."""

GRAPH, TOKENIZER, BACKEND = "graph", "tokenizer", "backend"
"""What is made of a file: Python's objects, and libraries' memory."""


class LLM:
    """A GGUF file with its tokenizer, its chat template and an engine that runs it.

        llm = LLM("model.gguf")
        print("".join(llm.stream(llm.tokenizer.encode("Once upon a time"), max_tokens=32)))

    `n_ctx` is how long a prompt and its answer may be together: by default as long as the model allows, or less where the free memory holds
    no more. An `n_ctx` that doesn't fit is an error; with `fit` the longest that fits is taken instead, and with `fit` False nothing is
    checked. `n_ubatch`, by default 512, is the most tokens of a step, and `n_batch` limits it further. `n_threads` is how many threads run
    a step, by default one a core; `threads` says where and how they run. `backend` is "cpu" for the compiled kernels, "numpy" for the slow
    reference, or "auto" for the first that can run the file. `cache_type_k` and `cache_type_v` are the types in which keys and values are
    kept: f16, the default, bf16, f32, q8_0 or q4_0. `devices` divides the layers among devices: their names, such as "cpu:0,cpu:1" (see
    backends/devices.py), or Wishes, which say more about who gets what. What a device has no kernels for is left to the next one that has.

    `mlock` keeps the weights in memory, as far as the system allows it. `overrides` are values of metadata keys that replace those of the
    file (gguf/overrides.py reads them from a text), and `rope` another rotation. With `check_tensors` all weights are looked through for
    NaN and infinity, and FormatError names the tensor that has one. With `generates` a model that reads texts but writes none is an error
    at once.

    `report` is called with a line where kernels have to be compiled, which happens once, or where the context is shorter than the model's;
    `progress` with how many of how many kernels are done. With `chat` the chat template's process is started first, so that it gets ready
    while the model loads. Raises QwenError.
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
        n_batch: int | None = None,
        devices: str | Wishes | None = None,
        n_ubatch: int | None = None,
        threads: Threads = USUAL,
        mlock: bool = False,
        overrides: Mapping[str, Scalar] | None = None,
        rope: RopeOptions = AS_IN_FILE,
        check_tensors: bool = False,
        generates: bool = False,
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name != "self"}
        n_step = tokens_of_a_step(n_batch, n_ubatch)
        self.meter = Meter()
        with self.meter.during(GRAPH):
            self.file = open_file(path, overrides, rope)
            if chat and self.chat_template:
                self.chat_template.start()
            self.model = load_model(self.file)
        if generates:
            self.model.check_generates()
        types = CacheTypes(cache_type_k, cache_type_v)
        self.placement = self._place(devices, backend, report)
        if self.placement:
            self.fit, own = measure_devices(self.model, self.placement, types, n_step)
        else:
            backend = choose_backend(backend, self.model, report)
            self.fit, own = measure(self.model, types, backend, n_step), []
        asked = n_ctx
        n_ctx = self.fit.choose(asked, fit, report)
        for part in own:
            n_ctx = replace(part, n_ctx=n_ctx).choose(asked and n_ctx, fit, report)
        if not use_mmap:  # read only now that it is known to fit
            self.file = open_file(path, overrides, rope, use_mmap)
            self.model = load_model(self.file)
        if check_tensors:
            from .gguf.validity import check_tensors as check

            check(self.file)
        if mlock and (why := lock(self.file.buffers)) and report:
            report(why)
        with self.meter.during(TOKENIZER):
            self.tokenizer = Tokenizer(self.file)
        for warning in (*self.model.warnings, *self.tokenizer.warnings):
            if report:
                report(f"warning: {warning}")
        self._breakers: dict[tuple[str, ...], Breakers] = {}
        with self.meter.during(BACKEND):
            made = (
                make_devices(self.placement, self.model, n_threads, report, progress, types, threads)
                if self.placement
                else make_backend(backend, self.model, n_threads, report, progress, types, threads)
            )
        self.engine = Engine(made, n_ctx, n_step, n_ctx)
        if fit is not False and (most := self.fit.for_sequences) is not None:
            self.engine.backend.cache.bound(most, self.fit.page, self.fit.state // STATES)

    def _place(
        self, devices: str | Wishes | None, backend: str, report: Callable[[str], None] | None
    ) -> Placement | None:
        """Where each node of the graph runs, None without devices. Raises InputError."""
        if devices is None:
            return None
        if backend != "auto":
            raise InputError(f"both devices and the backend {backend} are given: leave one of them out")
        from .backends.scheduler.placement import place
        from .backends.scheduler.wishes import read_wishes

        placement = place(self.model, read_wishes(devices) if isinstance(devices, str) else devices)
        if report:
            for line in placement.said:
                report(line)
        return placement

    def unload(self) -> None:
        """Give back the memory of weights and KV cache. What is known of the file stays, and so do the tokenizer and the templates.

        What still runs this way computes with the slow NumPy backend. Raises QwenError where the file is gone or damaged.
        """
        from .backends.numpy.backend import NumpyBackend

        file = open_file(self.file.path, self.file.replaced)
        model, old = load_model(file), self.engine
        self.file, self.model = file, model
        self.engine = Engine(NumpyBackend(model), old.n_ctx, old.n_batch)

    def again(self) -> LLM:
        """The same model, loaded again with the same options and a context of the same length. Raises QwenError."""
        same = {"n_ctx": self.engine.n_ctx, "fit": False if self._arguments["fit"] is False else None}
        silent = {"report": None, "progress": None, "chat": False}
        return LLM(**(self._arguments | same | silent))

    def values(
        self, tokens: Sequence[int], names: Sequence[str], feed: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The values of tensors, by their names in `qwencli graph`, when the model reads `tokens` as a new sequence: float32 arrays of the
        tensors' shapes, with logits for the last token.

        Tensors in `feed` aren't computed but used as they are. If these are all that is needed, no tokens are. What can be fetched and fed
        is said in backends/values.py. Raises InputError for tokens that aren't in the vocabulary or are too many, ModelError for a tensor
        that isn't in the graph or has no value, QwenError.
        """
        if len(tokens) > self.engine.n_ctx:
            raise ContextFull(f"there are {len(tokens)} tokens, more than the context of {self.engine.n_ctx}")
        sequence = KVSequence()
        try:
            batch = Batch([Segment(sequence, tokens, 1)]) if len(tokens) else None
            return self.engine.backend.run(names, batch, feed)
        finally:
            self.engine.release(sequence)

    def splits(self, n_tokens: int = 1) -> list[str]:
        """The splits of a step with that many tokens, a line each, in the way of GGML's debugging output; none if there is one device."""
        from .backends.scheduler.scheduler import Scheduler

        backend = self.engine.backend
        return backend.describe(n_tokens) if isinstance(backend, Scheduler) else []

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The file's own template, None if it has none."""
        source = self.file.metadata.string("tokenizer.chat_template", None)
        return ChatTemplate(source) if source else None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens as grammars need them. Raises QwenError where llguidance is not installed."""
        from .text.grammar.constraints import Vocabulary

        return Vocabulary(self.tokenizer)

    def sampling(self, **chosen: Any) -> SamplingParams:
        """Sampling as `chosen`, where that is not None, else as the file recommends, else by llama.cpp's defaults. Raises InputError."""
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

    @property
    def pooling(self) -> str:
        """How a text's vector is made unless one says otherwise: as the file says, or "last"."""
        return self.model.config.pooling or "last"

    @cached_property
    def ranking(self) -> Ranking:
        """How the model ranks texts. Raises InputError for a model that can't."""
        return Ranking(self.model, self.tokenizer)

    def embed(self, text: str | Sequence[int], pooling: str | None = None) -> NDArray[np.float32]:
        """A text, or its token ids, as a vector, float32 [n_embd], of whatever length.

        `pooling` says what it is made of: "mean" of all tokens' states, "cls" or "last" of the first or the last one's, by default as the
        file says. "none" makes no single vector of them: the states are returned, [n_tokens, n_embd]. Raises InputError for another
        pooling, ContextFull for a text that is too long, QwenError.
        """
        pooling = pooling or self.pooling
        if pooling == "rank":
            raise InputError(
                "this model ranks texts: use rank, or choose the pooling mean, cls, last or none"
            )
        if pooling not in POOLINGS:
            raise InputError(f"the pooling is {shown(pooling)}, expected one of {', '.join(POOLINGS)}")
        tokens = (
            self.tokenizer.encode(text, add_special=True, parse_special=True)
            if isinstance(text, str)
            else text
        )
        check_reading(self.engine, tokens)
        states = read_at_once(self.engine, Embedding(tokens, pooling))
        return states if pooling == "none" else states[0]

    def rank(self, query: str, documents: Sequence[str]) -> list[float]:
        """How well each document answers the query, in their order: the higher, the better.

        Raises InputError for a model that can't rank, ContextFull for texts that are too long, QwenError.
        """
        prompts = [self.ranking.prompt(query, document) for document in documents]
        for tokens in prompts:
            check_reading(self.engine, tokens)
        return [float(read_at_once(self.engine, self.ranking.reading(tokens))[0, 0]) for tokens in prompts]

    def load_session(
        self, path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Take a session's tokens, keys and values into the cache: a prompt that starts with them is computed from there on.

        Raises QwenError where the file cannot be read, is damaged, or belongs to another model.
        """
        from .engine.session import load

        session = load(path, self.engine.backend, self.engine.n_ctx, progress)
        self.engine.prefixes.keep(session.tokens, session.kv)

    def save_session(
        self, path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Write what was run last to a session, whole or not at all. Raises QwenError where the file cannot be written."""
        from .engine.session import save

        if self.engine.prefixes.kept:
            last = self.engine.prefixes.kept[-1]
            save(path, self.engine.backend, last.tokens, last.kv, progress)

    def begin(self, request: Request) -> RunningAnswer:
        """A new answer to a request, for `run` or for whoever steps the engine. Nothing is computed yet.

        Raises QwenError where the request's grammar cannot be followed.
        """
        return RunningAnswer(request, self.engine, self.tokenizer, self.breakers(request.sampling))

    def run(
        self,
        answer: RunningAnswer,
        on_step: Callable[[int, int], None] | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> Generator[str, None, None]:
        """Generate an answer, and yield its text as soon as it is certain. Closing the generator cancels it.

        `on_step` is called after each step of the engine with how many of how many prompt tokens are done, `on_token` with the place of
        each of the answer's tokens. Raises InputError, ContextFull for a prompt that cannot be run; QwenError where the answer fails.
        """
        seq = answer.sequence
        self.engine.submit(seq)
        try:
            while True:
                while answer.unread:
                    text = answer.next()
                    if on_token:
                        on_token(answer.n_read - 1)
                    if text:
                        yield text
                if seq.stop_reason:
                    break
                self.engine.step()
                if on_step:
                    on_step(seq.n_prompt_done, seq.n_prompt)
            if rest := answer.end():
                yield rest
        finally:
            self.engine.cancel(seq)

    def stream(
        self, tokens: Sequence[int], max_tokens: int | None = None, sampling: SamplingParams | None = None
    ) -> Iterator[str]:
        """The text that continues `tokens`, as it comes. Raises InputError, ContextFull, QwenError."""
        return self.run(self.begin(Request(tokens, sampling or self.sampling(), max_tokens)))


def open_file(
    path: str | os.PathLike[str],
    overrides: Mapping[str, Scalar] | None = None,
    rope: RopeOptions = AS_IN_FILE,
    use_mmap: bool = True,
) -> GGUFFile:
    """A file with other values of metadata. Raises QwenError."""
    file = GGUFFile(path, use_mmap)
    file.override(overrides or {})
    file.override(rope.overrides(file.metadata))
    return file
