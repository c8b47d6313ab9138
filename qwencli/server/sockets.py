"""Where the server listens: addresses of this machine, which all have one port, and unix sockets."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ..errors import InputError, QwenError

UNIX = ".sock"
"""A host that ends so is the path of a unix socket."""
MOST_PATH_BYTES = 107
"""Of a unix socket's path, on Linux; some systems have a few less."""
UNAVAILABLE = errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT
"""Errors that don't count as failures where a host has other addresses: many systems name an IPv6 address but have no IPv6."""
TRIES = 20
"""How many free ports are tried until one is free at all hosts."""
HINT = "--host and --port choose another, --port 0 takes any that is free"


class UnixSocket(socket.socket):
    """A unix socket whose file is removed when it is closed, and at the end of the process."""

    def __init__(self, path: str) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.bind(path)
            # nobody gets in before `listen`; to write is to connect
            mode = stat.S_IMODE(os.stat(path).st_mode)
            os.chmod(path, mode & 0o660)
            self._remove = weakref.finalize(self, remove, path, os.stat(path).st_ino)
            self.listen()  # from here on others find that it is in use
        except BaseException:
            super().close()
            raise

    def close(self) -> None:
        self._remove()
        super().close()


def remove(path: str, inode: int) -> None:
    """Remove a socket's file, unless another has taken its place."""
    with suppress(OSError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)


def listen(hosts: Sequence[str], port: int, reuse_port: bool = False) -> list[socket.socket]:
    """Sockets bound to all addresses of all hosts, with one port; 0 is any that is free. Hosts that end in .sock are unix sockets.

    With `reuse_port` other servers may listen on the same port, and share its clients. Raises QwenError.
    """
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise InputError("--reuse-port: this system doesn't let several servers share a port")
    names = [host for host in hosts if not is_unix(host)]
    found = addresses(names, port)
    sockets: list[socket.socket] = []
    try:
        if found:
            sockets += bound_to_one_port(found, port, reuse_port)
        for path in dict.fromkeys(filter(is_unix, hosts)):
            sockets.append(unix_socket(path))
    except BaseException:
        close(sockets)
        raise
    return sockets


Address = tuple[str, int, Any]
"""The host that it is one of, its family, and the address itself with a port."""


def addresses(names: Sequence[str], port: int) -> list[Address]:
    """All addresses of some hosts, each once. Raises InputError."""
    found: dict[Any, Address] = {}
    for name in names:
        try:
            infos = socket.getaddrinfo(bare(name), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"--host {name}: not an address of this machine: {reason}") from None
        for family, _, _, _, address in infos:
            found.setdefault((family, address), (name, family, address))
    return list(found.values())


def bound_to_one_port(found: Sequence[Address], port: int, reuse_port: bool) -> list[socket.socket]:
    """Sockets bound to all these addresses. Raises QwenError."""
    for left in reversed(range(1 if port else TRIES)):
        try:
            return bound_to_all(found, port, reuse_port)
        except OSError as error:  # the port that the first address got may be taken at another
            if not left or error.errno != errno.EADDRINUSE:
                where = f"{error.filename} port {port}"
                raise QwenError(f"cannot listen on {where}: {error.strerror or error}; {HINT}") from None
    raise AssertionError


def bound_to_all(found: Sequence[Address], port: int, reuse_port: bool) -> list[socket.socket]:
    """Sockets bound to at least one address of each host. Raises OSError, whose `filename` is the host."""
    several = len({name for name, _, _ in found}) > 1
    sockets: list[socket.socket] = []
    reached: set[str] = set()
    missing: dict[str, OSError] = {}
    try:
        for name, family, address in found:
            chosen = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(bound(family, (address[0], chosen, *address[2:]), reuse_port, several))
                reached.add(name)
            except OSError as error:
                error.filename = name
                if error.errno not in UNAVAILABLE:
                    raise
                missing[name] = error
        if failed := missing.keys() - reached:
            raise missing[min(failed)]
    except BaseException:
        close(sockets)
        raise
    return sockets


def bound(family: int, address: Any, reuse_port: bool, only_ipv6: bool) -> socket.socket:
    # named as TCP, so that asyncio sets TCP_NODELAY
    s = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # alone, :: stands for all addresses of IPv4, too
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only_ipv6))
        s.bind(address)
    except BaseException:
        s.close()
        raise
    return s


def unix_socket(path: str) -> UnixSocket:
    """A unix socket that listens at a path. What a server left there that has ended is replaced. Raises InputError, QwenError."""
    if not hasattr(socket, "AF_UNIX"):
        raise InputError(f"--host {path}: this system has no unix sockets")
    if (n := len(os.fsencode(path))) > MOST_PATH_BYTES:
        raise InputError(f"--host {path}: the path has {n} bytes, expected at most {MOST_PATH_BYTES}")
    try:
        if is_left_over(path):
            os.unlink(path)
        return UnixSocket(path)
    except OSError as error:
        raise QwenError(f"cannot listen on {path}: {error.strerror or error}") from None


def is_left_over(path: str) -> bool:
    """Whether a path is a socket on which nobody listens. Raises InputError for anything else that is there, OSError."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise InputError(f"cannot listen on {path}: a file of that name exists, and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        try:
            s.connect(path)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            pass  # it has a full queue
    raise QwenError(f"cannot listen on {path}: another server does; --host chooses another path")


def close(sockets: Sequence[socket.socket]) -> None:
    for s in sockets:
        s.close()


def url(sockets: Sequence[socket.socket], hosts: Sequence[str], tls: bool) -> str:
    """The server's addresses for people, with commas between them. "All addresses" is shown as this machine's own."""
    port = next((s.getsockname()[1] for s in sockets if s.family in (socket.AF_INET, socket.AF_INET6)), 0)
    shown = [
        f"unix://{os.path.abspath(host)}" if is_unix(host) else f"http{'s' * tls}://{named(host)}:{port}"
        for host in hosts
    ]
    return ", ".join(dict.fromkeys(shown))


def named(host: str) -> str:
    """A host as URLs have it."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(bare(host), bare(host))
    return f"[{name}]" if ":" in name else name


def bare(host: str) -> str:
    """A host without the brackets that URLs have around addresses of IPv6."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def is_unix(host: str) -> bool:
    return host.endswith(UNIX)


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    name = bare(host)
    return (
        is_unix(host) or name == "localhost" or (is_address(name) and ipaddress.ip_address(name).is_loopback)
    )
