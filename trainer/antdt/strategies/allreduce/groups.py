"""The process groups of one generation, and how they end although gloo has no way to end them.

Measured, torch 2.11 and 2.15: gloo's `abort` does nothing. Shutting down the sockets fails most operations within
milliseconds; but one whose data were on their way at that moment (a send queued, a message half read) is told nothing
and stays until its own timeout, may still write its buffer, and blocks whoever drops the group. So nobody here waits
for a handle without a bound, and what does not end is stranded: set aside, with its buffers, until it has.
"""

from __future__ import annotations

import ctypes
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import chain
from typing import Any

from antdt.strategies.allreduce.mesh import Exchange, Mesh
from antdt.strategies.allreduce.sockets import shut

WAIT_SLICE = timedelta(milliseconds=50)
NCCL_POLL_S = 0.00005

_stranded: list[Groups] = []
_stranded_lock = threading.RLock()  # also taken by what the garbage collector ends, while it is held


class Groups:
    """`ctl` for compositions and state, `data` for gradients; with nccl, `data` is NCCL's. Of what is small the same by
    `ctl_mesh` and `data_mesh`, where there are any: all members have one order in each, not in both together.

    Invariant: every operation that may still write a buffer has its handle in `works`.
    """

    def __init__(
        self, ctl: Any, data: Any, nccl: bool, connections: list[socket.socket], meshes: Sequence[Mesh] = ()
    ) -> None:
        """meshes: none, or that of `ctl` and that of `data`."""
        self.ctl, self.data, self.nccl, self._meshes = ctl, data, nccl, meshes
        self.ctl_mesh: Mesh | None = meshes[0] if meshes else None
        self.data_mesh: Mesh | None = meshes[-1] if meshes else None
        self.works: list[Any] = []
        self._connections = [*connections, *chain(*(mesh.connections for mesh in meshes))]
        self._aborted = False

    def wait(self, work: Any, is_closed: Callable[[], bool]) -> bool:
        """True when `work` is done and its result valid for the host, False when closed first.

        Raises RuntimeError when it failed. The handle's own `wait` wakes up at once when it is done; in slices, as it
        may never be.
        """
        if self.nccl and not isinstance(work, Exchange):
            # Its `wait` only orders streams: a failure would show after the optimizer had used the result.
            while not work.is_completed():
                if is_closed():
                    return False
                time.sleep(NCCL_POLL_S)
        while not is_closed():
            try:
                work.wait(WAIT_SLICE)
            except RuntimeError:
                if not work.is_completed():
                    continue
                work.wait()  # it ended just after the slice, or failed: only now that is certain
            return True
        return False

    def shut(self) -> None:
        """From any thread: operations in flight fail, here and at members that wait for this one.

        Receiving only, at first: gloo notices the end of a stream, but loses a send that finds its pipe broken.
        """
        shut(self._connections, socket.SHUT_RD)
        if self.nccl and not self._aborted:
            self._aborted = True
            self.data.abort()

    def end(self, timeout_s: float) -> bool:
        """Drops the groups. False if some operation had not ended by then: buffers are then not ours any more."""
        self.shut()
        for mesh in self._meshes:
            mesh.drop()
        until = time.monotonic() + timeout_s
        for work in self.works:
            while not work.is_completed() and time.monotonic() < until:
                with suppress(RuntimeError):
                    work.wait(timedelta(seconds=max(0.001, until - time.monotonic())))
        shut(self._connections, socket.SHUT_RDWR)
        for connection in self._connections:
            connection.close()
        self._connections = []
        if not self._has_ended():
            self._strand()
            return False
        self._drop()
        return True

    def _has_ended(self) -> bool:
        return all(work.is_completed() for work in self.works)

    def _drop(self) -> None:
        """The destructors join the groups' threads: with nothing in flight, at once."""
        self.works.clear()
        self.ctl = self.data = None

    def _strand(self) -> None:
        """One more reference, owned by nobody: not even the interpreter's exit may drop the groups and so wait."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
        with _stranded_lock:
            _stranded.append(self)


def sweep() -> int:
    """Drops what was stranded and has ended since. Returns how many have not."""
    with _stranded_lock:
        for groups in [groups for groups in _stranded if groups._has_ended()]:
            groups._drop()
            _stranded.remove(groups)
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(groups))
        return len(_stranded)
