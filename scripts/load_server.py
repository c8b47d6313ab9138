"""`qwencli serve` under load: many clients for minutes, some of which leave, dawdle or send nonsense (scripts/load_clients.py,
scripts/load_apis.py).

    python scripts/load_server.py                              # 200 clients, 300 seconds, the demo model
    python scripts/load_server.py -m model.gguf --clients 50 --seconds 60

Prints a table, and exits with 1 if anything is wrong: an answer that is neither complete nor an error in the right format, a request
without its line in the log, slots or requests left over, memory that grows, an exit code other than 0 after SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

POLL = 0.02
"""Seconds between requests for /health."""
BLOCKED = 0.020
"""Seconds that a callback may take."""
STUCK = 5.0
"""Seconds after which the stacks of all threads are written."""
SAMPLED = 8
"""The CPU time of one in this many callbacks is measured."""
POLLED = ("/health", "/metrics", "/slots")
GROWTH = 0.10
"""By how much resident memory may grow between the first third and the end."""
FEW = 60
"""Runs shorter than this many seconds say nothing about growth."""


class Server:
    """`qwencli serve` in a child process, in which `watched` observes the event loop."""

    def __init__(self, folder: Path, args: list[str]) -> None:
        self.log, self.report = folder / "log", folder / "report"
        self._out = self.log.open("wb")
        command = [
            sys.executable,
            __file__,
            "--watched",
            str(self.report),
            "serve",
            "--port",
            "0",
            "--log-format",
            "json",
            "--metrics",
            *args,
        ]
        self.process = subprocess.Popen(command, stderr=self._out, stdout=self._out)
        self.port = self._port()

    def _port(self) -> int:
        for _ in range(1200):
            if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.log.read_text()):
                return int(found[1])
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise SystemExit(f"no server: {self.log.read_text()}")

    def get(self, path: str) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as s:
            s.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: s.recv(1 << 16), b"")).partition(b"\r\n\r\n")[2]

    def metrics(self) -> dict[str, float]:
        lines = (
            line.split(" ") for line in self.get("/metrics").decode().splitlines() if not line.startswith("#")
        )
        return {name.removeprefix("llamacpp:"): float(value) for name, value in lines}

    def rss(self) -> float:
        """Resident memory in MB; 0 if there is no /proc."""
        try:
            found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        except OSError:
            return 0.0
        return int(found[1]) / 1024 if found else 0.0

    def end(self) -> int:
        """Send SIGTERM while answers are being generated. Returns the exit code."""
        body = json.dumps(
            {"prompt": "Once upon a time", "n_predict": 200, "ignore_eos": True, "stream": True}
        ).encode()
        sockets = [socket.create_connection(("127.0.0.1", self.port), timeout=60) for _ in range(3)]
        for s in sockets:
            s.sendall(
                f"POST /completion HTTP/1.1\r\nHost: x.localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            s.recv(100)
        self.process.send_signal(signal.SIGTERM)
        ends = [b"".join(iter(lambda s=s: s.recv(1 << 16), b"")) for s in sockets]  # type: ignore[misc]
        code = self.process.wait(60)
        self._out.close()
        assert all(b'"stop":true' in end and end.endswith(b"0\r\n\r\n") for end in ends), (
            "answers were cut off by SIGTERM"
        )
        return code


def watched(report: str, args: list[str]) -> None:
    """Run qwencli, and write to `report` what its event loop did: how long callbacks took, and the CPU time of some."""
    calls: list[tuple[float, float, str]] = []
    pauses: list[float] = []
    armed = [0.0]
    stacks = Path(f"{report}.stuck").open("w")  # noqa: SIM115 - open as long as the process runs
    count = [0]
    run_handle = asyncio.events.Handle._run  # type: ignore[attr-defined]
    began = [0.0]

    def run(self: Any) -> None:
        count[0] += 1
        start = time.perf_counter()
        cpu = 0.0 if count[0] % SAMPLED else time.thread_time()  # reading the CPU time is slow
        if start > armed[0] + 0.5:
            armed[0] = start
            faulthandler.dump_traceback_later(STUCK, file=stacks)
        run_handle(self)
        took = time.perf_counter() - start
        if took > BLOCKED / 4:
            calls.append((took, time.thread_time() - cpu if cpu else 0.0, named(self)))

    def collected(phase: str, _: dict[str, Any]) -> None:
        if phase == "start":
            began[0] = time.thread_time()  # CPU time, as other threads may run before the collection ends
        elif len(pauses) < 100_000:
            pauses.append(time.thread_time() - began[0])

    def write() -> None:
        largest = sorted(calls, key=lambda call: -call[1])
        walls = sorted(call[0] for call in calls)
        cpus = sorted(call[1] for call in calls)
        figures = {
            "n": count[0],
            "wall": walls,
            "cpu": cpus,
            "largest": largest[:12],
            "gc": max(pauses, default=0),
        }
        Path(report).write_text(json.dumps(figures))

    asyncio.events.Handle._run = run  # type: ignore[attr-defined]
    gc.callbacks.append(collected)
    from qwencli import cli
    from qwencli.server import run as runner

    startup = runner.Server.startup

    async def start_up(*args: Any, **kwargs: Any) -> None:
        await startup(*args, **kwargs)
        calls.clear()  # before, there are no clients that wait
        pauses.clear()

    runner.Server.startup = start_up  # type: ignore[method-assign]
    code = 1
    try:
        code = cli.main(args)
    finally:
        write()
    sys.exit(code)


def named(handle: Any) -> str:
    """Say what a callback ran; for a task its coroutines, from the outermost to the one in which it is waiting."""
    owner = getattr(handle._callback, "__self__", None)
    if not isinstance(owner, asyncio.Task):
        return str(getattr(handle._callback, "__qualname__", handle._callback))
    names, coroutine = [], owner.get_coro()
    while hasattr(coroutine, "cr_code"):
        names.append(
            f"{coroutine.__qualname__}:{coroutine.cr_frame.f_lineno if coroutine.cr_frame else 'end'}"
        )
        coroutine = coroutine.cr_await
    return " > ".join(names[-5:])


def poll(port: int) -> None:
    """Ask for /health until stdin ends, then print how long each answer took, and by how much this process's own sleeps were too long."""
    done = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
    took, late = [], []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as s:
        while not done.is_set():
            start = time.perf_counter()
            time.sleep(POLL)
            asked = time.perf_counter()
            late.append(asked - start - POLL)
            s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += (piece := s.recv(4096))
                assert piece, "/health: the connection was closed"
            took.append(time.perf_counter() - asked)
    print(json.dumps([took, late]))


def shown(seconds: list[float]) -> str:
    values = sorted(seconds) or [0.0]
    quantiles = (
        (f"p{100 * q:g}", values[min(len(values) - 1, int(q * len(values)))]) for q in (0.5, 0.9, 0.99, 0.999)
    )
    return (
        ", ".join(f"{name} {1e3 * value:.1f}" for name, value in quantiles)
        + f", max {1e3 * values[-1]:.1f} ms ({len(values)})"
    )


def sample(server: Server, stop: threading.Event, samples: list[tuple[float, float]]) -> None:
    """Record memory and the size of the cache every second."""
    ended = False
    while not ended:
        samples.append((server.rss(), server.metrics()["kv_cache_capacity_tokens"]))
        ended = stop.wait(1)


def unlogged(log: str, seen: dict[str, int | None]) -> tuple[list[str], int]:
    """Return requests without exactly one line in the log that has the status the client saw; and the number of tracebacks."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    statuses: dict[str, list[int]] = {}
    for line in lines:
        statuses.setdefault(line["id"], []).append(line["status"])
    silent = {line["id"] for line in lines if line["path"] in POLLED}
    bad = [
        f"{id}: the client saw {status}, the log has {statuses.get(id)}"
        for id, status in seen.items()
        if status is not None and statuses.get(id) != [status] and not (id not in statuses and status == 200)
    ]
    bad += [
        f"{id}: {len(found)} lines" for id, found in statuses.items() if len(found) > 1 and id not in silent
    ]
    return bad, log.count("Traceback")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default="demo")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--timeout",
        type=float,
        default=20,
        help="the server's --timeout: how many seconds clients may dawdle",
    )
    parser.add_argument("--keep", type=Path, help="folder for the server's log and report")
    options, more = parser.parse_known_args()
    folder = options.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(folder, ["-m", options.model, "--timeout", str(options.timeout), *more])
    import load_apis
    import load_clients

    tally = load_clients.Tally()
    samples: list[tuple[float, float]] = []
    stop = threading.Event()
    began = time.monotonic()
    poller = subprocess.Popen(
        [sys.executable, __file__, "--poll", str(server.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    sampler = threading.Thread(target=sample, args=(server, stop, samples))
    sampler.start()
    try:
        asyncio.run(load_apis.first_answers(server.port, tally))
        asyncio.run(
            load_clients.run(
                server.port, options.clients, options.seconds, options.seed, tally, load_apis.KINDS
            )
        )
        took = time.monotonic() - began
        health, late = json.loads(poller.communicate(b"")[0])
    finally:
        stop.set()
        sampler.join()
        if sys.exc_info()[0]:
            server.process.kill()
    problems = [*tally.problems, *left_over(server)]
    print_table(tally, took)
    metrics = server.metrics()
    code = server.end()
    log = server.log.read_text(errors="replace")
    bad, tracebacks = unlogged(log, tally.seen)
    third = samples[len(samples) // 3 :]
    first, last = third[0][0], max(rss for rss, _ in third[-10:])
    problems += (
        bad
        + ([f"{tracebacks} tracebacks in {server.log}"] if tracebacks else [])
        + ([f"exit code {code}"] if code else [])
    )
    if took >= FEW and last > first * (1 + GROWTH):
        problems.append(f"memory grew from {first:.0f} to {last:.0f} MB")
    report = json.loads(server.report.read_text())
    print(
        f"memory      {samples[0][0]:.0f} MB at the start, {first:.0f} after a third, {last:.0f} at the end, "
        f"{max(rss for rss, _ in samples):.0f} at most"
    )
    print(
        f"cache       {max(s[1] for s in samples):.0f} positions at most, {third[0][1]:.0f} after a third, "
        f"{metrics['kv_cache_tokens']:.0f} of {metrics['kv_cache_sequences']:.0f} sequences kept"
    )
    print(
        f"generated   {metrics['tokens_predicted_total']:.0f} tokens, {metrics['prompt_tokens_total']:.0f} of prompts, "
        f"{metrics['prompt_tokens_cached_total']:.0f} cached, {metrics['n_busy_slots_per_decode']:.2f} slots busy"
    )
    print(f"answers     {shown(tally.seconds)}")
    print(f"/health     {shown(health)}")
    print(f"sleeps late {shown(late)}: in a process that only sleeps, for comparison")
    for name in "wall", "cpu":
        n = sum(took > BLOCKED for took in report[name])
        longest = max([0, *report[name]])
        print(
            f"loop, {name:<5} {n} of {report['n']} callbacks above {1e3 * BLOCKED:.0f} ms, longest {1e3 * longest:.1f} ms"
        )
    for wall, cpu, name in report["largest"][:6]:
        print(f"            {1e3 * wall:6.1f} ms, {1e3 * cpu:6.1f} of CPU: {name}")
    print(f"gc          longest {1e3 * report['gc']:.1f} ms of CPU")
    print(f"end         SIGTERM with 3 answers in progress: all complete, exit code {code}")
    for problem, n in Counter(re.sub(r"\d{4,}", "N", p)[:400] for p in problems).most_common(20):
        print(f"PROBLEM ({n}): {problem}")
    return 1 if problems else 0


def left_over(server: Server) -> list[str]:
    """What the server still has to do a minute after all clients have gone."""
    end = time.monotonic() + 60
    while True:
        busy = [slot["id"] for slot in json.loads(server.get("/slots")) if slot["is_processing"]]
        figures = {name: server.metrics()[f"requests_{name}"] for name in ("processing", "deferred")}
        if not busy and not any(figures.values()):
            return []
        if time.monotonic() > end:
            return [f"slots {busy} are busy, {figures}"]
        time.sleep(0.1)


def print_table(tally: Any, took: float) -> None:
    columns = ["answered", "refused", "busy", "left", "wrong"]
    print(
        f"{took:.0f} seconds, {len(tally.seen)} requests\n{'':16}"
        + "".join(f"{name:>10}" for name in columns)
    )
    for kind in sorted({kind for kind, _ in tally.outcomes}):
        print(f"{kind:<16}" + "".join(f"{tally.outcomes[kind, name]:>10}" for name in columns))
    total = Counter[str]()
    for (_, name), n in tally.outcomes.items():
        total[name] += n
    print(f"{'all':<16}" + "".join(f"{total[name]:>10}" for name in columns))
    print("statuses    " + ", ".join(f"{status}: {n}" for status, n in sorted(tally.statuses.items())))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watched"]:
        watched(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:2] == ["--poll"]:
        poll(int(sys.argv[2]))
    else:
        os.environ.setdefault("PYTHONUNBUFFERED", "1")
        sys.exit(main())
