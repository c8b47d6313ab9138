"""`qwencli serve` under load, in short: scripts/load_server.py for seconds instead of minutes; and what it found."""

import asyncio
import itertools
import json
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Serving, endless, serving, until

from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.request.request import Request
from qwencli.sampling import SamplingParams
from qwencli.server.service.generation import Generation
from qwencli.server.service.service import FAIR_BATCH, Service

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="SIGTERM, and how a connection is reset, are different there"
)
SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "load_server.py"


def test_many_clients_of_all_kinds(tmp_path: Path) -> None:
    """All that the script's table is about, but for memory."""
    options = ["--clients", "40", "--seconds", "3", "--keep", tmp_path, "-np", "3", "--queue", "10"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, options)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for part in (
        "\nall ",
        "\nsame ",
        "\nalike ",
        "\nmessage ",
        "\nollama ",
        "200: ",
        "400: ",
        "all complete, exit code 0",
    ):
        assert part in done.stdout


def test_errors_need_no_thread_and_are_no_failures_of_the_server(capfd: pytest.CaptureFixture[str]) -> None:
    before = threading.enumerate()  # of other servers
    with serving(log_format="json") as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert [client.get("/nowhere").status_code, client.delete("/completion").status_code] == [404, 405]
        assert not [
            thread.name for thread in threading.enumerate() if "AnyIO" in thread.name and thread not in before
        ]
    log = capfd.readouterr().err
    assert "Method Not Allowed" in log
    assert "Traceback" not in log


def test_a_long_prompt_keeps_no_answer_waiting() -> None:
    """While it is read, each of seven answers gets a token in every step, and no step reads more of it than a chunk."""
    llm = LLM(EMBEDDED)
    answers: list[Generation] = []
    log: list[tuple[int, list[int]]] = []
    step, complete = llm.engine.step, threading.Event()

    def watched(n_batch: int | None = None) -> Any:
        if len(answers) == 7 and all(answer.sequence.generated for answer in answers):
            complete.wait(60)  # else they might be done before the prompt comes
        found = step(n_batch)
        if len(answers) == 8:
            log.append(
                (
                    answers[-1].sequence.n_prompt_done,
                    [len(answer.sequence.generated) for answer in answers[:-1]],
                )
            )
        return found

    async def main() -> None:
        service = Service(llm, n_slots=8)
        service.start()
        llm.engine.step = watched  # type: ignore[method-assign]
        greedy = SamplingParams(temp=0)
        for i in range(7):
            answers.append(service.generate(Request([50 + i] * 3, greedy, 300, ignore_eos=True)))
        for answer in answers:
            await answer.__anext__()
        answers.append(
            service.generate(Request([300 + i % 90 for i in range(1000)], greedy, 5, ignore_eos=True))
        )
        complete.set()
        async for _ in answers[-1]:
            pass
        await service.stop(grace=0)

    asyncio.run(main())
    first, last = (next(i for i, (done, _) in enumerate(log) if done >= n) for n in (1, 1000))
    assert last - first >= 1000 // FAIR_BATCH
    for (done, before), (next_done, after) in itertools.pairwise(log[first : last + 1]):
        assert 0 < next_done - done <= FAIR_BATCH
        assert after == [n + 1 for n in before]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("when", ["waiting", "prompt", "answer", "whole answer"])
def test_a_client_that_vanishes_frees_its_slot_within_a_step(when: str, reset: bool) -> None:
    """Counted from when the server hears of it. The step that runs then is the only one that still computes something for it."""
    cancelled: dict[Generation, int] = {}
    ended: dict[Generation, int] = {}
    with serving(endless(), n_slots=1) as server:
        service, counters = server.service, server.service.counters
        cancel, finish = service._cancel, service._finish

        def noted_cancel(generation: Generation) -> None:
            cancel(generation)
            cancelled.setdefault(generation, counters.n_steps)

        def noted_finish(generation: Generation, *args: Any) -> None:
            finish(generation, *args)
            ended[generation] = counters.n_steps

        service._cancel, service._finish = noted_cancel, noted_finish  # type: ignore[method-assign]
        leave(server, when, reset)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            answer = client.post(
                "/completion", json={"prompt": "Once", "n_predict": 3, "ignore_eos": True}
            ).json()
        assert answer["tokens_predicted"] == 3
        left = [generation for generation in cancelled if generation.sequence.stop_reason == "cancelled"]
        assert left
        for generation in left:
            assert ended[generation] - cancelled[generation] <= 1


def leave(server: Serving, when: str, reset: bool) -> None:
    """Ask for a long answer, or for two, one of which has to wait, and disconnect while it is being generated."""
    prompt = [300 + i % 90 for i in range(900)] if when == "prompt" else "Once upon a time"
    body = {"prompt": prompt, "n_predict": 90_000, "ignore_eos": True, "stream": when != "whole answer"}
    data = json.dumps(body).encode()
    sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(1 + (when == "waiting"))]
    for s in sockets:
        s.sendall(
            f"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
    until(lambda: server.service.slots()[0].generation and server.service.n_waiting == len(sockets) - 1)
    if when == "answer":
        sockets[0].recv(500)
    for s in reversed(sockets):
        if reset:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
