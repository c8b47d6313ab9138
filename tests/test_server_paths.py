"""Where the server's paths begin, and a folder of files in place of its page."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving import Serving, serving

from qwencli.errors import InputError
from qwencli.server.http.folder import Folder, type_of

PREFIX = "/v2/qwen"


@pytest.fixture(scope="module")
def prefixed() -> Iterator[Serving]:
    with serving(api_prefix=PREFIX, api_keys=("key",)) as server:
        yield server


def test_everything_is_under_the_prefix_the_page_too(prefixed: Serving) -> None:
    with httpx.Client(base_url=prefixed.url + PREFIX, timeout=60) as client:
        for path in "/health", "/", "/main.js", "/style.css":
            assert client.get(path).status_code == 200, path
        assert client.get("/v1/models").status_code == 401
        client.headers["Authorization"] = "Bearer key"
        assert client.get("/v1/models").status_code == 200
        body = {"prompt": "Once upon a time", "n_predict": 2}
        assert client.post("/completion", json=body).json()["tokens_predicted"] == 2
        assert client.get("/openapi.json").json()["servers"] == [{"url": PREFIX}]
        assert client.get("/nothing").status_code == 404
        assert client.get("/v1/completions").status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/v1/models",
        "/v2",
        "/v2/",
        "/v2/qwenhealth",
        "/v2/qwen2/health",
        "/V2/QWEN/health",
        "//v2/qwen/health",
    ],
)
def test_nothing_is_elsewhere(prefixed: Serving, path: str) -> None:
    with socket.create_connection(("127.0.0.1", prefixed.port), timeout=60) as s:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: key\r\nConnection: close\r\n\r\n"
        s.sendall(head.encode())
        assert s.makefile("rb").read().startswith(b"HTTP/1.1 404 "), path


def test_elsewhere_nobody_gets_in_without_a_key(prefixed: Serving) -> None:
    assert httpx.get(prefixed.url + "/health", timeout=60).status_code == 401


def test_errors_have_the_form_of_the_api_under_the_prefix(prefixed: Serving) -> None:
    url, key = prefixed.url + PREFIX, {"Authorization": "Bearer key"}
    assert isinstance(httpx.get(url + "/api/nothing", headers=key, timeout=60).json()["error"], str)
    assert "param" in httpx.get(url + "/v1/nothing", headers=key, timeout=60).json()["error"]


def test_the_prefix_without_a_slash_leads_to_the_page(prefixed: Serving) -> None:
    key = {"Authorization": "Bearer key"}
    answer = httpx.get(prefixed.url + PREFIX, headers=key, timeout=60)
    assert (answer.status_code, answer.headers["location"]) == (308, PREFIX + "/")


# A folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """site/ is served, and secret.txt next to it is not."""
    top = tmp_path_factory.mktemp("top")
    (top / "secret.txt").write_text("secret")
    (top / "site-too").mkdir()
    (top / "site-too" / "index.html").write_text("secret")
    site = top / "site"
    (site / "sub").mkdir(parents=True)
    (site / "index.html").write_text("<p>mine")
    (site / "sub" / "index.html").write_text("<p>below")
    (site / "app.mjs").write_text("export {}")
    (site / "größe 1.txt").write_text("text")
    (site / "data.unknown").write_bytes(bytes(range(256)))
    (site / "health").write_text("not this")
    (site / "inside.txt").symlink_to("sub/index.html")
    (site / "out.txt").symlink_to("../secret.txt")
    (site / "outside").symlink_to("..")
    if hasattr(os, "mkfifo"):
        os.mkfifo(site / "fifo")
    return site


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Serving]:
    with serving(static_path=folder, api_keys=("key",)) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "content", "type"),
    [
        ("/", b"<p>mine", "text/html"),
        ("/index.html", b"<p>mine", "text/html"),
        ("/sub/", b"<p>below", "text/html"),
        ("/app.mjs", b"export {}", "text/javascript"),
        ("/gr%C3%B6%C3%9Fe%201.txt", b"text", "text/plain"),
        ("/data.unknown", bytes(range(256)), "application/octet-stream"),
        ("/inside.txt", b"<p>below", "text/html"),
        ("/sub/../app.mjs", b"export {}", "text/javascript"),
    ],
)
def test_files_of_the_folder_need_no_key(site: Serving, path: str, content: bytes, type: str) -> None:
    answer = httpx.get(site.url + path, timeout=60)
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["content-type"].partition(";")[0] == type
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert httpx.head(site.url + path, timeout=60).headers["content-length"] == str(len(content))


def test_endpoints_come_before_files(site: Serving) -> None:
    assert httpx.get(site.url + "/health", timeout=60).json() == {"status": "ok"}
    assert httpx.get(site.url + "/v1/models", timeout=60).status_code == 401
    assert httpx.get(site.url + "/main.js", timeout=60).status_code == 401  # a file of the page


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/sub/../../secret.txt",
        "/..\\secret.txt",
        "/%5c..%5csecret.txt",
        "/out.txt",
        "/outside/secret.txt",
        "/outside/",
        "/outside/site-too/",
        "/../site-too/index.html",
        "//etc/passwd",
        "/%2fetc/passwd",
        "/%00",
        "/index.html%00.txt",
        "/fifo",
        "/" + "a" * 5000,
        "/" + "a/" * 3000,
        "/%ff%fe",
        "/none.txt",
    ],
)
def test_nothing_else_is_found(site: Serving, folder: Path, path: str) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=60) as s:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: key\r\nConnection: close\r\n\r\n"
        s.sendall(head.encode())
        answer = s.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 404 "), path
    assert b"secret" not in answer
    assert str(folder).encode() not in answer


def test_a_folder_without_a_slash_leads_to_its_page(site: Serving) -> None:
    answer = httpx.get(site.url + "/sub", headers={"X-Api-Key": "key"}, timeout=60, follow_redirects=True)
    assert (answer.url.path, answer.content) == ("/sub/", b"<p>below")


def test_files_are_only_read(site: Serving) -> None:
    for method in "POST", "PUT", "DELETE":
        answer = httpx.request(method, site.url + "/index.html", headers={"X-Api-Key": "key"}, timeout=60)
        assert answer.status_code == 404
        assert httpx.request(method, site.url + "/index.html", timeout=60).status_code == 401


def test_under_a_prefix(folder: Path) -> None:
    with serving(static_path=folder, api_prefix="/a", api_keys=("key",)) as server:
        assert httpx.get(server.url + "/a/", timeout=60).content == b"<p>mine"
        assert httpx.get(server.url + "/a/app.mjs", timeout=60).content == b"export {}"
        assert httpx.get(server.url + "/app.mjs", timeout=60).status_code == 401
        assert httpx.get(server.url + "/a/out.txt", timeout=60).status_code == 401


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in "file", "none":
        with pytest.raises(InputError, match=r"^--path .*: not a folder$"):
            Folder(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "type"),
    [
        ("a.js", "text/javascript"),
        ("A.JS", "text/javascript"),
        ("a.css", "text/css"),
        ("a.json", "application/json"),
        ("a.wasm", "application/wasm"),
        ("a.svg", "image/svg+xml"),
        ("a.png", "image/png"),
        ("a.jpg", "image/jpeg"),
        ("a.woff2", "font/woff2"),
        ("a.webmanifest", "application/manifest+json"),
        ("js", "application/octet-stream"),
    ],
)
def test_types_are_those_that_browsers_expect(name: str, type: str) -> None:
    assert type_of("/site/" + name).partition(";")[0] == type
