"""Runs the application: opens sockets, does beforehand what a first request would wait for, and ends without cutting answers off."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace

import uvicorn
from starlette.applications import Starlette

from ..errors import InputError, QwenError
from ..llm import LLM
from ..request.request import Request
from ..sampling import SamplingParams
from ..text.tokenizer import SHORT_TEXT
from .apis import APIS
from .http.app import build_app
from .http.openapi import build_models
from .http.protocol import Protocol
from .options import ServerOptions
from .service.garbage import keep, keep_also
from .service.service import Counters, Service
from .sockets import is_loopback, listen, url

__all__ = ["certificate", "is_loopback", "listen", "serve", "url"]
KEEP_ALIVE = 65
"""Seconds that an idle connection stays open: longer than clients keep it, so that none sends while it is being closed."""
WARM_TOKENS = 16
SWITCH_SECONDS = 0.0005
"""How long a thread runs before others get their turn. With Python's 5 ms the event loop would wait that long for each busy thread."""


def certificate(key_file: str | None, cert_file: str | None) -> ssl.SSLContext | None:
    """The TLS context for this key and certificate, None without them. Raises InputError."""
    if key_file is None and cert_file is None:
        return None
    if key_file is None or cert_file is None:
        raise InputError("give both --ssl-key-file and --ssl-cert-file, or none of them")
    for name in key_file, cert_file:
        try:
            open(name, "rb").close()
        except OSError as error:
            raise InputError(f"{name}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # with an empty password OpenSSL doesn't ask for one at the terminal
        context.load_cert_chain(cert_file, key_file, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"{cert_file}, {key_file}: not a certificate and its key in PEM form, without a password: {reason}"
        ) from None
    return context


def prepare(llm: LLM) -> None:
    """Load all kernels that requests may need, and compile those that are missing."""
    from ..backends.cpu.backend import CPUBackend

    if isinstance(llm.engine.backend, CPUBackend):
        from ..backends.cpu.backend import kernels_of
        from ..machine.warmup import kernels_of_model

        isa, types = llm.engine.backend.isa, llm.engine.backend.cache_types
        kernels_of(isa).load(sorted(kernels_of_model(llm.model, isa, False, types)))


async def warm_up(service: Service, options: ServerOptions) -> None:
    """Generate once, so that no request has to wait for what is done only once. Its figures and its cache are dropped."""
    llm = service.llm
    await asyncio.to_thread(prepare, llm)
    for measure in llm.tokenizer.fewest, llm.tokenizer.encode:
        await asyncio.to_thread(measure, "a" * (SHORT_TEXT + 1))  # what long texts need holds all threads up
    tokens = [0] * min(WARM_TOKENS, llm.engine.n_ctx - 2)
    if tokens and llm.model.config.causal:  # else it only reads
        for sampling in SamplingParams(temp=0), replace(options.sampling, seed=0):
            async for _ in service.generate(Request(tokens, sampling, max_tokens=2, ignore_eos=True)):
                pass
    if options.template:
        with suppress(QwenError):  # requests will get the error
            await asyncio.to_thread(options.template.render, [{"role": "user", "content": "hello"}])
    while llm.engine.prefixes.make_room():
        pass
    service.counters = Counters()
    keep()


class Server(uvicorn.Server):
    """uvicorn with signals of our own. `ready` is called when the sockets answer."""

    def __init__(
        self,
        app: Starlette,
        service: Service,
        options: ServerOptions,
        grace: float,
        ready: Callable[[], None] = lambda: None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)  # requests have a log of their own
        protocol = type("Protocol", (Protocol,), {"timeout": options.timeout})
        settings = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=int(grace) + 5,
        )
        settings.load()
        settings.ssl = tls
        super().__init__(settings)
        self._service, self._grace, self._ready = service, grace, ready
        self._idle_seconds, self._routes = options.sleep_idle_seconds, app.routes
        self._stopping: asyncio.Task[None] | None = None
        self._building: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # a server that started at the same time was faster
            raise QwenError(f"cannot listen: {error.strerror or error}") from None
        self._service.presence.watch(self._idle_seconds)
        self._building = asyncio.ensure_future(self._build())
        self._ready()

    async def _build(self) -> None:
        await build_models(self._routes)
        keep_also()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # see `signals`

    def stop(self) -> None:
        """Take no more requests; those that run may finish within the grace time. A second call ends the process."""
        if self._stopping:
            os._exit(1)
        self.should_exit = True
        self._stopping = asyncio.ensure_future(self._service.stop(self._grace))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self._building:
            self._building.cancel()
        await self._service.presence.stop()
        if self._stopping:
            await self._stopping


@contextmanager
def signals(stop: Callable[[], None]) -> Generator[None, None, None]:
    """Call `stop` in the event loop for SIGINT and SIGTERM."""
    loop = asyncio.get_running_loop()
    kinds = [signal.SIGINT, signal.SIGTERM]
    before = {kind: signal.signal(kind, lambda *_: loop.call_soon_threadsafe(stop)) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def serve(
    service: Service,
    options: ServerOptions,
    sockets: list[socket.socket],
    grace: float = 30,
    ready: Callable[[], None] = lambda: None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve until a signal comes, and return when what was running has ended. To be called in the main thread.

    `ready` is called as soon as requests are answered, the first of them at full speed.
    """
    sys.setswitchinterval(SWITCH_SECONDS)

    async def run() -> None:
        service.start()
        await warm_up(service, options)
        server = Server(build_app(service, options, APIS), service, options, grace, ready, tls)
        with signals(server.stop):
            await server.serve(sockets)

    asyncio.run(run())
