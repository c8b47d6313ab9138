"""Where the server listens: several addresses, unix sockets, ports that are shared."""

import os
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from serving import serving

from qwencli.errors import InputError, QwenError
from qwencli.server import run
from qwencli.server.sockets import bare, close, is_loopback

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no unix sockets")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere it means something else")


@contextmanager
def listening(hosts: Sequence[str], port: int = 0, reuse_port: bool = False) -> Iterator[list[socket.socket]]:
    sockets = run.listen(hosts, port, reuse_port)
    try:
        yield sockets
    finally:
        close(sockets)


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A path that is short wherever temporary folders are."""
    monkeypatch.chdir(tmp_path)
    return "a.sock"


# Addresses


def test_all_hosts_get_one_port() -> None:
    hosts = ["127.0.0.1", "127.0.0.2"]
    with listening(hosts) as sockets:
        names = [s.getsockname() for s in sockets]
        assert [name[0] for name in names] == hosts
        assert names[0][1] == names[1][1] > 0
        assert (
            run.url(sockets, hosts, False)
            == f"http://127.0.0.1:{names[0][1]}, http://127.0.0.2:{names[0][1]}"
        )


def test_a_port_that_is_taken_at_one_host_is_an_error_and_leaves_nothing_bound() -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(QwenError, match=rf"^cannot listen on 127\.0\.0\.2 port {port}: "):
            run.listen(["127.0.0.1", "127.0.0.2"], port)
        with listening(["127.0.0.1"], port):
            pass


def test_a_free_port_is_free_at_all_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first port that the system gives is taken at the second host."""
    from qwencli.server import sockets

    bound, taken = sockets.bound, []

    def first_taken(family: int, address: tuple[str, int], *rest: bool) -> socket.socket:
        if address[0] == "127.0.0.2" and not taken:
            taken.append(socket.create_server(address))
        return bound(family, address, *rest)

    monkeypatch.setattr(sockets, "bound", first_taken)
    with listening(["127.0.0.1", "127.0.0.2"]) as found:
        assert found[0].getsockname()[1] == found[1].getsockname()[1] != taken[0].getsockname()[1]
    taken[0].close()


def test_a_host_that_is_named_twice_is_bound_once() -> None:
    with listening(["127.0.0.1", "127.0.0.1"]) as sockets:
        assert len(sockets) == 1


def test_every_host_has_to_be_one_of_this_machine() -> None:
    with pytest.raises(QwenError, match=r"^cannot listen on 203\.0\.113\.1 port 0: "):
        run.listen(["127.0.0.1", "203.0.113.1"], 0)
    with pytest.raises(InputError, match=r"^--host no\.such\.host\.invalid: not an address"):
        run.listen(["127.0.0.1", "no.such.host.invalid"], 0)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(("::1", 0))
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")


@ipv6
def test_ipv6_with_brackets_or_without() -> None:
    for host in "::1", "[::1]":
        with listening([host]) as sockets:
            assert run.url(sockets, [host], True) == f"https://[::1]:{sockets[0].getsockname()[1]}"


@ipv6
@linux
def test_all_of_ipv6_is_all_of_ipv4_too_unless_that_is_named() -> None:
    with listening(["::"]) as sockets:
        sockets[0].listen()
        socket.create_connection(("127.0.0.1", sockets[0].getsockname()[1]), timeout=60).close()
    with listening(["::", "0.0.0.0"]) as sockets:
        for s in sockets:
            s.listen()
        assert len(sockets) == 2


@linux
def test_servers_may_share_a_port() -> None:
    with listening(["127.0.0.1"], reuse_port=True) as first:
        port = first[0].getsockname()[1]
        first[0].listen()
        with listening(["127.0.0.1"], port, reuse_port=True) as second:
            second[0].listen()
        with pytest.raises(QwenError):
            run.listen(["127.0.0.1"], port)


@pytest.mark.parametrize(
    ("host", "only_here"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("/run/a.sock", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("example.org", False),
    ],
)
def test_which_hosts_only_this_machine_reaches(host: str, only_here: bool) -> None:
    assert is_loopback(host) == only_here
    assert bare(bare(host)) == bare(host)


# Unix sockets


@posix
def test_a_server_on_a_unix_socket(path: str) -> None:
    with serving(hosts=("127.0.0.1", path)) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert stat.S_IMODE(os.stat(path).st_mode) & 0o007 == 0
        with httpx.Client(transport=httpx.HTTPTransport(uds=path), timeout=60) as client:
            for host in "localhost", "docker", "any.example":  # no page of a site reaches it
                assert client.get(f"http://{host}/health").json() == {"status": "ok"}
            refused = client.get("http://localhost/health", headers={"Origin": "https://evil.example"})
            assert refused.status_code == 403
        assert httpx.get(server.url + "/health", headers={"Host": "docker"}, timeout=60).status_code == 403
    assert not os.path.exists(path)


@posix
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o640), (0o007, 0o660), (0, 0o660), (0o077, 0o600)])
def test_others_never_get_in_and_the_group_where_the_umask_lets_it(path: str, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with listening([path]):
            assert stat.S_IMODE(os.stat(path).st_mode) == mode
    finally:
        os.umask(before)


@posix
def test_what_a_dead_server_left_is_replaced_and_a_live_one_is_not(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with listening([path]):
        with pytest.raises(QwenError, match=r"^cannot listen on a\.sock: another server does; "):
            run.listen([path], 0)
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(path)
    assert not os.path.exists(path)


@posix
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_stays_as_it_is(path: str, kind: str) -> None:
    Path("kept.sock").write_text("kept")
    if kind == "file":
        path = "kept.sock"
    elif kind == "folder":
        Path(path).mkdir()
    else:
        Path(path).symlink_to("kept.sock")
    with pytest.raises(InputError, match="a file of that name exists, and is no socket"):
        run.listen(["127.0.0.1", path], 0)
    assert Path("kept.sock").read_text() == "kept"
    assert os.path.lexists(path)


@posix
def test_a_socket_that_another_server_put_there_meanwhile_is_not_removed(path: str) -> None:
    with listening([path]):
        os.unlink(path)
        with socket.socket(socket.AF_UNIX) as other:
            Path("other").touch()  # so that the inode is not the same
            other.bind(path)
    assert os.path.exists(path)


@posix
def test_the_file_is_removed_where_nothing_comes_of_the_server(path: str) -> None:
    with pytest.raises(InputError):
        run.listen([path, "no.such.host.invalid"], 0)
    with pytest.raises(QwenError):
        run.listen([path, "no/such/folder/b.sock"], 0)
    assert not os.path.exists(path)


@linux
def test_a_path_has_at_most_107_bytes(path: str) -> None:
    longest = "é" * 51 + path[1:]
    assert len(longest.encode()) == 107
    with listening([longest]):
        assert os.path.exists(longest)
    with pytest.raises(InputError, match="the path has 108 bytes, expected at most 107"):
        run.listen(["a" + longest], 0)
