"""This process's TCP connections, found among its descriptors: gloo tells neither its sockets nor its port (Linux)."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import stat
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from torch.distributed import ProcessGroupGloo

LISTENER_ATTEMPTS = 3

Address = tuple[str, int]
_devices_lock = threading.Lock()


def listen(host: str) -> tuple[Any, Address]:
    """A gloo device and the address it listens on: that tells this generation's connections from all others.

    It is the listening socket that appeared, unless another thread opened one at the same moment.
    """
    with _devices_lock:
        for _ in range(LISTENER_ATTEMPTS):
            before = set(tcp_sockets())
            device = ProcessGroupGloo.create_device(hostname=host)
            new = [own for key, (own, peer) in tcp_sockets().items() if key not in before and peer is None]
            if len(new) == 1:
                return device, new[0]
    raise OSError("another thread keeps opening listening sockets")


def tcp_sockets() -> dict[tuple[int, int], tuple[Address, Address | None]]:
    """(descriptor, inode) -> own address, and the peer's, or None for a listening socket."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            descriptor = int(name)
            status = os.fstat(descriptor)
            if stat.S_ISSOCK(status.st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as copy:
                    if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
                        listens = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                        peer = None if listens else _plain(copy.getpeername())
                        found[descriptor, status.st_ino] = _plain(copy.getsockname()), peer
    return found


def connections(listeners: set[Address], peers: set[Address]) -> list[socket.socket]:
    """Copies of the connections accepted by `listeners` or made to `peers`.

    Copies, because a descriptor's number may be another socket's by the time it is used.
    """
    copies = []
    for (descriptor, inode), (own, peer) in tcp_sockets().items():
        if peer is not None and (own in listeners or peer in peers):
            with suppress(OSError):
                copy = socket.socket(fileno=os.dup(descriptor))
                if os.fstat(copy.fileno()).st_ino == inode:
                    copies.append(copy)
    return copies


def unreachable(addresses: Mapping[int, Address], timeout_s: float) -> dict[int, str]:
    """Those that take no connection within `timeout_s`, all of them asked at once, and why."""
    found, asked = dict[int, str](), selectors.DefaultSelector()
    for number, (host, port) in addresses.items():
        try:
            family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            probe = socket.socket(family, kind, protocol)
        except OSError as error:
            found[number] = str(error)
            continue
        probe.setblocking(False)
        code = probe.connect_ex(where)
        if code in (0, errno.EINPROGRESS):
            asked.register(probe, selectors.EVENT_WRITE, number)
        else:
            found[number] = os.strerror(code)
            probe.close()
    until = time.monotonic() + timeout_s
    while asked.get_map() and time.monotonic() < until:
        for key, _ in asked.select(max(0.0, until - time.monotonic())):
            code = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # type: ignore[union-attr]
            if code:
                found[key.data] = os.strerror(code)
            asked.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
    for key in list(asked.get_map().values()):
        found[key.data] = f"no answer within {timeout_s:g} s"
        key.fileobj.close()  # type: ignore[union-attr]
    asked.close()
    return dict(sorted(found.items()))


def shut(copies: Iterable[socket.socket], how: int) -> None:
    """Ends connections, in the directions `how` says, also for whoever else holds them."""
    for copy in copies:
        with suppress(OSError):
            copy.shutdown(how)


def _plain(name: Any) -> Address:
    """An IPv4 address that a dual-stack socket shows as IPv6 is the same address."""
    return str(name[0]).removeprefix("::ffff:"), int(name[1])
