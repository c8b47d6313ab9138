"""More clients for scripts/load_server.py: those of Anthropic's and Ollama's APIs and of all that doesn't generate text for itself.

Whatever API is asked, the greedy answer to a question is the one that it gives while nothing else runs. What the server doesn't have, or
can't do with its model, is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from load_clients import BUSY, CHECKS, LEFT, Client, Connection, Handler, Response, Tally, check, check_error

QUESTIONS = ["What is the capital of France?", "Hello! Who are you?", "Tell me about a dog."]
SAME_TOKENS = 40
TEXTS = ["a king sat on the hill", "a little dog", "once upon a time " * 20]
TOOL = {
    "name": "weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
MESSAGES, CHAT, GENERATE, RESPONSES = "/v1/messages", "/api/chat", "/api/generate", "/v1/responses"
OPENAI = "/v1/chat/completions"
Object = dict[str, Any]


def named_events(answer: Response) -> list[Any]:
    """The data of events that have names, which have to be the data's types."""
    check(answer.headers["content-type"].startswith("text/event-stream"), "no event stream")
    found = []
    for part in filter(None, answer.body.decode().split("\n\n")):
        if part.startswith(":"):
            continue
        name, _, data = part.partition("\ndata: ")
        found.append(json.loads(data))
        check(name == f"event: {found[-1]['type']}", f"an event with the name {name!r}")
    return found


def check_message(body: Object, answer: Response) -> str:
    """The text of a message of Anthropic's. Raises Wrong if it isn't complete."""
    if body.get("stream"):
        found = [event for event in named_events(answer) if event["type"] != "ping"]
        kinds = [event["type"] for event in found]
        check(kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"], f"{kinds}")
        check(kinds.count("content_block_start") == kinds.count("content_block_stop"), f"{kinds}")
        deltas = [event["delta"] for event in found if event["type"] == "content_block_delta"]
        text = "".join(delta.get("text", "") for delta in deltas)
        inputs = "".join(delta.get("partial_json", "") for delta in deltas)
        ended, usage = found[-2]["delta"], found[-2]["usage"]
        n_calls = sum(event.get("content_block", {}).get("type") == "tool_use" for event in found)
    else:
        whole = answer.json()
        text = "".join(block.get("text", "") for block in whole["content"])
        calls = [block["input"] for block in whole["content"] if block["type"] == "tool_use"]
        ended, usage, inputs, n_calls = whole, whole["usage"], "".join(map(json.dumps, calls)), len(calls)
    n, reason = usage["output_tokens"], ended["stop_reason"]
    check(n <= body["max_tokens"], f"{n} tokens of {body['max_tokens']}")
    check(reason != "max_tokens" or n == body["max_tokens"], f"ended as {reason} after {n} tokens")
    check((reason == "tool_use") <= (n_calls > 0), f"ended as {reason} with {n_calls} calls")
    if body.get("tool_choice") and reason == "tool_use":
        check(json.loads(inputs)["city"] in ("Paris", "Rome"), f"called with {inputs}")
    return text


def lines(answer: Response) -> list[Any]:
    check(answer.headers["content-type"] == "application/x-ndjson", "no lines of JSON")
    return [json.loads(line) for line in answer.body.splitlines()]


def check_ollama(body: Object, answer: Response) -> str:
    """The text of an answer of Ollama's. Raises Wrong if it isn't complete."""
    found = [answer.json()] if body.get("stream") is False else lines(answer)
    check([part["done"] for part in found] == [False] * (len(found) - 1) + [True], f"not done: {found[-1]}")
    n, most = found[-1]["eval_count"], body["options"]["num_predict"]
    check(n <= most, f"{n} tokens of {most}")
    check(found[-1]["done_reason"] != "length" or n == most, f"{n} tokens of {most}")
    return "".join(part["message"]["content"] if "message" in part else part["response"] for part in found)


def check_response(body: Object, answer: Response) -> str:
    """The text of a response of OpenAI's newer API. Raises Wrong if it isn't complete."""
    whole = named_events(answer)[-1]["response"] if body.get("stream") else answer.json()
    check(whole["status"] in ("completed", "incomplete"), f"status {whole['status']}")
    check(whole["usage"]["output_tokens"] <= body["max_output_tokens"], f"{whole['usage']}")
    parts = [part for item in whole["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


CHECKS.update(
    {MESSAGES: check_message, CHAT: check_ollama, GENERATE: check_ollama, RESPONSES: check_response}
)
LEFT.extend([MESSAGES, CHAT, GENERATE])


def asked(path: str, question: str, n: int, stream: bool) -> Object:
    """A question that is answered greedily and without thinking."""
    messages = [{"role": "user", "content": question}]
    no_thinking = {"chat_template_kwargs": {"enable_thinking": False}}
    options = {"temperature": 0, "num_predict": n}
    bodies: dict[str, Object] = {
        OPENAI: {"messages": messages, "max_tokens": n, "temperature": 0, **no_thinking},
        MESSAGES: {"model": "any", "messages": messages, "max_tokens": n, "temperature": 0},
        CHAT: {"model": "any", "messages": messages, "options": options, "think": False},
        GENERATE: {"model": "any", "prompt": question, "options": options, "think": False},
        RESPONSES: {
            "model": "any",
            "input": question,
            "max_output_tokens": n,
            "temperature": 0,
            **no_thinking,
        },
    }
    more = {"stream_options": {"include_usage": True}} if path == OPENAI and stream else {}
    return bodies[path] | {"stream": stream} | more


async def alike(client: Client) -> None:
    """Greedy answers are the same in all APIs, whatever else is running."""
    r = client.random
    path = r.choice([path for path in (OPENAI, MESSAGES, CHAT, GENERATE, RESPONSES) if client.has(path)])
    question = r.choice(QUESTIONS)
    found = await client.post(path, asked(path, question, SAME_TOKENS, r.random() < 0.5))
    if found is not None:
        expected = client.tally.same[question]
        check(found == expected, f"{path}: {found!r}, alone it was {expected!r}")


async def message(client: Client) -> None:
    """Several turns of Anthropic's on one connection, with tools and thinking at times."""
    r = client.random
    messages: list[Object] = []
    more: Object = r.choice(
        [
            {},
            {"thinking": {"type": "enabled", "budget_tokens": 20}},
            {"tools": [TOOL], "tool_choice": {"type": "any"}},
            {"tools": [TOOL]},
            {"stop_sequences": [" the", "."], "top_k": 5},
            {"system": [{"type": "text", "text": client.words(50), "cache_control": {"type": "ephemeral"}}]},
        ]
    )
    async with Connection(client.port) as connection:
        for _ in range(r.randint(1, 3)):
            messages.append({"role": "user", "content": [{"type": "text", "text": client.words(60)}]})
            body = {"model": "any", "max_tokens": r.randint(1, 60), "messages": messages, **more}
            text = await client.post(MESSAGES, body | {"stream": r.random() < 0.5}, connection)
            if text is None:
                return
            messages.append({"role": "assistant", "content": text or "..."})


async def ollama(client: Client) -> None:
    """Chats and prompts of Ollama's, which stream unless told otherwise."""
    r = client.random
    options = {"num_predict": r.randint(1, 60), "seed": r.getrandbits(30), "temperature": r.uniform(0, 2)}
    body: Object = {
        "model": "any",
        "options": options,
        **r.choice([{}, {"think": False}, {"format": "json"}]),
    }
    if r.random() < 0.5:
        body["stream"] = False
    if r.random() < 0.5:
        await client.post(CHAT, body | {"messages": [{"role": "user", "content": client.words(60)}]})
    else:
        await client.post(GENERATE, body | {"prompt": client.words(60), "raw": r.random() < 0.3})


VECTORS: dict[str, Callable[[str], Object]] = {
    "/v1/embeddings": lambda text: {"input": text},
    "/embedding": lambda text: {"content": text},
    "/api/embed": lambda text: {"model": "any", "input": text},
}


async def plain(client: Client, path: str, body: Object, refused: Collection[int] = ()) -> Any:
    """The JSON of an answer that comes as a whole; None if the server was busy, or can't do it and says so."""
    answer = await client.ask("POST", path, json.dumps(body).encode())
    if answer.status != 200:
        client.count(check_error(path, answer, {*BUSY, *refused}))
        return None
    client.count("answered")
    return answer.json()


async def vectors(client: Client) -> None:
    """A text's vector is the same each time."""
    path, text = client.random.choice([*VECTORS]), client.random.choice(TEXTS)
    found = await plain(client, path, VECTORS[path](text))
    if found is not None:
        for name in "model", "total_duration":
            if isinstance(found, dict):
                found.pop(name, None)
        expected = client.tally.same.setdefault(f"{path} {text}", json.dumps(found))
        check(json.dumps(found) == expected, f"{path}: another vector")


async def counts(client: Client) -> None:
    """Texts become tokens and text again; the tokens of a prompt are counted."""
    text = client.words(200)
    found = await plain(client, "/tokenize", {"content": text})
    back = await plain(client, "/detokenize", found)
    check(back["content"] == text, f"{text!r} became {back['content']!r}")
    body = asked(MESSAGES, client.random.choice(QUESTIONS), 1, False)
    n = (await plain(client, MESSAGES + "/count_tokens", body))["input_tokens"]
    check(10 < n < 40, f"{n} tokens")


async def filled(client: Client) -> None:
    """/infill and /rerank, where the server has them; the model may not."""
    choices: list[tuple[str, Object]] = [
        ("/infill", {"input_prefix": "def add(", "input_suffix": "return", "n_predict": 10}),
        ("/v1/rerank", {"query": client.words(10), "documents": [client.words(30) for _ in range(4)]}),
    ]
    path, body = client.random.choice(choices)
    if client.has(path):
        await plain(client, path, body, {400, 501})


KINDS: dict[Handler, float] = {alike: 15, message: 12, ollama: 10, vectors: 6, counts: 6, filled: 3}


async def first_answers(port: int, tally: Tally) -> None:
    """Which paths there are, and the answers that `alike` has to get, while nothing else is running."""
    client = Client(port, -2, tally, 0)
    client.kind = "alike"
    for path in OPENAI, MESSAGES, CHAT, GENERATE, RESPONSES, "/infill", "/v1/rerank":
        if (await client.ask("POST", path, b"[]")).status != 404:
            tally.paths.add(path)
    for question in QUESTIONS:
        found = await client.post(OPENAI, asked(OPENAI, question, SAME_TOKENS, False))
        check(found, "no answer at the start")
        tally.same[question] = found or ""
