"""Small tensors go from each member straight to each other one, and the thread that waits for them reads them itself.

gloo hands a collective to a thread of its own, and that one to another. Measured with 80 KB between processes that were
asleep before, as they are while an accelerator computes: two take 0.65 ms by gloo and 0.10 ms here, four on two cores
4.4 ms and 0.4 ms (medians), with a fifth of the processor time. Everybody sends the whole of it to everybody, so what
is large is better off with gloo (`SENT_BYTES_MAX`).

Rules
    All members begin the same exchanges in the same order. A head before each says which one it is and how long: what
    differs is never taken for numbers.
    Sums are added up in rank order, so all members get the same bits.
    Nobody but who waits reads, or writes into a buffer: once nobody waits any more, all buffers are one's own again.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import torch
from antdt_schemas.errors import Mismatch
from torch.distributed import ReduceOp

SENT_BYTES_MAX = 2**19  # by one member to all others
ROOM_BYTES = 2**20  # wanted of the kernel in each direction: what has room there is on its way while nobody waits
HEAD = struct.Struct("!QQ")


class Exchange:
    """Something in flight, with the manners of a handle of torch's. `missing`: messages that are not read, or sent."""

    __slots__ = ("_finish", "_finished", "_mesh", "missing", "until_s")

    def __init__(self, mesh: Mesh, finish: Callable[[], object]) -> None:
        """finish: what becomes of the messages once all are there."""
        self._mesh, self._finish, self._finished = mesh, finish, False
        self.missing, self.until_s = 0, time.monotonic() + mesh.timeout_s

    def is_completed(self) -> bool:
        """Whether it was waited for, or has failed."""
        return self._finished or bool(self._mesh.failure)

    def wait(self, timeout: timedelta | None = None) -> None:
        """Raises RuntimeError where it has failed, or is not done by then."""
        if not self._finished:
            self._mesh.await_one(self, self._mesh.timeout_s if timeout is None else timeout.total_seconds())
            self._finished = True
            self._finish()


class _Message:
    """One on its way to a peer, or from it: a head, and what follows. own: the head of the same exchange here."""

    __slots__ = ("body", "done_bytes", "exchange", "head", "own")

    def __init__(self, exchange: Exchange, own: bytes, head: bytes | bytearray, body: memoryview) -> None:
        self.exchange, self.own, self.head, self.body, self.done_bytes = exchange, own, head, body, 0

    @property
    def left(self) -> list[Any]:
        """What has not come, or gone, by now."""
        done = self.done_bytes
        if done == 0:
            return [self.head, self.body]
        return [memoryview(self.head)[done:], self.body] if done < HEAD.size else [self.body[done - HEAD.size :]]

    @property
    def is_whole(self) -> bool:
        return self.done_bytes == HEAD.size + len(self.body)


class _Link:
    """The connection to one peer: what goes, and what is to come, in order."""

    def __init__(self, rank: int, name: str, connection: socket.socket) -> None:
        self.rank, self.name, self.socket = rank, name, connection
        self.going, self.coming = deque[_Message](), deque[_Message]()
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for which in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, which, ROOM_BYTES)

    def send(self) -> None:
        """What the kernel has room for. Raises OSError."""
        self._pass(self.going, lambda message: self.socket.sendmsg(message.left))

    def read(self) -> None:
        """What has come. Raises OSError, and Mismatch."""
        self._pass(self.coming, self._read)

    def _pass(self, waiting: deque[_Message], act: Callable[[_Message], int]) -> None:
        while waiting:
            message = waiting[0]
            try:
                message.done_bytes += act(message)
            except BlockingIOError:
                return
            if message.done_bytes >= HEAD.size and message.head != message.own:
                mine, theirs = HEAD.unpack(message.own), HEAD.unpack(message.head)
                raise Mismatch(f"An exchange with {self.name} (number, bytes)", mine, theirs)
            if message.is_whole:
                waiting.popleft()
                message.exchange.missing -= 1

    def _read(self, message: _Message) -> int:
        count = self.socket.recvmsg_into(message.left)[0]
        if not count:
            raise ConnectionError("its connection has ended")
        return count


class _Places(NamedTuple):
    """Where the numbers of an exchange lie: those that go, those that come from each peer, and what becomes of them."""

    own: memoryview
    rooms: list[memoryview]
    finish: Callable[[], object]


class Mesh:
    """This member's connections to all others. `failure`: why nothing is exchanged any more; empty while something is.

    Only the thread that owns the model calls it; any may shut its connections.
    """

    def __init__(
        self, rank: int, peers: Mapping[int, socket.socket], timeout_s: float, names: Sequence[str] = ()
    ) -> None:
        """peers: by rank. timeout_s: of one exchange. names: of all members in rank order, for people."""
        self.rank, self.timeout_s, self.failure, self._number = rank, timeout_s, "", 0
        self._links = [
            _Link(other, names[other] if names else f"rank {other}", peers[other]) for other in sorted(peers)
        ]
        self._kept = dict[int, _Places]()

    @property
    def connections(self) -> list[socket.socket]:
        """All of them."""
        return [link.socket for link in self._links]

    def takes(self, size_bytes: int) -> bool:
        """Whether so much of each member is little enough."""
        return size_bytes * len(self._links) <= SENT_BYTES_MAX

    def allreduce(self, tensor: torch.Tensor, op: Any = ReduceOp.SUM, *, again: bool = False) -> Exchange:
        """Begins to reduce a tensor of any device, contiguous, in place. again: this very tensor will come again, and
        what is made for it is kept with it.
        """
        places = self._kept.get(id(tensor)) if again else None
        if places is None:
            on_cpu = tensor.device.type == "cpu"
            own = tensor if on_cpu else tensor.cpu()
            rooms = {link.rank: torch.empty_like(own) for link in self._links}
            finish = partial(_reduce, tensor, own, _in_order({**rooms, self.rank: own}), op)
            places = _Places(_bytes_of(own), [_bytes_of(room) for room in rooms.values()], finish)
            if again and on_cpu:
                self._kept[id(tensor)] = places  # which holds the tensor, so no other one has its number
        return self._begin(places)

    def gather(self, rows: torch.Tensor, row: torch.Tensor) -> Exchange:
        """Begins to fill `rows` (world, width) with everybody's `row` (width); both on the CPU, contiguous."""
        rows[self.rank] = row
        rooms = [_bytes_of(rows[link.rank]) for link in self._links]
        return self._begin(_Places(_bytes_of(row), rooms, lambda: None))

    def _begin(self, places: _Places) -> Exchange:
        exchange, body = Exchange(self, places.finish), places.own
        head = HEAD.pack(self._number, len(body))
        self._number += 1
        exchange.missing = 2 * len(self._links)
        for link, room in zip(self._links, places.rooms, strict=True):
            link.going.append(_Message(exchange, head, head, body))
            link.coming.append(_Message(exchange, head, bytearray(HEAD.size), room))
        with suppress(RuntimeError):  # who waits is told
            self._move(_Link.send)
        return exchange

    def _move(self, act: Callable[[_Link], None]) -> None:
        if self.failure:
            raise RuntimeError(self.failure)
        for link in self._links:
            try:
                act(link)
            except OSError as error:
                self.failure = f"{link.name}: {error}"
                raise RuntimeError(self.failure) from error

    def await_one(self, exchange: Exchange, seconds: float) -> None:
        """Until this one is done. Raises RuntimeError where it fails, or is not by then."""
        until_s = time.monotonic() + seconds
        while exchange.missing:
            self._move(_Link.send)
            self._move(_Link.read)
            if not exchange.missing:
                return
            now_s = time.monotonic()
            if now_s >= exchange.until_s:
                self.failure = f"nothing came of an exchange within {self.timeout_s:g} s"
                raise RuntimeError(self.failure)
            if now_s >= until_s:
                raise RuntimeError(f"not done within {seconds:g} s")
            self._poll(until_s - now_s)

    def _poll(self, seconds: float) -> None:
        poller = select.poll()
        for link in self._links:
            wanted = (select.POLLIN if link.coming else 0) | (select.POLLOUT if link.going else 0)
            if wanted:
                poller.register(link.socket, wanted)
        poller.poll(1000 * seconds)

    def drop(self) -> None:
        """Nobody waits here any more."""
        self.failure = self.failure or "it was left"


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    assert tensor.is_contiguous(), "a copy of it would be sent, or filled"
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _in_order(parts: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
    return [parts[rank] for rank in sorted(parts)]


def _reduce(tensor: torch.Tensor, own: torch.Tensor, parts: list[torch.Tensor], op: Any) -> None:
    combine = torch.maximum if op == ReduceOp.MAX else torch.add
    total, *others, last = parts
    for other in others:
        combine(total, other, out=total)
    combine(total, last, out=own)
    if own is not tensor:
        tensor.copy_(own)
