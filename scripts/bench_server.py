#!/usr/bin/env python3
"""The speed of `qwencli serve` as its clients see it, compared with llama.cpp's own batches in the same run.

    scripts/bench_server.py model.gguf -t 2 --peer-python path/to/python

It measures 8 clients that generate at once; a prompt of 128 tokens, alone and while 7 others generate; and a chat's second turn after 2,000
tokens. Meanwhile, a client that only asks for /health shows how long the event loop is busy. Prompts are random tokens; figures are medians
of the runs. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PEER = Path(__file__).with_name("llama_cpp_speed.py")
N_CLIENTS = 8
N_CTX = 4096
N_PROMPT = 128
N_NEW = 64
N_VOCAB = 50_000


class Server:
    """A `qwencli serve` process."""

    def __init__(self, model: str, threads: int) -> None:
        n_ctx = str(N_CTX * N_CLIENTS)  # divided among the clients
        options = ["-m", model, "-t", str(threads), "--port", "0", "-np", str(N_CLIENTS), "-c", n_ctx]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qwencli", "serve", *options], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr
        for line in self._process.stderr:
            if found := re.search(r"http://([\d.]+):(\d+)", line):
                self.address = found[1], int(found[2])
                break
        threading.Thread(target=self._process.stderr.read, daemon=True).start()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def times(self, prompt: list[int], n: int) -> list[float]:
        """Return when each token of an answer arrived, in seconds after the request."""
        connection = http.client.HTTPConnection(*self.address)
        body = {
            "prompt": prompt,
            "n_predict": n,
            "ignore_eos": True,
            "stream": True,
            "return_tokens": True,
            "temperature": 0.8,
        }
        start = time.perf_counter()
        connection.request("POST", "/completion", json.dumps(body))
        times: list[float] = []
        for line in connection.getresponse():
            if line.startswith(b"data: "):
                times += [time.perf_counter() - start] * len(json.loads(line[6:]).get("tokens") or [])
        connection.close()
        return times

    @contextmanager
    def writing(self, n: int) -> Iterator[None]:
        """Have n clients generate until the block ends."""
        done, threads = threading.Event(), []

        def write(seed: int) -> None:
            while not done.is_set():
                self.times(tokens(16, seed), 256)

        for seed in range(n):
            threads.append(threading.Thread(target=write, args=(seed,), daemon=True))
            threads[-1].start()
        time.sleep(2)
        yield
        done.set()
        for thread in threads:
            thread.join()

    @contextmanager
    def watched(self, lags: list[float]) -> Iterator[None]:
        """Keep asking for /health until the block ends. The seconds that each answer took are added to `lags`."""
        done = threading.Event()

        def watch() -> None:
            connection = http.client.HTTPConnection(*self.address)
            while not done.wait(0.005):
                start = time.perf_counter()
                connection.request("GET", "/health")
                connection.getresponse().read()
                lags.append(time.perf_counter() - start)

        thread = threading.Thread(target=watch)
        thread.start()
        yield
        done.set()
        thread.join()


def tokens(n: int, seed: object) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(N_VOCAB) for _ in range(n)]


def together(server: Server, run: int) -> float:
    """Return the tokens per second of all clients together, while all of them are generating."""
    times: list[list[float]] = [[] for _ in range(N_CLIENTS)]

    def client(i: int) -> None:
        times[i] = server.times(tokens(N_PROMPT, f"{run} {i}"), N_NEW)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(N_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    start, end = max(t[0] for t in times), min(t[-1] for t in times)
    return sum(start < t <= end for client_times in times for t in client_times) / (end - start)


def second_turn(server: Server, run: int) -> float:
    prompt = tokens(2000, f"turn {run}")
    server.times(prompt, 1)
    return server.times([*prompt, *tokens(20, f"more {run}")], 1)[0]


def peer(python: str, model: str, threads: int) -> float:
    """Return llama.cpp's tokens per second, with the same number of sequences at once."""
    command = [python, PEER, model, threads, "speed", 0, N_NEW, N_PROMPT, N_CLIENTS]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True)
    return float(json.loads(done.stdout)["t/s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--runs", type=int, default=3)
    parser.add_argument("--peer-python", help="a Python with llama-cpp-python, for the comparison")
    args = parser.parse_args()
    server = Server(args.model, args.threads)
    lags: list[float] = []
    sums = []
    alone = []
    busy = []
    turns = []
    peers = []
    try:
        for run in range(args.runs):
            sums.append(together(server, run))
            alone.append(server.times(tokens(N_PROMPT, f"alone {run}"), 1)[0])
            with server.writing(7), server.watched(lags):
                busy.append(server.times(tokens(N_PROMPT, f"busy {run}"), 1)[0])
            turns.append(second_turn(server, run))
            if args.peer_python:
                peers.append(peer(args.peer_python, args.model, args.threads))
    finally:
        server.close()
    median = statistics.median
    print(f"{N_CLIENTS} clients together: {median(sums):.1f} t/s {[round(s, 1) for s in sums]}")
    if args.peer_python:
        print(
            f"llama.cpp, {N_CLIENTS} sequences: {median(peers):.1f} t/s; ratio {median(sums) / median(peers):.2f}"
        )
    first, later = median(alone), median(busy)
    print(
        f"first token of a prompt of {N_PROMPT}: alone {first:.3f} s, while 7 others generate {later:.3f} s, ratio {later / first:.2f}"
    )
    print(f"second turn after 2,000 tokens: {median(turns):.3f} s")
    lags.sort()
    print(
        f"/health meanwhile: median {1e3 * median(lags):.1f} ms, 99 % {1e3 * lags[int(0.99 * len(lags))]:.1f}, most {1e3 * lags[-1]:.1f}"
    )


if __name__ == "__main__":
    main()
