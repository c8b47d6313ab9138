"""A chat with a server that speaks OpenAI's protocol: llama-server, vLLM, Ollama, LM Studio and others."""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

from ..errors import ContextFull, InputError, QwenError
from ..sampling import SETTINGS
from ..text.chat.tool_calls import mapping
from .openai_stream import StreamedAnswer, events, message_of, parsed

if TYPE_CHECKING:
    from ..sampling import SamplingParams
    from ..text.chat.answers import Event
    from ..text.chat.template import Message
    from .dialogue import Settings

CONNECT_SECONDS = 10.0
MAX_BODY = 2**24
"""Bytes of an answer that comes in one piece, or of the list of models."""
MAX_STREAM = 2**28
"""Bytes of a whole stream, which has a few hundred for each token."""
MAX_REDIRECTS = 5
MAX_MESSAGE = 400
"""Characters of what a server says about an error."""
CONTEXT_FULL = re.compile(
    "exceed_context_size_error|context_length_exceeded|exceeds the available context|maximum context length",
    re.I,
)
"""How servers say that a conversation is too long: llama-server's type, OpenAI's code, the words of older servers and of vLLM."""
IN_PATHS = "/%:@!$&'()*+,;=?"
STOP_REASONS = {"length": "length", "content_filter": "stop"}
"""Our names for why an answer ended, by the protocol's; everything else is the model's own end."""


class RemoteChat:
    """Answers from the server at `url`, a ChatModel.

    `url` is http://host:port or https://host, and may end in a path, in /v1 or in /v1/chat/completions. `api_key` goes to that scheme, host
    and port only. Without `model` the first one that the server lists is used. `timeout` is how many seconds the server may send
    nothing: a long prompt takes its time. TLS certificates are verified; proxies named in the environment are not used.

    Raises InputError for an address or a key that cannot be right.
    """

    def __init__(
        self, url: str, api_key: str | None = None, model: str | None = None, timeout: float = 600.0
    ) -> None:
        self._origin, self._host, self._port, self._path = parse_address(url)
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            # http.client's own message would show the key
            raise InputError("the API key has characters that no key has")
        self._key = api_key
        self.model = model
        self.timeout = timeout
        self.stop_reason: str | None = None
        self._answer = StreamedAnswer(None)

    def answer(self, messages: Sequence[Message], settings: Settings) -> Iterator[Event]:
        """The events of the answer as they arrive. Closing the iterator closes the connection, so that the server stops generating.

        Raises ContextFull where the server says that the conversation is too long, and QwenError for everything else that fails; events
        that came before have been given.
        """
        self.stop_reason = None
        answer = self._answer = StreamedAnswer(settings.tools)
        try:
            if self.model is None:
                self.model = self._first_model()
            body = request_body(self.model, messages, settings)
            with self._request("POST", "/chat/completions", body) as response:
                for chunk in self._chunks(response):
                    yield from answer.add(chunk)
            if answer.finish is None:
                raise self._error("broke off the answer")
            yield from answer.end()
            self.stop_reason = STOP_REASONS.get(answer.finish, "eos")
        except QwenError:
            yield from answer.end()
            raise
        except (GeneratorExit, KeyboardInterrupt):
            self.stop_reason = "cancelled"
            raise

    def stats(self) -> dict[str, float]:
        """Tokens and milliseconds of the last answer, by llama.cpp's names; what the server doesn't tell is left out."""
        return self._answer.stats()

    def _first_model(self) -> str:
        with self._request("GET", "/models") as response:
            try:
                if response.status == 200:
                    return str(json.loads(self._body(response))["data"][0]["id"])
            except (ValueError, LookupError, TypeError, RecursionError):
                pass  # a server with one model may have no list
        return "default"

    @contextmanager
    def _request(
        self, method: str, path: str, body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request, follow redirects within the server, and close the connection at the end, whatever ends it."""
        path = self._path + path
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
            "User-Agent": "qwencli",
        }
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        for _ in range(MAX_REDIRECTS + 1):
            connection, response = self._connect(), None
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                if response.status not in (301, 302, 307, 308):
                    yield response
                    return
                path = self._redirected(path, response.getheader("Location", ""))
            except TimeoutError:
                raise self._error(f"sent nothing for {self.timeout:g} seconds") from None
            except (OSError, http.client.IncompleteRead):
                raise self._error("broke off the connection") from None
            except http.client.HTTPException:
                raise self._error("does not speak HTTP") from None
            finally:
                if response is not None:
                    response.close()
                connection.close()
        raise self._error("redirects without end")

    def _connect(self) -> http.client.HTTPConnection:
        if self._origin.startswith("https:"):
            tls = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=CONNECT_SECONDS, context=tls
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
            connection.sock.settimeout(self.timeout)
            return connection
        except ssl.SSLCertVerificationError as error:
            reason = f"its certificate is not trusted ({error.verify_message})"
        except ssl.SSLError as error:
            reason = f"it does not speak TLS ({error.reason}), is it http://?"
        except TimeoutError:
            reason = f"no answer within {CONNECT_SECONDS:g} seconds"
        except UnicodeError:
            reason = "there is no such host"
        except OSError as error:
            reason = error.strerror or str(error)
        connection.close()
        raise self._error(f"cannot be reached: {reason}")

    def _redirected(self, path: str, location: str) -> str:
        """The path on this server that it redirects to. Other servers are not asked: key and conversation are for this one alone."""
        try:
            target = urljoin(self._origin + path, location)
        except ValueError:
            target = ""
        if not target.startswith(self._origin + "/"):
            raise self._error(f"redirects to {location}: give that address if it is the right one")
        return quote(target.removeprefix(self._origin), safe=IN_PATHS)

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
        """The JSON objects of a streamed answer, or the only one of an answer that is not streamed."""
        if response.status != 200:
            raise self._refusal(response)
        kind = response.getheader("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "text/event-stream":
            datas = events(self._pieces(response, MAX_STREAM))
        elif kind == "application/json":
            datas = iter([self._body(response)])
        else:
            raise self._error(
                f"answers with {kind or 'something unknown'}: is it an OpenAI-compatible server?"
            )
        for data in datas:
            if data == b"[DONE]":
                self._answer.finish = self._answer.finish or "stop"
                return
            chunk = parsed(data)
            if chunk is None:
                raise self._error(
                    f"sent something that isn't a JSON object: {data[:80].decode('utf-8', 'replace')}"
                )
            if chunk.get("error") or ("message" in chunk and "choices" not in chunk):
                raise self._failure("reports an error", chunk)
            if kind == "application/json" and not chunk.get("choices"):
                raise self._error("sent no answer: is it an OpenAI-compatible server?")
            yield chunk
        if kind == "application/json":
            self._answer.finish = self._answer.finish or "stop"

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        return b"".join(self._pieces(response, MAX_BODY))

    def _pieces(self, response: http.client.HTTPResponse, limit: int) -> Iterator[bytes]:
        """The bytes as they arrive, up to `limit` of them."""
        while piece := response.read1(2**16):
            limit -= len(piece)
            if limit < 0:
                raise self._error("answers without end")
            yield piece

    def _refusal(self, response: http.client.HTTPResponse) -> QwenError:
        answer, status = parsed(self._body(response)) or {}, response.status
        if status in (401, 403):
            advice = ", is the --api-key right?" if self._key else ", give a key with --api-key"
            return self._failure(f"refuses access ({status}{advice})", answer)
        if status == 404:
            return self._failure(
                f"has no {self._path}/chat/completions, or no model {self.model} (404)", answer
            )
        if status == 429:
            wait = response.getheader("Retry-After", "")
            return self._failure(
                f"has too much to do (429), try again {f'in {wait} seconds' if wait.isdecimal() else 'later'}",
                answer,
            )
        return self._failure(f"answers {status} {response.reason}", answer)

    def _failure(self, what: str, answer: dict[str, Any]) -> QwenError:
        """An error that the server describes in JSON."""
        error, message = mapping(answer.get("error")) or answer, message_of(answer)
        if (
            CONTEXT_FULL.search(f"{error.get('type')} {error.get('code')} {message}")
            and not self._answer.begun
        ):
            return self._error(f"finds the conversation longer than its context: {message}", ContextFull)
        return self._error(f"{what}: {message}" if message else what)

    def _error(self, what: str, kind: type[QwenError] = QwenError) -> QwenError:
        """In one line, however much the server says, and without the key, which some servers repeat."""
        what = " ".join(what.split())
        if self._key:
            what = what.replace(self._key, "...")
        return kind(f"{self._origin} {what[:MAX_MESSAGE]}")


def parse_address(url: str) -> tuple[str, str, int, str]:
    """The origin, host, port and path of an API. The path ends with /v1. Raises InputError."""
    try:
        parts = urlsplit(url.strip())
        default = {"http": 80, "https": 443}[parts.scheme]
        host, port = parts.hostname or "", parts.port or default
    except (ValueError, KeyError):
        host = ""
    if (
        not re.fullmatch(r"[^\s\x00-\x1f\x7f]+", host)
        or parts.username is not None
        or parts.query
        or parts.fragment
    ):
        shown = url.rpartition("@")[2][:100]  # before it there may be a password
        raise InputError(f"{shown} isn't the address of a server, expected http://host:port or https://host")
    path = quote(parts.path.rstrip("/"), safe=IN_PATHS)
    base = path.removesuffix("/chat/completions")
    if base == path and not re.search(r"/v\d\w*$", path):
        base += "/v1"
    return f"{parts.scheme}://{parts.netloc}", host, port, base


def request_body(model: str, messages: Sequence[Message], settings: Settings) -> bytes:
    """The request for a streamed answer, with no more fields than needed: strict servers refuse those that they don't know.

    Settings that are qwencli's defaults are left out, so that the server uses its own, which suit its model. Earlier thinking is left out
    as the models' templates would. A last message that is the assistant's is to be continued, and only what is new to be sent.
    """
    goes_on = messages[-1]["role"] == "assistant"
    past = messages[:-1] if goes_on else messages
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            *({k: v for k, v in m.items() if k != "reasoning_content"} for m in past),
            *messages[len(past) :],
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        **sampling_fields(settings.sampling),
    }
    if settings.max_tokens is not None:
        body["max_tokens"] = settings.max_tokens
    think = False if settings.reasoning_budget == 0 else settings.think
    if think is not None:
        body["chat_template_kwargs"] = {"enable_thinking": think}
    if settings.reasoning_budget is not None:  # llama-server had one name for it, then the other
        body["thinking_budget_tokens"] = body["reasoning_budget_tokens"] = settings.reasoning_budget
    if goes_on:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if settings.tools:
        body["tools"] = list(settings.tools)
    return json.dumps(body).encode()


def sampling_fields(params: SamplingParams) -> dict[str, Any]:
    """The settings that differ from the defaults, by the names of OpenAI's protocol, else llama-server's."""
    chosen = {
        s.request_name: getattr(params, s.name)
        for s in SETTINGS.values()
        if not s.of_report and getattr(params, s.name) != s.default
    }
    if "logit_bias" in chosen:
        # JSON has no infinity
        chosen["logit_bias"] = {token: min(max(bias, -100.0), 100.0) for token, bias in chosen["logit_bias"]}
    return chosen
