"""A real server for tests: `qwencli serve` as the command starts it, but in a thread of this process, on a free port."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.server import run
from qwencli.server.apis import APIS
from qwencli.server.http.app import API, build_app
from qwencli.server.options import ServerOptions
from qwencli.server.service.service import Service


def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(0.005)


def endless() -> LLM:
    """A demo model whose answers would take minutes: a test ends them."""
    return LLM(EMBEDDED, n_threads=2, n_ctx=100_000)


class Serving:
    """A running server: its `url` and its parts."""

    def __init__(
        self, service: Service, options: ServerOptions, url: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.service, self.options, self.url, self.loop = service, options, url, loop
        self.port = int(url.rpartition(":")[2])


@contextmanager
def serving(
    llm: LLM | None = None,
    n_slots: int = 4,
    n_queue: int = 64,
    pooling: str | None = None,
    apis: Sequence[API] = APIS,
    **settings: Any,
) -> Iterator[Serving]:
    """Serve `llm`, by default a demo model of its own, with the ServerOptions that `settings` make."""
    llm = llm or LLM(EMBEDDED, n_threads=2)
    given = {
        "name": llm.file.path.name,
        "sampling": llm.sampling(),
        "template": llm.chat_template,
        "log_format": "none",
        "metrics": True,
    }
    options = ServerOptions(**(given | settings))
    service, sockets, started = (
        Service(llm, n_slots, n_queue, pooling),
        run.listen(options.hosts, 0),
        threading.Event(),
    )
    server: run.Server | None = None
    loop = asyncio.new_event_loop()
    failures: list[BaseException] = []

    async def go() -> None:
        nonlocal server
        service.start()
        server = run.Server(build_app(service, options, apis), service, options, 0, started.set)
        await server.serve(sockets)

    def target() -> None:
        try:
            loop.run_until_complete(go())
        except BaseException as error:
            failures.append(error)
            started.set()

    thread = threading.Thread(target=target)
    thread.start()
    assert started.wait(60)
    if failures:
        raise failures[0]
    assert server
    try:
        yield Serving(service, options, run.url(sockets, options.hosts[:1], False), loop)
    finally:
        loop.call_soon_threadsafe(server.stop)
        thread.join(60)
        assert not thread.is_alive()
        loop.close()
        if failures:
            raise failures[0]
