"""The service: many requests on one engine, for asyncio. The answers to expect are those of the same requests alone."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from engine_runs import held

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.kv_cache import PAGE, KVSequence
from qwencli.backends.protocol import HIDDEN, Batch, Segment
from qwencli.errors import ContextFull, InputError, QwenError
from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.request.request import Request
from qwencli.sampling import SamplingParams
from qwencli.server.service.generation import Busy, Generation
from qwencli.server.service.service import Service

GREEDY = SamplingParams(temp=0)
PROMPTS = ["Once upon a time", "One day a", "The little boy", "In a forest there was", "She said"]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(EMBEDDED)


def tokens_of(llm: LLM, text: str) -> list[int]:
    return llm.tokenizer.encode(text)


def alone(llm: LLM, text: str, sampling: SamplingParams, n: int, stop: tuple[str, ...] = ()) -> str:
    while llm.engine.prefixes.make_room():
        pass
    request = Request(tokens_of(llm, text), sampling, n, stop, ignore_eos=True)
    return "".join(llm.run(llm.begin(request)))


def serve(llm: LLM, work: Callable[[Service], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    """Run `work` on a service that is ended afterwards; nothing may be left over."""

    async def main() -> Any:
        service = Service(llm, **options)
        service.start()
        try:
            return await asyncio.wait_for(work(service), 120)
        finally:
            await service.stop(grace=0)
            assert llm.engine.running == []
            assert [slot.generation for slot in service.slots()] == [None] * service.n_slots

    return asyncio.run(main())


async def runs(generation: Generation) -> None:
    """Wait until it has a slot."""
    while generation.slot is None:
        await asyncio.sleep(0.001)


async def text_of(generation: Generation) -> str:
    return "".join([piece.text async for piece in generation])


def test_requests_at_once_get_the_answers_that_each_gets_alone(llm: LLM) -> None:
    """More than there are slots, greedy and drawn; nobody else changes a bit."""
    drawn = (
        SamplingParams(seed=3, temp=1.2),
        SamplingParams(seed=4, xtc_probability=0.5),
        SamplingParams(seed=5, top_k=0),
    )
    params = [GREEDY, *drawn, GREEDY]
    expected = [alone(llm, text, sampling, 30) for text, sampling in zip(PROMPTS, params)]

    async def work(service: Service) -> list[str]:
        requests = [
            Request(tokens_of(llm, text), sampling, 30, ignore_eos=True)
            for text, sampling in zip(PROMPTS, params)
        ]
        return await asyncio.gather(*(text_of(service.generate(request)) for request in requests))

    assert serve(llm, work, n_slots=2) == expected


def test_pieces_name_their_tokens(llm: LLM) -> None:
    async def work(service: Service) -> tuple[list[Any], list[int]]:
        generation = service.generate(Request(tokens_of(llm, PROMPTS[0]), GREEDY, 20, ignore_eos=True))
        return [piece async for piece in generation], generation.sequence.generated

    pieces, generated = serve(llm, work)
    assert [token for piece in pieces for token in piece.tokens] == generated
    assert len(generated) == 20
    assert len(pieces) > 10


def test_stop_strings(llm: LLM) -> None:
    whole = alone(llm, PROMPTS[0], GREEDY, 40)
    stop = whole[30:36]
    expected = alone(llm, PROMPTS[0], GREEDY, 40, (stop,))

    async def work(service: Service) -> tuple[str, str | None, str]:
        generation = service.generate(
            Request(tokens_of(llm, PROMPTS[0]), GREEDY, 40, (stop, "never this"), ignore_eos=True)
        )
        return await text_of(generation), generation.sequence.stop_reason, generation.answer.stop_word

    assert serve(llm, work) == (expected, "stop", stop)


def test_a_full_queue_is_an_error_that_says_when_to_come_again(llm: LLM) -> None:
    async def work(service: Service) -> list[str]:
        request = Request(tokens_of(llm, PROMPTS[0]), GREEDY, 20, ignore_eos=True)
        with held(llm.engine):
            taken = [service.generate(request)]
            await runs(taken[0])
            taken += [service.generate(request) for _ in range(2)]
            assert service.n_waiting == 2
            with pytest.raises(Busy, match="2 requests are waiting already") as caught:
                service.generate(request)
        assert caught.value.retry_after >= 1
        return await asyncio.gather(*map(text_of, taken))

    expected = alone(llm, PROMPTS[0], GREEDY, 20)
    assert serve(llm, work, n_slots=1, n_queue=2) == [expected] * 3


def test_a_request_on_its_way_to_a_slot_is_not_forgotten(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a place, and an end with grace waits for it."""
    submit, reached, go = llm.engine.submit, threading.Event(), threading.Event()

    def slow(seq: Any) -> None:
        reached.set()
        go.wait(60)
        submit(seq)

    async def work(service: Service) -> str:
        request = Request(tokens_of(llm, PROMPTS[0]), GREEDY, 10, ignore_eos=True)
        generation = service.generate(request)
        await asyncio.to_thread(reached.wait, 60)
        with pytest.raises(Busy):
            service.generate(request)
        ending = asyncio.create_task(service.stop(grace=60))
        await asyncio.sleep(0.1)
        go.set()
        text = await text_of(generation)
        await ending
        return text

    expected = alone(llm, PROMPTS[0], GREEDY, 10)
    monkeypatch.setattr(llm.engine, "submit", slow)
    assert serve(llm, work, n_slots=1, n_queue=0) == expected


@pytest.mark.parametrize("when", ["waiting", "prompt", "answer"])
def test_a_cancelled_request_frees_its_slot_within_a_step(llm: LLM, when: str) -> None:
    async def work(service: Service) -> str:
        long = Request(tokens_of(llm, PROMPTS[0] * 40), GREEDY, 800, ignore_eos=True)
        with held(llm.engine, n_tokens=int(when == "answer")):
            generation = service.generate(long)
            if when == "waiting":
                generation = service.generate(long)
            elif when == "answer":
                await generation.__anext__()
            generation.cancel()
            generation.cancel()
        async for _ in generation:
            pass
        assert generation.sequence.stop_reason == "cancelled"
        assert len(generation.sequence.generated) <= {"waiting": 0, "prompt": 1, "answer": 2}[when]
        for slot in service.slots():
            if slot.generation:
                slot.generation.cancel()
        return await text_of(
            service.generate(Request(tokens_of(llm, PROMPTS[1]), GREEDY, 10, ignore_eos=True))
        )

    expected = alone(llm, PROMPTS[1], GREEDY, 10)
    assert serve(llm, work, n_slots=1) == expected


def test_a_second_turn_computes_only_what_is_new(llm: LLM) -> None:
    async def work(service: Service) -> tuple[int, int]:
        first = service.generate(Request(tokens_of(llm, PROMPTS[0]) * 20, GREEDY, 10, ignore_eos=True))
        await text_of(first)
        second = service.generate(
            Request([*first.sequence.tokens, *tokens_of(llm, " and")], GREEDY, 10, ignore_eos=True)
        )
        await text_of(second)
        return second.sequence.n_cached, len(first.sequence.tokens)

    while llm.engine.prefixes.make_room():
        pass
    cached, n = serve(llm, work)
    assert cached == n - 1  # the last token was chosen, but nothing was computed of it


def test_what_can_never_run_is_refused_at_once(llm: LLM) -> None:
    async def work(service: Service) -> None:
        for tokens, error in ([], InputError), ([10**7], InputError), ([1] * 5000, ContextFull):
            with pytest.raises(error):
                service.generate(Request(tokens, GREEDY))

    serve(llm, work)


def test_a_step_that_fails_ends_its_requests_and_nothing_else(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(service: Service) -> str:
        sample = CPUBackend.sample

        def fail(self: CPUBackend, *args: Any) -> Any:
            monkeypatch.setattr(CPUBackend, "sample", sample)
            raise ValueError("/a/path/of/the/machine")

        monkeypatch.setattr(CPUBackend, "sample", fail)
        with pytest.raises(QwenError, match=r"^ValueError in a step$"):
            await text_of(service.generate(Request(tokens_of(llm, PROMPTS[0]), GREEDY, 10)))
        return await text_of(
            service.generate(Request(tokens_of(llm, PROMPTS[0]), GREEDY, 10, ignore_eos=True))
        )

    expected = alone(llm, PROMPTS[0], GREEDY, 10)
    assert serve(llm, work) == expected


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_are_the_final_norms_output(llm: LLM, pooling: str) -> None:
    """Of a text longer than a step, while an answer is running."""
    tokens = tokens_of(llm, "a story of a boy " * 150)
    assert len(tokens) > 512
    hidden = CPUBackend(llm.model).run([HIDDEN], Batch([Segment(KVSequence(), tokens, len(tokens))]))[HIDDEN]
    expected = hidden[-1] if pooling == "last" else hidden.mean(axis=0)

    async def work(service: Service) -> Any:
        answer = asyncio.create_task(
            text_of(service.generate(Request(tokens_of(llm, PROMPTS[0]), GREEDY, 30, ignore_eos=True)))
        )
        found = await service.embed(tokens)
        await answer
        return found

    [found] = serve(llm, work, pooling=pooling)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    while llm.engine.prefixes.make_room():
        pass
    cache, all_of_it = llm.engine.backend.cache, KVSequence()
    cache.reserve(all_of_it, cache.n_pages * PAGE)
    assert sorted(all_of_it.pages) == list(range(cache.n_pages)), "pages were lost, or freed twice"
    cache.release(all_of_it)


def test_stopping_lets_running_requests_finish_and_takes_no_more(llm: LLM) -> None:
    async def main() -> tuple[str, str]:
        service = Service(llm, n_slots=1)
        service.start()
        first, waiting = (
            service.generate(Request(tokens_of(llm, text), GREEDY, 20, ignore_eos=True))
            for text in PROMPTS[:2]
        )
        ending = asyncio.create_task(service.stop(grace=30))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="shutting down"):
            service.generate(Request(tokens_of(llm, PROMPTS[0]), GREEDY, 20))
        texts = await asyncio.gather(text_of(first), text_of(waiting))
        await ending
        return texts[0], texts[1]

    expected = tuple(alone(llm, text, GREEDY, 20) for text in PROMPTS[:2])
    assert asyncio.run(main()) == expected


def test_what_does_not_finish_in_time_fails(llm: LLM) -> None:
    async def main() -> None:
        service = Service(llm, n_slots=1)
        service.start()
        with held(llm.engine, n_tokens=1):
            generation = service.generate(Request(tokens_of(llm, PROMPTS[0]), GREEDY, 900, ignore_eos=True))
            await generation.__anext__()
            ending = asyncio.create_task(service.stop(grace=0))
            await asyncio.sleep(0)  # it has begun
        await ending
        with pytest.raises(QwenError, match="shutting down"):
            await text_of(generation)

    asyncio.run(main())
    assert llm.engine.running == []


def test_no_more_than_the_queue_holds_wait_however_fast_they_come(llm: LLM) -> None:
    async def work(service: Service) -> None:
        request = Request(tokens_of(llm, PROMPTS[0]), GREEDY, 10, ignore_eos=True)
        with held(llm.engine):  # so that none is done before the last has come
            taken = [service.generate(request) for _ in range(3)]
            with pytest.raises(Busy):
                service.generate(request)
        await asyncio.gather(*map(text_of, taken))

    serve(llm, work, n_slots=1, n_queue=2)


def test_an_embedding_that_nobody_waits_for_is_not_made(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    n_runs, run, go = 0, CPUBackend.run, threading.Event()

    def held_run(*args: Any) -> Any:
        nonlocal n_runs
        n_runs += 1
        go.wait(60)
        return run(*args)

    monkeypatch.setattr(CPUBackend, "run", held_run)

    async def work(service: Service) -> None:
        tokens = tokens_of(llm, PROMPTS[0])
        jobs = [asyncio.ensure_future(service.embed(tokens)) for _ in range(2)]
        await asyncio.sleep(0)  # both are in the queue
        jobs[1].cancel()
        go.set()
        assert (await jobs[0]).shape == (1, llm.model.config.n_embd)
        await service.embed(tokens)

    serve(llm, work)
    assert n_runs == 2
