"""Where the members of a generation meet, and the connections they have while it lasts.

Owns the store, the process groups and their sockets. Must not know models or gradients.

What gloo forces on it, all measured: `abort()` does nothing, so a generation ends by shutting down its sockets; a
handle whose `wait` timed out may still write its buffer, so every handle is kept until it is done; a group dropped with
an operation in flight blocks; a store whose process is stopped answers nothing and observes no timeout.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from antdt_schemas.errors import AntdtError, UsageError
from torch.distributed import PrefixStore, ProcessGroupGloo, ReduceOp, TCPStore

POLL_S = 0.0005
LISTENER_ATTEMPTS = 3
NCCL_ERRORS = "TORCH_NCCL_ASYNC_ERROR_HANDLING"

Address = tuple[str, int]
_devices_lock = threading.Lock()


class GenerationClosed(AntdtError):
    """The generation is over, or never formed: abort the step, leave, claim, wait for the next grant."""


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """backend: of the gradients; "nccl" needs one CUDA device per member. host: own address, as peers reach it.

    op_timeout_s is the last resort only: a hung member is found by its heartbeat, and a shorter limit would end members
    that are merely slow.
    """

    backend: Literal["gloo", "nccl"] = "gloo"
    host: str = "127.0.0.1"
    form_timeout_s: float = 5.0
    op_timeout_s: float = 1800.0


class Rendezvous:
    """This process's own store, made once: its address goes into the claim, and the first member's is used by all."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._server = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        self.host, self.port = host, int(self._server.port)


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """A store not yet connected to: connecting can hang, so only the forming generation does it."""

    host: str
    port: int


def store_of(host: str, port: int) -> StoreAddress:
    """The store that the first member of a generation serves."""
    return StoreAddress(host, port)


class Generation:
    """The groups of one generation: `ctl` for compositions and state, `data` for gradients.

    Invariant: every operation that may still write a buffer of ours has its handle in `_works`. A generation of one
    member has no groups and needs no store.
    """

    def __init__(
        self,
        number: int,
        world: int,
        rank: int,
        store: StoreAddress | None,
        closed: Callable[[], bool],
        options: GenerationOptions | None = None,
    ) -> None:
        """Returns when the groups stand. closed: has the ledger closed it? Asked often, from this thread.

        Raises GenerationClosed when it closed or did not form within `form_timeout_s`.
        """
        assert 0 <= rank < world, (rank, world)
        self.number, self.world, self.rank = number, world, rank
        self.options = options or GenerationOptions()
        self._told = closed
        self._ctl: Any = None
        self._data: Any = None
        self._works: list[Any] = []
        self._sockets: list[socket.socket] = []
        # Also at interpreter exit, where dropping a group with an operation in flight would block.
        self._end = weakref.finalize(self, _shut, self._sockets)
        if world > 1:
            assert store is not None, "more than one member meet in a store"
            self._form(store)
        self.check()

    def _form(self, store: StoreAddress) -> None:
        """In a thread of its own, so that neither a stopped store nor a dead member can hold up the owner."""
        forming = _Forming(self, store)
        forming.start()
        until = time.monotonic() + self.options.form_timeout_s
        while not forming.done.wait(POLL_S):
            if self.is_closed or time.monotonic() > until:
                forming.abandon()
                raise GenerationClosed(f"Generation {self.number} closed or did not form in time.")
        if forming.failure is not None:
            raise GenerationClosed(f"Generation {self.number} did not form: {forming.failure}") from forming.failure
        self._ctl, self._data = forming.ctl, forming.data
        self._sockets.extend(forming.sockets)

    @property
    def is_closed(self) -> bool:
        """Closed by the ledger, by `close`, or left."""
        return not self._end.alive or self._told()

    def check(self) -> None:
        """Raises GenerationClosed if it is."""
        if self.is_closed:
            raise GenerationClosed(f"Generation {self.number} is closed.")

    def run(self, work: Any) -> Any:
        """Keeps the handle of something in flight: its tensors belong to the group until it is done."""
        self._works.append(work)
        return work

    def wait(self, work: Any) -> None:
        """Returns when `work` is done and its result valid for the host. Raises GenerationClosed when it failed."""
        self.check()
        try:
            if self.options.backend == "nccl":
                self._poll(work)
            work.wait()
        except RuntimeError as error:
            raise GenerationClosed(f"A collective of generation {self.number} failed: {_brief(error)}") from error

    def _poll(self, work: Any) -> None:
        """NCCL's `wait` only orders streams: a failure would show after the optimizer had used the result."""
        while not work.is_completed():
            self.check()
            time.sleep(POLL_S / 10)

    def settled(self) -> None:
        """Everything run so far was waited for: forget its handles."""
        self._works.clear()

    def allreduce(self, tensor: torch.Tensor, op: Any = ReduceOp.SUM) -> Any:
        """Starts the reduction of `tensor` in place, over all members, and returns its handle."""
        by_data = tensor.is_cuda or self.options.backend == "gloo"
        return self._start(lambda: (self._data if by_data else self._ctl).allreduce(tensor, op))

    def gather(self, rows: torch.Tensor, row: torch.Tensor) -> Any:
        """Starts filling `rows` (world, width) with everybody's `row` (width); both on the CPU."""
        return self._start(lambda: self._ctl.allgather(list(rows.unbind()), row))

    def broadcast(self, tensor: torch.Tensor, source_rank: int) -> Any:
        """Starts overwriting `tensor`, on the CPU, with that of `source_rank`."""
        return self._start(lambda: self._ctl.broadcast(tensor, source_rank))

    def _start(self, collective: Callable[[], Any]) -> Any:
        self.check()
        try:
            return self.run(collective())
        except RuntimeError as error:
            raise GenerationClosed(f"Generation {self.number} takes no collectives: {_brief(error)}") from error

    def close(self) -> None:
        """From any thread, any number of times: what is in flight here fails within milliseconds.

        At the peers only what waits for this member fails, so each of them must be told as well.
        """
        if self._end() is None:
            return
        data = self._data
        if self.options.backend == "nccl" and data is not None:
            data.abort()

    def leave(self) -> None:
        """By the thread that owns the model. Afterwards nobody else writes into any buffer."""
        self.close()
        for work in self._works:
            with suppress(RuntimeError):
                work.wait()
        self._works.clear()
        self._ctl = self._data = None  # the destructors join the groups' threads: nothing is in flight, so at once
        for connection in self._sockets:
            connection.close()
        self._sockets.clear()


class _Forming(threading.Thread):
    """Connects, waits for everybody, then builds: a group takes milliseconds once all are there."""

    def __init__(self, generation: Generation, address: StoreAddress) -> None:
        super().__init__(name=f"antdt-generation-{generation.number}", daemon=True)
        self.number, self.world, self.rank = generation.number, generation.world, generation.rank
        self.options, self.address = generation.options, address
        self.done, self.abandoned = threading.Event(), threading.Event()
        self.failure: Exception | None = None
        self.ctl: Any = None
        self.data: Any = None
        self.listener: Address | None = None
        self.peers: set[Address] = set()
        self.sockets: list[socket.socket] = []

    def run(self) -> None:
        try:
            self._build()
        except (RuntimeError, OSError) as error:
            self.failure = error
        finally:
            self.done.set()

    def _build(self) -> None:
        timeout = timedelta(seconds=self.options.form_timeout_s)
        client = TCPStore(self.address.host, self.address.port, is_master=False, timeout=timeout)
        store = PrefixStore(f"generation/{self.number}", client)
        device, self.listener = _listen(self.options.host)
        self._meet(store)
        self.ctl = self._gloo(PrefixStore("ctl", store), device)
        if self.options.backend == "nccl":
            self.data = _nccl(PrefixStore("data", store), self.rank, self.world, self.options)
        else:
            self.data = self._gloo(PrefixStore("data", store), device)
        self.sockets = _connections({self.listener}, self.peers)
        groups = 1 if self.options.backend == "nccl" else 2
        assert len(self.sockets) >= groups * (self.world - 1), "a connection that cannot be ended would hang a member"

    def _meet(self, store: Any) -> None:
        host, port = self.listener or ("", 0)
        store.set(f"here/{self.rank}", f"{host} {port}")
        keys = [f"here/{rank}" for rank in range(self.world)]
        while not store.check(keys):
            if self.abandoned.wait(POLL_S * self.world):  # all ask the one store
                raise RuntimeError("abandoned")
        for rank, key in enumerate(keys):
            if rank != self.rank:
                host, _, port = store.get(key).decode().rpartition(" ")
                self.peers.add((host, int(port)))

    def _gloo(self, store: Any, device: Any) -> Any:
        options = ProcessGroupGloo._Options()
        options._devices = [device]
        options._timeout = timedelta(seconds=self.options.form_timeout_s)
        group = ProcessGroupGloo(store, self.rank, self.world, options)
        group.set_timeout(timedelta(seconds=self.options.op_timeout_s))
        return group

    def abandon(self) -> None:
        """Frees the thread from whatever it waits for: the store's or a member's answer."""
        self.abandoned.set()
        listeners = {self.listener} if self.listener else set()
        store = {(address, self.address.port) for address in _addresses_of(self.address.host)}
        with suppress(OSError):
            _shut(_connections(listeners, self.peers | store))


def _nccl(store: Any, rank: int, world: int, options: GenerationOptions) -> Any:
    """Not tried on a device yet: written from NCCL's documented behaviour."""
    if os.environ.setdefault(NCCL_ERRORS, "0") != "0":
        raise UsageError(f"{NCCL_ERRORS} must be 0: otherwise a lost member tears this process down. Unset it.")
    from torch.distributed import ProcessGroupNCCL

    nccl_options = ProcessGroupNCCL.Options()
    nccl_options._timeout = timedelta(seconds=options.op_timeout_s)
    return ProcessGroupNCCL(store, rank, world, nccl_options)


def _listen(host: str) -> tuple[Any, Address]:
    """A gloo device and the address it listens on: that tells this generation's connections from all others.

    gloo does not say the address: it is the listening socket that appeared, unless another thread opened one as well.
    """
    with _devices_lock:
        for _ in range(LISTENER_ATTEMPTS):
            before = set(_sockets())
            device = ProcessGroupGloo.create_device(hostname=host)
            new = [name for key, name in _sockets().items() if key not in before and name[1] is None]
            if len(new) == 1:
                return device, new[0][0]
    raise RuntimeError("another thread keeps opening listening sockets")


def _sockets() -> dict[tuple[int, int], tuple[Address, Address | None]]:
    """(descriptor, inode) -> own address, peer's address or None, of this process's TCP sockets (Linux)."""
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


def _connections(listeners: set[Address], peers: set[Address]) -> list[socket.socket]:
    """Copies of this process's connections accepted by `listeners` or made to `peers`.

    Copies, because a descriptor number may be another socket's by the time it is used.
    """
    copies = []
    for (descriptor, inode), (own, peer) in _sockets().items():
        if peer is not None and (own in listeners or peer in peers):
            with suppress(OSError):
                copy = socket.socket(fileno=os.dup(descriptor))
                if os.fstat(copy.fileno()).st_ino == inode:
                    copies.append(copy)
    return copies


def _shut(connections: list[socket.socket]) -> bool:
    for connection in connections:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
    return True


def _addresses_of(host: str) -> set[str]:
    return {_plain(found[4])[0] for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}


def _plain(name: Any) -> Address:
    """An IPv4 address that a dual-stack socket shows as IPv6 is the same address."""
    return str(name[0]).removeprefix("::ffff:"), int(name[1])


def _brief(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
