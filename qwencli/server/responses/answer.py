"""Answers of OpenAI's responses: event by event, or as one response."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from ...errors import QwenError
from ...request.timings import timings
from ...text.chat.answers import Event, Reasoning, ToolCall
from ...text.tokenizer import Tokenizer
from ..http.errors import QUEUE_FULL, api_error
from ..service.generation import TextPart
from ..shared.chat import ChatAnswer
from ..shared.logprobs import token_reports
from ..shared.progress import prompt_progress

Object = dict[str, Any]
COMPLETED = "eos", "stop", "cancelled"
"""Why an answer that is complete ended. All others are incomplete: they have used up their tokens, or the context."""


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(24)}"


class Output:
    """The items of an answer, each begun, gone on with and ended in turn. `items` is the list of them so far."""

    def __init__(self) -> None:
        self._open: type[Event] | None = None
        self._texts: list[str] = []
        self._logprobs: list[Object] = []
        self.items: list[Object] = []

    def add(self, event: Event, logprobs: list[Object]) -> Iterator[Object]:
        """What a stream says of a piece of the answer. `logprobs`: of the tokens that brought it, where that is text."""
        if isinstance(event, ToolCall):
            yield from self.end("completed")
            yield from self._call(event)
            return
        if type(event) is not self._open:
            yield from self.end("completed")
            yield from self._begin(type(event))
        self._texts.append(event.text)
        if isinstance(event, Reasoning):
            yield self._of_part("response.reasoning_text.delta", delta=event.text)
        else:
            self._logprobs += logprobs
            yield self._of_part("response.output_text.delta", delta=event.text, logprobs=logprobs)

    def end(self, status: str) -> Iterator[Object]:
        """What it says at the end of the item that is open, if one is."""
        if self._open is None:
            return
        text, item = "".join(self._texts), self.items[-1]
        if self._open is Reasoning:
            yield self._of_part("response.reasoning_text.done", text=text)
        else:
            yield self._of_part("response.output_text.done", text=text, logprobs=self._logprobs)
        part = self._part(text)
        yield self._of_part("response.content_part.done", part=part)
        item |= {"status": status, "content": [part]}
        self._open, self._texts, self._logprobs = None, [], []
        yield self._of_item("response.output_item.done", item=item)

    def _begin(self, kind: type[Event]) -> Iterator[Object]:
        self._open = kind
        item: Object
        if kind is Reasoning:
            item = {"id": new_id("rs"), "type": "reasoning", "summary": [], "encrypted_content": None}
        else:
            item = {"id": new_id("msg"), "type": "message", "role": "assistant"}
        self.items.append(item | {"status": "in_progress", "content": []})
        yield self._of_item("response.output_item.added", item={**self.items[-1]})
        yield self._of_part("response.content_part.added", part=self._part(""))

    def _part(self, text: str) -> Object:
        if self._open is Reasoning:
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs}

    def _call(self, call: ToolCall) -> Iterator[Object]:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        item = {"id": new_id("fc"), "type": "function_call", "call_id": new_id("call"), "name": call.name}
        self.items.append(item | {"status": "completed", "arguments": arguments})
        about = {"item_id": item["id"]}
        begun = item | {"status": "in_progress", "arguments": ""}
        yield self._of_item("response.output_item.added", item=begun)
        yield self._of_item("response.function_call_arguments.delta", **about, delta=arguments)
        done = {"name": call.name, "arguments": arguments}
        yield self._of_item("response.function_call_arguments.done", **about, **done)
        yield self._of_item("response.output_item.done", item=self.items[-1])

    def _of_item(self, kind: str, **fields: Any) -> Object:
        return {"type": kind, "output_index": len(self.items) - 1, **fields}

    def _of_part(self, kind: str, **fields: Any) -> Object:
        return self._of_item(kind, item_id=self.items[-1]["id"], content_index=0, **fields)


class Answer:
    """An answer while it comes. `about` is what its response repeats of the request, and `keep` takes the response at its end."""

    def __init__(
        self,
        id: str,
        about: Object,
        answer: ChatAnswer,
        tokenizer: Tokenizer,
        n_top: int | None,
        with_timings: bool,
        keep: Callable[[Object], None],
    ) -> None:
        self._answer, self._generation, self._tokenizer = answer, answer.generation, tokenizer
        self._n_top, self._with_timings, self._keep = n_top, with_timings, keep
        self._output = Output()
        self._n_read = 0
        self._n_thought: int | None = None
        """Tokens up to where the answer proper began, None before."""
        self._thinks = False
        self._reports: list[Object] = []
        self._common = {"id": id, "object": "response", "created_at": int(time.time()), **about}

    async def events(self) -> AsyncIterator[Object]:
        """The events of a stream, numbered. A failure is the last of them."""
        n = 0
        async for event in self._all_events():
            yield event | {"sequence_number": n}
            n += 1

    async def _all_events(self) -> AsyncIterator[Object]:
        begun = self._response("in_progress", [])
        yield {"type": "response.created", "response": begun}
        yield {"type": "response.in_progress", "response": begun}
        try:
            async for part in self._generation:
                if progress := prompt_progress(self._generation.sequence, part):
                    yield {"type": "response.in_progress", "response": begun, "prompt_progress": progress}
                    continue
                for event in self._add(part):
                    yield event
        except QwenError as error:
            for event in self._output.end("incomplete"):
                yield event
            failed = self._response("failed", self._output.items) | {"error": error_of(error)}
            yield {"type": "response.failed", "response": failed}
            return
        for event in self._end():
            yield event
        response = self._ended()
        costs = {"timings": timings(self._generation.sequence)}
        yield {"type": f"response.{response['status']}", "response": response, **costs}

    async def whole(self) -> Object:
        """All in one. Raises QwenError."""
        async for part in self._generation:
            for _ in self._add(part):
                pass
        for _ in self._end():
            pass
        return self._ended() | {"timings": timings(self._generation.sequence)}

    def _add(self, part: TextPart) -> Iterator[Object]:
        before = self._n_read
        self._n_read += len(part.tokens)
        if self._n_top is not None:
            places = range(before, self._n_read)
            found = token_reports(self._tokenizer, self._generation.sequence, places, self._n_top)
            self._reports += map(shown_report, found)
        yield from self._told(self._answer.add(part), before)

    def _end(self) -> Iterator[Object]:
        yield from self._told(self._answer.end(), self._n_read)
        yield from self._output.end(self._status)

    def _told(self, events: list[Event], n_before: int) -> Iterator[Object]:
        for event in events:
            if isinstance(event, Reasoning):
                self._thinks = True
            elif self._n_thought is None:
                self._n_thought = n_before
            reports, self._reports = self._reports, []
            for said in self._output.add(event, reports):
                if self._with_timings and said["type"].endswith(".delta"):
                    said["timings"] = timings(self._generation.sequence)
                yield said

    @property
    def _status(self) -> str:
        return "completed" if self._generation.sequence.stop_reason in COMPLETED else "incomplete"

    def _ended(self) -> Object:
        status = self._status
        response = self._response(status, self._output.items)
        response |= {"completed_at": int(time.time()) if status == "completed" else None}
        response |= {"usage": self._usage()}
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        self._keep(response)
        return response

    def _response(self, status: str, output: list[Object]) -> Object:
        nothing = {"error": None, "incomplete_details": None, "usage": None, "completed_at": None}
        return {**self._common, "status": status, "background": False, "output": output, **nothing}

    def _usage(self) -> Object:
        """Tokens. Thinking has those up to where the answer proper begins, the tags among them."""
        seq = self._generation.sequence
        n_answer = len(seq.generated)
        n_thought = n_answer if self._n_thought is None else self._n_thought
        return {
            "input_tokens": seq.n_prompt,
            "input_tokens_details": {"cached_tokens": seq.n_cached, "cache_write_tokens": 0},
            "output_tokens": n_answer,
            "output_tokens_details": {"reasoning_tokens": n_thought if self._thinks else 0},
            "total_tokens": seq.n_prompt + n_answer,
        }


def shown_report(report: Object) -> Object:
    """A token's logprob in OpenAI's form, which has no ids."""
    top = [{name: each[name] for name in ("token", "bytes", "logprob")} for each in report["top_logprobs"]]
    return {name: report[name] for name in ("token", "bytes", "logprob")} | {"top_logprobs": top}


def error_of(error: QwenError) -> Object:
    """What a response says of its failure."""
    known = api_error(error)
    return {
        "code": "rate_limit_exceeded" if known.code == QUEUE_FULL else "server_error",
        "message": str(known),
    }
