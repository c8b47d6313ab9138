"""`qwencli serve` as a command: how it starts, what it says, and how it ends."""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from command_line import QWENCLI, Call, process

posix = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no SIGTERM that a process could handle"
)


class Server:
    """A running command: its process, its URL, and what it has written to stderr so far."""

    def __init__(self, *args: object) -> None:
        self.process = subprocess.Popen(
            [QWENCLI, "serve", "--port", "0", *map(str, args)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.url = ""
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if match := re.match(r"listening on (https?://\S+) ", line):
                self.url = match[1]
                break
        self._reader = threading.Thread(
            target=lambda: self.lines.extend(line.rstrip("\n") for line in self.process.stderr or ())
        )
        self._reader.start()

    def end(self, kind: int = signal.SIGTERM) -> int:
        """Send a signal, and wait. Returns the exit code."""
        self.process.send_signal(kind)
        code = self.process.wait(60)
        self._reader.join()
        return code


@contextmanager
def serve(*args: object) -> Iterator[Server]:
    server = Server(*args)
    try:
        yield server
    finally:
        server.process.kill()
        server.end(signal.SIGTERM)
        for pipe in server.process.stdout, server.process.stderr:
            assert pipe
            pipe.close()


@posix
def test_it_answers_as_soon_as_it_says_where_and_ends_when_told() -> None:
    options = (
        "--alias",
        "tiny",
        "-n",
        3,
        "-np",
        2,
        "-c",
        128,
        "--log-format",
        "json",
        "--metrics",
        "--slots",
        "--jinja",
        "-cb",
    )
    with serve(*options) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert server.lines[-1] == f"listening on {server.url} (2 at once, context 256); Ctrl-C ends"
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny"]
        answer = client.post("/completion", json={"prompt": "Once upon a time", "temperature": 0}).json()
        assert (answer["tokens_predicted"], answer["stop_type"]) == (3, "limit")
        assert len(client.get("/slots").json()) == 2
        assert client.get("/slots").json()[0]["n_ctx"] == 256
        assert server.end() == 0
        assert server.process.stdout
        assert server.process.stdout.read() == ""
        log = [json.loads(line) for line in server.lines[2:]]
        assert [(line["path"], line["status"]) for line in log] == [("/v1/models", 200), ("/completion", 200)]
        assert "Once" not in "".join(server.lines)
        assert server.lines[0].startswith("model: ")
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url, timeout=60)


@contextmanager
def streaming(server: Server, n: int = 50_000) -> Iterator[Iterator[str]]:
    """The lines of a long answer, the first of which has arrived. Needs a longer context."""
    body = {
        "prompt": "Once upon a time",
        "temperature": 0,
        "ignore_eos": True,
        "max_tokens": n,
        "stream": True,
    }
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        yield lines


def until_refused(server: Server) -> None:
    """Wait until a signal has been heard."""
    with suppress(httpx.HTTPError):
        while True:
            httpx.get(server.url + "/health", timeout=60)


@posix
def test_a_signal_lets_a_running_answer_finish() -> None:
    with serve("-c", 100_000, "--grace", 1000) as server, streaming(server, 1000) as lines:
        server.process.send_signal(signal.SIGTERM)
        until_refused(server)
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(60) == 0


@posix
def test_without_grace_an_answer_ends_with_an_error() -> None:
    with serve("-c", 100_000, "--grace", 0) as server, streaming(server) as lines:
        server.process.send_signal(signal.SIGINT)
        rest = [line for line in lines if line]
        assert (
            json.loads(rest[-1].removeprefix("data: "))["error"]["message"] == "the server is shutting down"
        )
        assert server.process.wait(60) == 0


@posix
def test_a_second_signal_ends_at_once() -> None:
    with (
        serve("-c", 100_000, "--grace", 1000) as server,
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as s,
    ):
        s.sendall(
            b"POST /probe HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"
        )  # a body that never comes
        with streaming(server):
            server.process.send_signal(signal.SIGTERM)
            until_refused(server)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) != 0


@posix
def test_quiet_is_quiet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    server = subprocess.Popen([QWENCLI, "serve", "-q", "--port", port], stderr=subprocess.PIPE)
    while server.poll() is None:
        with suppress(httpx.ConnectError):
            assert httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=60).status_code == 200
            break
        time.sleep(0.05)
    server.send_signal(signal.SIGINT)
    assert server.communicate(timeout=60)[1] == b""
    assert server.returncode == 0


# What keeps it from starting


def test_a_port_that_is_taken_is_named_in_one_line(call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = call("serve", "--port", port)
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert result.err.startswith(f"qwencli: error: cannot listen on 127.0.0.1 port {port}: ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: not an address"),
        (["--host", "203.0.113.1"], "cannot listen on 203.0.113.1 port 8080: "),
        (["--ssl-key-file", "no.pem", "--ssl-cert-file", "no.pem"], "no.pem: No such file or directory"),
        (["--ssl-key-file", "bad.pem"], "give both --ssl-key-file and --ssl-cert-file, or none of them"),
        (
            ["--ssl-key-file", "bad.pem", "--ssl-cert-file", "bad.pem"],
            "bad.pem, bad.pem: not a certificate and its key in PEM form",
        ),
        (["--api-key-file", "no.txt"], "no.txt: cannot be read: No such file or directory"),
        (["--api-key-file", "empty.txt"], "empty.txt: expected at least one key"),
        (["--api-key", ""], "--api-key: expected at least one key"),
        (["--api-key", "caf\u00e9"], "--api-key: expected at least one key, of printable ASCII characters"),
    ],
)
def test_what_cannot_be_is_one_line(call: Call, args: list[str], message: str) -> None:
    Path("bad.pem").write_text("nothing")
    Path("empty.txt").write_text("\n\n")
    result = call("serve", *args)
    assert result.code == 1
    assert result.err.startswith(f"qwencli: error: {message}")
    assert result.err.count("\n") == 1


def test_without_its_packages_it_says_what_to_install(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("qwencli.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = call("serve")
    assert result.code == 1
    assert (
        result.err == 'qwencli: error: the server needs the package uvicorn: pip install "qwencli[server]"\n'
    )


@posix
def test_an_open_door_is_warned_of(tmp_path: Path) -> None:
    with serve("--host", "0.0.0.0") as server:
        assert (
            "qwencli: warning: anyone who can reach 0.0.0.0 can use this server: --api-key asks for a key"
            in server.lines
        )
        assert server.url.startswith("http://127.0.0.1:")
        assert httpx.get(server.url + "/health", headers={"Host": "any.example"}, timeout=60).json() == {
            "status": "ok"
        }
    keys = tmp_path / "keys.txt"
    keys.write_text("one\n\n two \n")
    with serve("--host", "0.0.0.0", "--api-key-file", keys, "--no-ui") as server:
        assert not [line for line in server.lines if "warning" in line]
        for key, status in {"one": 200, "two": 200, " two": 200, "three": 401}.items():
            assert (
                httpx.get(
                    server.url + "/props", headers={"Authorization": f"Bearer {key}"}, timeout=60
                ).status_code
                == status
            )
        assert httpx.get(server.url + "/", headers={"X-Api-Key": "one"}, timeout=60).status_code == 404


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and a certificate for localhost that it signs itself."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl, to make a certificate")
    key, cert = (tmp_path_factory.mktemp("tls") / name for name in ("key.pem", "cert.pem"))
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            key,
            "-out",
            cert,
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ],
        check=True,
        capture_output=True,
    )
    return key, cert


@posix
def test_https(certificate: tuple[Path, Path]) -> None:
    key, cert = certificate
    with serve("--ssl-key-file", key, "--ssl-cert-file", cert) as server:
        assert server.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(cert))
        assert httpx.get(server.url + "/health", verify=trusting, timeout=60).json() == {"status": "ok"}
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url.replace("https", "http") + "/health", timeout=60)
        assert httpx.get(server.url + "/health", verify=trusting, timeout=60).status_code == 200


def test_a_key_that_asks_for_a_password_is_an_error(
    certificate: tuple[Path, Path], tmp_path: Path, call: Call
) -> None:
    key, cert = certificate
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "ec", "-in", key, "-aes256", "-passout", "pass:x", "-out", locked],
        check=True,
        capture_output=True,
    )
    result = call("serve", "--ssl-key-file", locked, "--ssl-cert-file", cert)
    assert result.code == 1
    assert "without a password" in result.err


def test_options_have_llama_servers_spellings(call: Call) -> None:
    shown = call("serve", "--help").out
    for option in (
        "--model",
        "--host",
        "--port",
        "--parallel",
        "--ctx-size",
        "--n-predict",
        "--threads",
        "--api-key",
        "--api-key-file",
        "--ssl-key-file",
        "--ssl-cert-file",
        "--alias",
        "--timeout",
        "--chat-template",
        "--pooling",
        "--temp",
        "--top-k",
    ):
        assert option in shown


def test_the_environment_has_a_key(tmp_path: Path) -> None:
    done = process(
        "serve", "--port", "0", "--ssl-key-file", "x", env=os.environ | {"LLAMA_API_KEY": "\u00e9"}
    )
    assert b"--api-key: expected at least one key, of printable ASCII characters" in done.stderr
