"""uvicorn's HTTP/1.1 by h11, with limits to waiting: for a request that doesn't come, for an answer that nobody takes."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

LINGER = 5.0
"""Seconds that the last bytes have to reach a client before its connection is closed."""


class Protocol(H11Protocol):
    """`timeout` is how many seconds the head of a request may take, and how long a client may take nothing of what it is sent."""

    timeout = 60.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._reading, self._writing:
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def _wait_for_request(self) -> None:
        """Start the clock for the next request, if the last one is answered; stop it while a request is being answered."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and self._reading:
            self._reading.cancel()
            self._reading = None
        elif not answering and not self._reading:
            self._reading = self.loop.call_later(self.timeout, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self._writing or self.loop.call_later(self.timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing:
            self._writing.cancel()
            self._writing = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._close_for_good()
        if self.conn.trailing_data[0]:
            self._wait_for_request()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close_for_good()

    def _close_for_good(self) -> None:
        """Give a closing transport an end: it first sends what it has, forever if the client doesn't take it."""
        if self.transport.is_closing() and not self._writing:
            self._writing = self.loop.call_later(LINGER, self.transport.abort)
