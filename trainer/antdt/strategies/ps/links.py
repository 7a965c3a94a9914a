"""Sockets between workers and servers, with the limits that all of them have. The one place that knows pyzmq.

Rules
    A ROUTER that cannot deliver says so instead of dropping what it is given.
    A connection that breaks takes messages with it, and pyzmq would make a new one and go on in silence. So each is
    watched: who finds one broken does not go on with it (`Watch.is_broken`). One that is not made takes nothing: it is
    a trouble as long as it lasts, for a network drops packets without a word.

Must not know what the messages are.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from antdt_schemas.errors import Unavailable, UsageError

from antdt.strategies.ps.wire import FRAME_MAX

try:
    import zmq
    from zmq.utils.monitor import recv_monitor_message
except ModuleNotFoundError as missing:
    raise UsageError(
        f"Parameter servers need {missing.name}, which is not installed here: `pip install 'antdt[ps]'`."
    ) from missing

QUEUE_MAX = 4_096  # messages for one peer; each has few open at a time, so a queue that is full is of a peer that hangs
HEARTBEAT_MS, SILENT_MS = 2_000, 10_000  # of the connection, kept up by pyzmq's own thread
COPIED_BYTES = 2**20  # below it a copy costs less than to be told, by a thread, when a buffer is free
NOW = int(zmq.NOBLOCK)
NOW_AND_MORE = NOW | int(zmq.SNDMORE)
POLLIN = int(zmq.POLLIN)


# Whoever forgets to close one has it for ever: collected as garbage, it would wait for its sockets without end.
_open: set[Any] = set()


class Done:
    """Stands for a message that was copied."""

    done = True


DONE = Done()


def context() -> zmq.Context[Any]:
    """Of one worker or server."""
    made: zmq.Context[Any] = zmq.Context()
    made.set(zmq.MAX_SOCKETS, 65_535)
    _open.add(made)
    return made


def close(made: zmq.Context[Any]) -> None:
    """With all of its sockets."""
    made.destroy(0)
    _open.discard(made)


def _limited(made: zmq.Context[Any], kind: int, identity: str = "") -> zmq.Socket[Any]:
    link: zmq.Socket[Any] = made.socket(kind)
    settings = {
        zmq.LINGER: 0,
        zmq.SNDHWM: QUEUE_MAX,
        zmq.RCVHWM: QUEUE_MAX,
        zmq.MAXMSGSIZE: FRAME_MAX,
        zmq.HEARTBEAT_IVL: HEARTBEAT_MS,
        zmq.HEARTBEAT_TIMEOUT: SILENT_MS,
    }
    for name, value in settings.items():
        link.setsockopt(name, value)
    if identity:
        link.setsockopt(zmq.IDENTITY, identity.encode())
    return link


def linger(link: zmq.Socket[Any], for_ms: int) -> None:
    """What is queued may leave for so long after it is closed."""
    link.setsockopt(zmq.LINGER, for_ms)


def listen(made: zmq.Context[Any], host: str) -> tuple[zmq.Socket[Any], int]:
    """A ROUTER and the port that it has.

    Raises Unavailable if this host has no such address.
    """
    link = _limited(made, zmq.ROUTER)
    link.setsockopt(zmq.ROUTER_MANDATORY, 1)
    try:
        link.setsockopt(zmq.IPV6, ":" in host)
        return link, link.bind_to_random_port(f"tcp://{_address(host)}")
    except zmq.ZMQError as error:
        link.close()
        raise Unavailable(f"A parameter server cannot listen at {host}: {error}.") from error


def connect(made: zmq.Context[Any], host: str, port: int, identity: str) -> tuple[zmq.Socket[Any], Watch]:
    """A DEALER to a server; the connection is made behind this call, or not. It is watched from before: one that is
    made at once must not be made unseen, or nobody would see it break.
    """
    link = _limited(made, zmq.DEALER, identity)
    link.setsockopt(zmq.IPV6, ":" in host)
    watch = Watch(link)
    link.connect(f"tcp://{_address(host)}:{port}")
    return link, watch


def _address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def send(link: zmq.Socket[Any], frames: Sequence[Any], to: bytes | None = None) -> Any | None:
    """Queue a message, without a copy of what is large; returns what tells when it has left, None if it cannot be."""
    whole = list(frames) if to is None else [to, *frames]
    try:
        if max(map(len, whole)) >= COPIED_BYTES:
            return link.send_multipart(whole, NOW, copy=False, track=True)
        # As send_multipart does it, with flags that are numbers: enumerations cost more than small frames do.
        for frame in whole[:-1]:
            link.send(frame, NOW_AND_MORE)
        link.send(whole[-1], NOW)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return None
        raise
    return DONE


def receive(link: zmq.Socket[Any]) -> list[Any] | None:
    """The frames of one message as they lie in memory; None if there is none."""
    try:
        frame = link.recv(NOW, copy=False)
    except zmq.Again:
        return None
    frames = [frame]
    while frame.more:
        frame = link.recv(NOW, copy=False)
        frames.append(frame)
    return frames


class Watch:
    """Of one connection that was made by `connect`."""

    def __init__(self, link: zmq.Socket[Any]) -> None:
        self.is_broken, self.was_made = False, False
        self._link, self._since_s = link, time.monotonic()
        self.events = link.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)

    def look(self) -> bool:
        """Whether it has broken since it was made."""
        while int(self.events.getsockopt(zmq.EVENTS)) & POLLIN:
            event = recv_monitor_message(self.events, zmq.NOBLOCK)["event"]
            self.was_made |= event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self.is_broken |= event == zmq.EVENT_DISCONNECTED and self.was_made
        return self.is_broken

    @property
    def is_late(self) -> bool:
        """Whether it was not made, and should have been."""
        return not self.was_made and time.monotonic() - self._since_s > SILENT_MS / 1000

    def close(self) -> None:
        """With its connection."""
        with suppress(zmq.ZMQError):
            self._link.disable_monitor()
        self._link.close(0)


class Bell:
    """Wakes who polls, from any thread."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """For a poller."""
        return self._near.fileno()

    def ring(self) -> None:
        """Also when nobody listens any more."""
        with self._lock, suppress(OSError):
            self._far.send(b"1")

    def hush(self) -> None:
        """What has rung is heard."""
        with suppress(OSError):
            while self._near.recv(4096):
                pass

    def close(self) -> None:
        """Nobody is woken any more."""
        with self._lock:
            self._near.close()
            self._far.close()


class Polling:
    """Who waits for several sockets at once."""

    def __init__(self, bell: Bell) -> None:
        self._poller, self._bell = zmq.Poller(), bell
        self._poller.register(bell.fileno(), zmq.POLLIN)

    def add(self, link: Any) -> None:
        """Wait for this one too."""
        self._poller.register(link, zmq.POLLIN)

    def wait(self, timeout_s: float) -> list[Any]:
        """Sockets at which there is something, as long as it takes."""
        ready = self._poller.poll(max(0, round(timeout_s * 1000)))
        if any(link == self._bell.fileno() for link, _ in ready):
            self._bell.hush()
        return [link for link, _ in ready]


class Patience:
    """How long something may be broken before whoever needs it gives up. It goes on over generations, or those that
    follow each other fast would never come to an end of it; `ends` where all is well.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since: float | None = None

    def begins(self) -> bool:
        """It is broken; True the first time."""
        if self._since is None:
            self._since = time.monotonic()
            return True
        return False

    def ends(self) -> None:
        """Nothing is broken any more."""
        self._since = None

    @property
    def for_s(self) -> float:
        """For how long it has been so."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    @property
    def is_over(self) -> bool:
        """Whether it has been so for too long."""
        return self._since is not None and self.for_s > self.seconds
