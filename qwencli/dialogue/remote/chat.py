"""Asking a server, and reading what it sends, whatever the protocol."""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin

from ...errors import ContextFull, InputError, QwenError
from ...text.chat.tool_calls import mapping
from .address import IN_PATHS, parse_address
from .answer import message_of
from .streams import events, lines, parsed

if TYPE_CHECKING:
    from ...text.chat.answers import Event
    from ...text.chat.template import Message
    from ..dialogue import Settings

CONNECT_SECONDS = 10.0
MAX_BODY = 2**24
"""Bytes of an answer that comes in one piece, or of the list of models."""
MAX_STREAM = 2**28
"""Bytes of a whole stream, which has a few hundred for each token."""
MAX_REDIRECTS = 5
OTHER_APIS = "addresses may end in /v1/responses, /v1/messages or /api/chat"
MAX_MESSAGE = 400
"""Characters of what a server says about an error."""
CONTEXT_FULL = re.compile(
    "exceed_context_size_error|context_length_exceeded|exceeds the available context|maximum context length",
    re.I,
)
"""How servers say that a conversation is too long: llama-server's type, OpenAI's code, the words of older servers and of vLLM."""


class RemoteChat:
    """Answers from the server at `url`, a ChatModel.

    `url` is http://host:port or https://host, and may end in a path and /v1. Its end chooses the protocol: /v1/chat/completions, which is
    the default, /v1/responses, /v1/messages (Anthropic's) or /api/chat (Ollama's). `api_key` goes to that scheme, host and port only;
    without one, the environment variable is read in which people keep the protocol's keys. Without `model` the first one that the server
    lists is used. `timeout` is how many seconds the server may send nothing: a long prompt takes its time. TLS certificates are verified;
    proxies named in the environment are not used.

    Raises InputError for an address or a key that cannot be right.
    """

    def __init__(
        self, url: str, api_key: str | None = None, model: str | None = None, timeout: float = 600.0
    ) -> None:
        self._address = parse_address(url)
        self._protocol = self._address.protocol
        if api_key is None:
            api_key = os.environ.get(self._protocol.key_variable) or None
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            # http.client's own message would show the key
            raise InputError("the API key has characters that no key has")
        self._key = api_key
        self.model = model
        self.timeout = timeout
        self.stop_reason: str | None = None
        self._answer = self._protocol.answer(None)

    def answer(self, messages: Sequence[Message], settings: Settings) -> Iterator[Event]:
        """The events of the answer as they arrive. Closing the iterator closes the connection, so that the server stops generating.

        Raises ContextFull where the server says that the conversation is too long, and QwenError for everything else that fails; events
        that came before have been given.
        """
        self.stop_reason = None
        answer = self._answer = self._protocol.answer(settings.tools)
        try:
            if self.model is None:
                self.model = self._first_model()
            body = json.dumps(self._protocol.body(self.model, messages, settings)).encode()
            with self._request("POST", self._protocol.chats, body) as response:
                for chunk in self._chunks(response):
                    yield from answer.add(chunk)
            if answer.finish is None:
                raise self._error("broke off the answer")
            yield from answer.end()
            self.stop_reason = answer.stop_reason
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
        """OpenAI's list, and Anthropic's, has its models' ids in `data`, Ollama's has their names in `models`."""
        with self._request("GET", self._protocol.models) as response:
            listing = (parsed(self._body(response)) or {}) if response.status == 200 else {}
        for key, name in ("data", "id"), ("models", "name"):
            models = listing.get(key)
            if isinstance(models, list) and models and (found := mapping(models[0]).get(name)):
                return str(found)
        return "default"  # a server with one model may have no list

    @contextmanager
    def _request(
        self, method: str, path: str, body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request, follow redirects within the server, and close the connection at the end, whatever ends it."""
        path = self._address.base + path
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/x-ndjson, application/json",
            "User-Agent": "qwencli",
            **self._protocol.headers,
            **(self._protocol.key_header(self._key) if self._key else {}),
        }
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
        if self._address.origin.startswith("https:"):
            tls = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._address.host, self._address.port, timeout=CONNECT_SECONDS, context=tls
            )
        else:
            connection = http.client.HTTPConnection(
                self._address.host, self._address.port, timeout=CONNECT_SECONDS
            )
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
        origin = self._address.origin
        try:
            target = urljoin(origin + path, location)
        except ValueError:
            target = ""
        if not target.startswith(origin + "/"):
            raise self._error(f"redirects to {location}: give that address if it is the right one")
        return quote(target.removeprefix(origin), safe=IN_PATHS)

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
        """The JSON objects of a streamed answer, or the only one of an answer that is not streamed."""
        if response.status != 200:
            raise self._refusal(response)
        kind = response.getheader("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "text/event-stream":
            datas = events(self._pieces(response, MAX_STREAM))
        elif kind == "application/x-ndjson":
            datas = lines(self._pieces(response, MAX_STREAM))
        elif kind == "application/json":
            datas = iter([self._body(response)])
        else:
            raise self._error(f"answers with {kind or 'something unknown'}: is it {self._protocol.name}?")
        for data in datas:
            if data == b"[DONE]":
                self._answer.finish = self._answer.finish or "stop"
                return
            chunk = parsed(data)
            if chunk is None:
                raise self._error(
                    f"sent something that isn't a JSON object: {data[:80].decode('utf-8', 'replace')}"
                )
            if error := self._answer.error(chunk):
                raise self._failure("reports an error", error)
            yield chunk
        if kind == "application/json" and self._answer.finish is None:
            raise self._error(f"sent no answer: is it {self._protocol.name}?")

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
            path = self._address.base + self._protocol.chats
            return self._failure(
                f"has no {path} (is its API another? {OTHER_APIS}), or no model {self.model} (404)", answer
            )
        if status == 429:
            wait = response.getheader("Retry-After", "")
            return self._failure(
                f"has too much to do (429), try again {f'in {wait} seconds' if wait.isdecimal() else 'later'}",
                answer,
            )
        return self._failure(f"answers {status} {response.reason}", answer)

    def _failure(self, what: str, answer: Mapping[str, Any]) -> QwenError:
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
        return kind(f"{self._address.origin} {what[:MAX_MESSAGE]}")
