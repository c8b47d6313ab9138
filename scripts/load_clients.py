"""Clients for scripts/load_server.py: they send ordinary requests, leave in the middle, dawdle, and send nonsense.

Every request ends as "answered" (complete), "refused" (with the right status, in the API's format), "busy" (429 or 503, with the time to
wait; then an ordinary request is sent again), "left" (by the client) or, if it is none of these, "wrong". They use plain sockets, since
HTTP clients hide what a server does to a connection.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

TEXT = "once upon a time there was a little girl who liked to play in the park with her dog and a big red ball and her mom was very happy"
WORDS = TEXT.split()
SAME = ["Once upon a time", "The little dog", "Her mom said", "One day a boy", "In the big forest there was"]
"""Prompts whose greedy answers have to be the same, whatever else is running."""
SAME_TOKENS = 24
N_CTX = 1024
LONGEST = 90.0
"""How many seconds a request may take, including the time in the queue."""
Handler = Callable[["Client"], Awaitable[None]]


class Wrong(Exception):
    """Something happened that must not happen."""


class Gone(Wrong):
    """The server closed the connection before its answer was complete."""


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Tally:
    """The outcomes of all requests. `seen` has the status of each by its id, None if the client left."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    seen: dict[str, int | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    same: dict[str, str] = field(default_factory=dict)
    """The answers that greedy requests have to get, by what was asked."""
    paths: set[str] = field(default_factory=set)
    """Those of load_apis.py that the server has."""
    cached: int = 0
    seconds: list[float] = field(default_factory=list)


class Connection:
    """HTTP/1.1, as little of it as needed."""

    def __init__(self, port: int, buffer: int | None = None) -> None:
        self._port, self._buffer = port, buffer

    async def __aenter__(self) -> Connection:
        s = socket.socket()
        if self._buffer:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
        s.setblocking(False)
        await asyncio.get_running_loop().sock_connect(s, ("127.0.0.1", self._port))
        self.reader, self.writer = await asyncio.open_connection(sock=s, limit=self._buffer or 1 << 16)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Leave abruptly: RST instead of FIN."""
        s = self.writer.get_extra_info("socket")
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def send(self, method: str, path: str, body: bytes, id: str) -> None:
        self.writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {id}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        return int(lines[0].split(" ")[1]), {
            n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:] if line)
        }

    async def answer(self, method: str = "POST", pause: float = 0) -> Response:
        """The whole answer, read with a `pause` after every few bytes. Raises Gone if the connection is closed before."""
        try:
            status, headers = await self.head()
            body = bytearray()
            if method != "HEAD" and "content-length" in headers:
                body += await self.reader.readexactly(int(headers["content-length"]))
            elif method != "HEAD":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += await self.reader.readexactly(size)
                    await self.reader.readexactly(2)
                    await asyncio.sleep(pause)
                await self.reader.readexactly(2)
            return Response(status, headers, bytes(body))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Gone(f"closed before the answer was complete ({type(error).__name__})") from None


def check(true: object, what: str) -> None:
    if not true:
        raise Wrong(what)


BUSY = {429, 503}
ERROR_FIELDS = {
    "/v1/messages": {"message", "type"},
    "/v1/": {"message", "type", "param", "code"},
    "/api/": {"message"},
    "/": {"code", "message", "type"},
}
"""By how a path begins; the first that fits counts."""


def check_error(path: str, answer: Response, expected: set[int]) -> str:
    """ "busy" or "refused". Raises Wrong if the answer isn't an expected error in the API's format."""
    check(
        answer.status in expected,
        f"status {answer.status}, expected {sorted(expected)}: {answer.body[:200]!r}",
    )
    check(
        "/home/" not in answer.body.decode() and "Traceback" not in answer.body.decode(),
        f"{answer.body[:200]!r}",
    )
    error = answer.json()["error"]
    if path.startswith("/api/"):
        error = {"message": error}
    check(isinstance(error["message"], str) and error["message"], "no message")
    check(
        "Traceback" not in error["message"] and len(error["message"]) < 1000,
        f"message {error['message'][:200]}",
    )
    api = next(prefix for prefix in ERROR_FIELDS if path.startswith(prefix))
    check(error.keys() >= ERROR_FIELDS[api], f"fields {sorted(error)}")
    check(api != "/" or error["code"] == answer.status, f"code {error.get('code')}")
    check(api != "/v1/messages" or answer.json()["type"] == "error", "no error of Anthropic's")
    if answer.status in BUSY:
        check(int(answer.headers.get("retry-after", 0)) >= 1, "no Retry-After")
    return "busy" if answer.status in BUSY else "refused"


def events(answer: Response) -> list[Any]:
    check(
        answer.headers["content-type"].startswith("text/event-stream"),
        f"type {answer.headers['content-type']}",
    )
    parts = [
        part for part in answer.body.split(b"\n\n") if part != b":"
    ]  # a comment keeps a silent stream alive
    check(parts[-1] == b"" and all(part.startswith(b"data: ") for part in parts[:-1]), "a malformed event")
    return [part[6:] if part[6:] == b"[DONE]" else json.loads(part[6:]) for part in parts[:-1]]


def check_text(body: dict[str, Any], answer: Response) -> str:
    """The text of an answer of /completion. Raises Wrong if it isn't complete."""
    if body.get("stream"):
        found = events(answer)
        check(
            [e.get("stop") for e in found] == [False] * (len(found) - 1) + [True],
            f"not complete: {found[-1]}",
        )
        text, last = "".join(e["content"] for e in found), found[-1]
    else:
        last = answer.json()
        text = last["content"]
    n, most = last["tokens_predicted"], body["n_predict"]
    check(
        last["stop_type"] in ("eos", "limit", "word") and n <= most,
        f"ended as {last['stop_type']} after {n} of {most}",
    )
    full = last["tokens_evaluated"] + n >= N_CTX
    check(
        last["stop_type"] != "limit" or n == most or full, f"{n} tokens of {most}, and nothing else ended it"
    )
    return str(text)


def check_choices(body: dict[str, Any], answer: Response) -> str:
    """The first text of an answer in OpenAI's format. Raises Wrong if the answer isn't complete."""
    n, chat = body.get("n", 1), "messages" in body
    texts = [""] * n
    if body.get("stream"):
        found = events(answer)
        check(found.pop() == b"[DONE]", "no [DONE]")
        ends = {c["index"]: c["finish_reason"] for e in found for c in e["choices"] if c["finish_reason"]}
        for c in (c for e in found for c in e["choices"]):
            texts[c["index"]] += (c["delta"].get("content") or "") if chat else c["text"]
        usage = found[-1]["usage"]
    else:
        whole = answer.json()
        ends = {c["index"]: c["finish_reason"] for c in whole["choices"]}
        usage = whole["usage"]
        texts = [(c["message"]["content"] or "") if chat else c["text"] for c in whole["choices"]]
    check(
        sorted(ends) == list(range(n)) and set(ends.values()) <= {"stop", "length", "tool_calls"},
        f"ends {ends}",
    )
    check(0 < usage["completion_tokens"] <= n * body["max_tokens"], f"{usage} for {n} x {body['max_tokens']}")
    if set(ends.values()) == {"length"} and usage["prompt_tokens"] + body["max_tokens"] <= N_CTX:
        check(usage["completion_tokens"] == n * body["max_tokens"], f"{usage} for {n} x {body['max_tokens']}")
    if "response_format" in body and "stop" not in body and set(ends.values()) == {"stop"}:
        check(all(isinstance(parsed(text), dict) for text in texts), f"no JSON: {texts} of {body}")
    return texts[0]


CHECKS: dict[str, Callable[[dict[str, Any], Response], str]] = {"/completion": check_text}
"""What looks at a complete answer, by path; all else is OpenAI's."""
LEFT = ["/completion", "/v1/completions", "/v1/chat/completions"]
"""Paths that clients leave in the middle."""


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


class Client:
    """One of many clients; it does one thing after another."""

    def __init__(self, port: int, number: int, tally: Tally, seed: int) -> None:
        self.port = port
        self.number = number
        self.tally = tally
        self.random = random.Random(f"{seed}/{number}")
        self.kind, self.end = "", 0.0

    def has(self, path: str) -> bool:
        """Whether the server has a path of load_apis.py."""
        return path in self.tally.paths

    @property
    def over(self) -> bool:
        return time.monotonic() > self.end

    def words(self, most: int) -> str:
        return " ".join(self.random.choices(WORDS, k=self.random.randint(1, most)))

    def id(self) -> str:
        return f"{self.number}-{len(self.tally.seen)}-{secrets.token_hex(4)}"

    def count(self, outcome: str, problem: str = "") -> None:
        self.tally.outcomes[self.kind, outcome] += 1
        if problem:
            self.tally.problems.append(f"{self.kind}: {problem}")

    async def ask(
        self, method: str, path: str, body: bytes, connection: Connection | None = None, pause: float = 0
    ) -> Response:
        """One request, from its first byte to the last byte of its answer."""
        if connection is None:
            async with Connection(self.port) as connection:
                return await self.ask(method, path, body, connection, pause)
        id = self.id()
        self.tally.seen[id] = None
        await connection.send(method, path, body, id)
        try:
            answer = await asyncio.wait_for(connection.answer(method, pause), LONGEST)
        except asyncio.TimeoutError:
            raise Wrong(f"no end after {LONGEST:g} s") from None
        check(answer.headers.get("x-request-id") == id, "another request's answer")
        self.tally.seen[id] = answer.status
        self.tally.statuses[answer.status] += 1
        return answer

    async def post(
        self, path: str, body: dict[str, Any], connection: Connection | None = None, pause: float = 0
    ) -> str | None:
        """The complete text of an answer; None if the server was busy up to the end."""
        while True:
            start = time.monotonic()
            answer = await self.ask("POST", path, json.dumps(body).encode(), connection, pause)
            if answer.status == 200:
                break
            self.count(check_error(path, answer, BUSY))
            if self.over:
                return None
            await asyncio.sleep(self.random.uniform(0.5, 2))
        text = CHECKS.get(path, check_choices)(body, answer)
        self.tally.seconds.append(time.monotonic() - start)
        self.count("answered")
        return text

    async def run(self, end: float, kinds: dict[Handler, float]) -> None:
        self.end = end
        while not self.over:
            handler = self.random.choices(list(kinds), list(kinds.values()))[0]
            self.kind = handler.__name__.replace("_", " ")
            try:
                await handler(self)
            except (Wrong, OSError, KeyError, ValueError, TypeError, AttributeError, LookupError) as error:
                self.count("wrong", f"{type(error).__name__}: {error}")
            await asyncio.sleep(self.random.uniform(0, 0.2))


def sampling(client: Client) -> dict[str, Any]:
    r = client.random
    return r.choice(
        [
            {},
            {"temperature": 0},
            {"temperature": r.uniform(0, 2), "seed": r.getrandbits(63)},
            {"top_p": 0.5, "stop": [" the", "."]},
            {"top_k": 0, "min_p": 0.1, "repeat_penalty": 1.3},
            {"dry_multiplier": 0.8, "xtc_probability": 0.5, "mirostat": 2},
        ]
    )


async def chat(client: Client) -> None:
    """Several turns on one connection."""
    r = client.random
    messages = [{"role": "system", "content": client.words(20)}]
    async with Connection(client.port) as connection:
        for _ in range(r.randint(1, 3)):
            messages.append({"role": "user", "content": client.words(60)})
            extra = r.choice(
                [
                    {},
                    {},
                    {"n": 2},
                    {"logprobs": True, "top_logprobs": 3},
                    {
                        "response_format": {
                            "type": "json_schema",
                            "json_schema": {
                                "name": "x",
                                "schema": {
                                    "type": "object",
                                    "properties": {"name": {"type": "string", "maxLength": 5}},
                                    "required": ["name"],
                                    "additionalProperties": False,
                                },
                            },
                        }
                    },
                ]
            )
            body = {
                "messages": messages,
                "max_tokens": r.randint(1, 60),
                "stream": r.random() < 0.6,
                **sampling(client),
                **extra,
            }
            if body["stream"]:
                body["stream_options"] = {"include_usage": True}
            text = await client.post("/v1/chat/completions", body, connection)
            if text is None:
                return
            messages.append({"role": "assistant", "content": text})


async def completion(client: Client) -> None:
    r = client.random
    body = {
        "prompt": client.words(r.choice([5, 50, 400])),
        "n_predict": r.randint(1, 80),
        "stream": r.random() < 0.5,
        **sampling(client),
    }
    await client.post("/completion", body | ({"n_probs": 5} if r.random() < 0.2 else {}))


async def text(client: Client) -> None:
    r = client.random
    body = {"prompt": client.words(100), "max_tokens": r.randint(1, 50), "n": r.randint(1, 3)}
    await client.post("/v1/completions", body | sampling(client))


async def same(client: Client) -> None:
    """Greedy answers don't depend on what else is running."""
    prompt, stream = client.random.choice(SAME), client.random.random() < 0.5
    found = await client.post(
        "/completion", {"prompt": prompt, "n_predict": SAME_TOKENS, "temperature": 0, "stream": stream}
    )
    if found is not None:
        expected = client.tally.same.setdefault(prompt, found)
        check(found == expected, f"{found!r}, without other requests it was {expected!r}")


async def leave(client: Client) -> None:
    """Disconnects before, during or after the prompt, or during the answer, properly or with a reset."""
    r, id = client.random, client.id()
    path = r.choice(LEFT)
    body = {
        "prompt": client.words(600),
        "messages": [{"role": "user", "content": client.words(300)}],
        "stream": r.random() < 0.7,
        "n_predict": 500,
        "max_tokens": 500,
        "options": {"num_predict": 500},
        "ignore_eos": True,
    }
    data = json.dumps(body).encode()
    async with Connection(client.port) as connection:
        client.tally.seen[id] = None
        if r.random() < 0.2:
            connection.writer.write(
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                + data[: r.randrange(len(data))]
            )
            del client.tally.seen[id]
        else:
            await connection.send("POST", path, data, id)
        await asyncio.sleep(r.choice([0, 0.02, 0.2, 1]) * r.random())
        if r.random() < 0.5:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(connection.reader.read(r.randint(1, 3000)), 2)
        if r.random() < 0.5:
            connection.reset()
    client.count("left")


async def slow_reader(client: Client) -> None:
    """Reads with a small TCP window, and with a pause after each piece."""
    r = client.random
    async with Connection(client.port, buffer=2048) as connection:
        body = {
            "prompt": client.words(20),
            "n_predict": 60,
            "stream": True,
            "ignore_eos": True,
            "n_probs": 20,
        }
        await client.post("/completion", body, connection, pause=r.uniform(0.01, 0.2))


async def byte_a_second(client: Client) -> None:
    """Reads a long answer at a byte per second, then stops reading."""
    async with Connection(client.port, buffer=2048) as connection:
        id = client.id()
        client.tally.seen[id] = None
        data = json.dumps(
            {"prompt": "x", "n_predict": 900, "stream": True, "ignore_eos": True, "n_probs": 50}
        ).encode()
        await connection.send("POST", "/completion", data, id)
        for _ in range(client.random.randint(5, 25)):
            if client.over or not await connection.reader.read(1):
                break
            await asyncio.sleep(1)
    client.count("left")


async def slow_headers(client: Client) -> None:
    """Sends the head or the body at a byte per second, until the server closes the connection."""
    r, started = client.random, time.monotonic()
    in_body = r.random() < 0.5
    async with Connection(client.port) as connection:
        connection.writer.write(
            b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n" + b"\r\n" * in_body
        )
        answer = asyncio.ensure_future(connection.answer())
        while not client.over and not (await asyncio.wait({answer}, timeout=1))[0]:
            connection.writer.write(b"x")
            check(time.monotonic() - started < 60, "60 s for a head or a body")
        if not answer.done():
            answer.cancel()
            return client.count("left")
        try:
            check_error("/completion", await answer, {408})
        except Gone:
            check(not in_body and time.monotonic() - started > 1, "closed early")
        client.count("refused")


async def garbage(client: Client) -> None:
    """Sends what isn't HTTP."""
    r = client.random
    data = r.choice(
        [
            r.randbytes(200) + b"\r\n\r\n",
            b"\x16\x03\x01" + b"x" * 300 + b"\r\n\r\n",
            b"GET\r\n\r\n",
            b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"POST /completion HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Y: z\r\n" * 20_000 + b"\r\n",
        ]
    )
    async with Connection(client.port) as connection:
        connection.writer.write(data)
        try:
            answer = await connection.answer()
            check(400 <= answer.status < 500, f"{data[:30]!r}: status {answer.status}")
        except Gone:
            pass
    client.count("refused")


def deep(n: int) -> bytes:
    return b"[" * n + b"]" * n


HUGE = b"9" * 5000
BAD: list[tuple[str, bytes]] = [
    ("/completion", b""),
    ("/completion", b"{"),
    ("/completion", b"[]"),
    ("/v1/chat/completions", b"null"),
    ("/v1/completions", b"\xff\xfe{}"),
    ("/completion", b'{"prompt": ' + deep(100_000) + b"}"),
    ("/v1/chat/completions", b'{"messages": ' + deep(500_000) + b"}"),
    ("/completion", b'{"prompt": "x", "json_schema": ' + b'{"not":' * 3000 + b"{}" + b"}" * 3001),
    ("/tokenize", b'{"content": 5}'),
    ("/completion", b'{"prompt": "x", "n_discard": -1}'),
    ("/completion", b'{"prompt": "x", "n_predict": ' + HUGE + b"}"),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "x"}], "n": 100000000}'),
    ("/v1/completions", b'{"prompt": "x", "n": ' + HUGE + b"}"),
    ("/completion", b'{"prompt": "x", "n_cmpl": 1000000}'),
    ("/v1/completions", b'{"prompt": "x", "max_tokens": "many"}'),
    ("/v1/completions", b'{"prompt": {"a": 1}, "max_tokens": 1}'),
    ("/v1/completions", b'{"prompt": "x", "temperature": 1e999}'),
    ("/v1/completions", b'{"prompt": "x", "temperature": NaN}'),
    ("/v1/completions", b'{"prompt": "x", "top_p": -3}'),
    ("/v1/completions", b'{"prompt": "x", "temperature": -1e300}'),
    ("/completion", b'{"prompt": "x", "repeat_last_n": -5}'),
    ("/completion", b'{"prompt": "x", "logit_bias": [[-1, 1]]}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "wizard", "content": "x"}]}'),
    ("/v1/chat/completions", b'{"messages": []}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": {"a": [1]}}]}'),
    ("/detokenize", b'{"tokens": [99999999999]}'),
    ("/completion", b'{"prompt": "x", "grammar": "root ::= ((((("}'),
    ("/completion", b'{"prompt": [1, -5]}'),
    ("/v1/embeddings", b'{"input": []}'),
    ("/embedding", b"{}"),
    ("/apply-template", b'{"messages": 5}'),
    ("/v1/messages", b""),
    ("/v1/messages", b'{"messages": [{"role": "user"'),
    ("/v1/messages", b'{"messages": [{"role": "wizard", "content": "x"}], "max_tokens": 5}'),
    ("/v1/messages", b'{"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 5}'),
    ("/v1/messages", b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": ' + HUGE + b"}"),
    ("/v1/messages/count_tokens", b'{"messages": ' + deep(100_000) + b"}"),
    ("/api/chat", b'{"messages": [{"role": "user", "content": 5}]}'),
    (
        "/api/chat",
        b'{"messages": [{"role": "user", "content": "x"}], "options": {"num_predict": ' + HUGE + b"}}",
    ),
    ("/api/generate", b'{"prompt": ["x"]}'),
    ("/api/embed", b'{"input": {"a": 1}}'),
]
TOO_LONG: list[tuple[str, Callable[[], bytes]]] = [
    ("/completion", lambda: json.dumps({"prompt": "\n" * 1_000_000}).encode()),
    ("/v1/completions", lambda: json.dumps({"prompt": "\n" * 1_000_000, "stream": True}).encode()),
    (
        "/v1/chat/completions",
        lambda: json.dumps({"messages": [{"role": "user", "content": "\n" * 1_000_000}]}).encode(),
    ),
    ("/completion", lambda: json.dumps({"prompt": "once upon a time " * 500}).encode()),
    ("/v1/completions", lambda: json.dumps({"prompt": [5] * 200_000}).encode()),
    ("/v1/embeddings", lambda: json.dumps({"input": "a" * 1_900_000}).encode()),
]
ABSURD: list[dict[str, Any]] = [
    {"temperature": 1e300},
    {"temperature": 1e-300},
    {"top_p": 0},
    {"top_k": 2**31 - 1},
    {"top_k": -(2**31)},
    {"min_p": 1},
    {"typical_p": 1e-30},
    {"top_n_sigma": 1e30},
    {"repeat_penalty": 1e30},
    {"frequency_penalty": 1e30, "presence_penalty": -1e30},
    {"mirostat": 2, "mirostat_tau": 1e9},
    {"mirostat": 1, "mirostat_eta": 1e9},
    {"dry_multiplier": 1e30, "dry_base": 1e30},
    {"seed": -1},
    {"seed": 2**64 - 1},
    {"unknown": {"a": [1]}},
    {"xtc_probability": 1, "xtc_threshold": 0},
    {"samplers": []},
    {"logit_bias": {"1": -1e30}},
    {"dynatemp_range": 1e30, "temperature": 5},
]


async def malformed(client: Client) -> None:
    """Broken JSON, wrong types, deep nesting, huge numbers, negative n_discard."""
    path, body = client.random.choice(BAD)
    answer = await client.ask("POST", path, body)
    try:
        client.count(check_error(path, answer, {400, 413, 422}))
    except Wrong as error:
        raise Wrong(f"{path} {body[:60]!r}: {error}") from None


async def too_long(client: Client) -> None:
    """A prompt beyond the context, a million newlines."""
    path, body = client.random.choice(TOO_LONG)
    client.count(check_error(path, await client.ask("POST", path, body()), {400}))


async def too_large(client: Client) -> None:
    """Sends more bytes than a request may have, up to 10 MB."""
    body = b'{"prompt": "' + b"a" * client.random.randint(2_200_000, 10_000_000) + b'"}'
    client.count(check_error("/completion", await client.ask("POST", "/completion", body), {413, 408}))


async def absurd(client: Client) -> None:
    """Sends sampling values that make no sense: either an answer or an error is right."""
    path = client.random.choice(["/completion", "/v1/completions"])
    body = {"prompt": client.words(10), "n_predict": 10, "max_tokens": 10, **client.random.choice(ABSURD)}
    answer = await client.ask("POST", path, json.dumps(body).encode())
    if answer.status == 200:
        (check_text if path == "/completion" else check_choices)(body, answer)
        client.count("answered")
    else:
        client.count(check_error(path, answer, {400, 429}))


OTHERS = [
    ("GET", "/health", None),
    ("GET", "/props", None),
    ("GET", "/slots", None),
    ("GET", "/metrics", None),
    ("GET", "/v1/models", None),
    ("GET", "/openapi.json", None),
    ("GET", "/", None),
    ("HEAD", "/", None),
    ("POST", "/tokenize", {"content": "once upon " * 1000}),
    ("POST", "/detokenize", {"tokens": [5] * 1000}),
    ("POST", "/apply-template", {"messages": [{"role": "user", "content": "x"}]}),
    ("POST", "/embedding", {"content": "a little dog"}),
    ("POST", "/v1/embeddings", {"input": ["a", "little dog " * 100]}),
    ("GET", "/nowhere", 404),
    ("DELETE", "/completion", 405),
    ("POST", "/../../etc/passwd", 404),
    ("GET", "/v1/models/x", 404),
]


async def others(client: Client) -> None:
    """Calls all endpoints that generate nothing."""
    method, path, body = client.random.choice(OTHERS)
    answer = await client.ask(method, path, json.dumps(body).encode() if isinstance(body, dict) else b"")
    if isinstance(body, int):
        client.count(check_error(path, answer, {body}))
    elif answer.status == 429 and "embedding" in path:
        client.count(check_error(path, answer, {429}))
    else:
        check(answer.status == 200, f"{method} {path}: status {answer.status}: {answer.body[:200]!r}")
        client.count("answered")


KINDS: dict[Handler, float] = {
    chat: 20,
    completion: 15,
    text: 8,
    same: 10,
    leave: 15,
    slow_reader: 2,
    byte_a_second: 1,
    slow_headers: 2,
    garbage: 3,
    malformed: 10,
    too_long: 2,
    too_large: 1,
    absurd: 4,
    others: 10,
}


async def first_answers(port: int, tally: Tally) -> None:
    """The answers that `same` has to get, while nothing else is running."""
    client = Client(port, -1, tally, 0)
    client.kind = "same"
    for prompt in SAME:
        found = await client.post(
            "/completion", {"prompt": prompt, "n_predict": SAME_TOKENS, "temperature": 0}
        )
        check(found is not None, "busy at the start")
        tally.same[prompt] = found or ""


async def run(
    port: int, n: int, seconds: float, seed: int, tally: Tally, more: dict[Handler, float] | None = None
) -> None:
    """`more` kinds of clients than those here."""
    await first_answers(port, tally)
    end = time.monotonic() + seconds
    kinds = KINDS | (more or {})
    await asyncio.gather(*(Client(port, i, tally, seed).run(end, kinds) for i in range(n)))
