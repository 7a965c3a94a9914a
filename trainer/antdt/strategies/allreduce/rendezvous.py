"""Where the members of a generation meet, and the generation while it lasts.

Owns the store and the forming of the groups. Must not know models or gradients.
"""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from antdt_schemas.errors import UsageError
from torch.distributed import ProcessGroupGloo, ReduceOp, TCPStore

from antdt.host import whereabouts
from antdt.strategies.allreduce import nccl
from antdt.strategies.allreduce.groups import Groups, sweep
from antdt.strategies.allreduce.mesh import Mesh
from antdt.strategies.allreduce.options import GenerationOptions
from antdt.strategies.allreduce.peers import PEERS_MAX, Door
from antdt.strategies.allreduce.sockets import Address, connections, listen, shut, unreachable
from antdt.strategies.allreduce.store import GroupStore, StoreClient, StoreServer
from antdt.strategies.base import GenerationClosed

POLL_S = 0.002
PROBE_S = 1.0
LOOPBACK = "127.0.0.1"


class NotFormed(GenerationClosed):
    """Nobody has closed the generation, yet it does not stand: somebody could not be reached, and the message says who
    and where.
    """


class Rendezvous:
    """This process's own store, made once: its address goes into the claim, and the first member's is used by all."""

    def __init__(self, host: str = LOOPBACK) -> None:
        """host: this machine's address, as the other members reach it."""
        self._server = StoreServer(host)
        self.host, self.port = host, int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="antdt-store", daemon=True).start()

    def close(self) -> None:
        """Nobody can meet here any more."""
        self._server.shutdown()
        self._server.server_close()


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """A store not yet connected to: connecting can hang, so only the forming generation does it."""

    host: str
    port: int


def store_of(host: str, port: int) -> StoreAddress:
    """The store that the first member of a generation serves."""
    return StoreAddress(host, port)


class Generation:
    """The members of one generation, as one of them sees them. One member alone has no groups and needs no store.

    Invariant: once closed, whatever waits here raises GenerationClosed within a bounded time, whoever hangs.
    """

    def __init__(
        self,
        number: int,
        world: int,
        rank: int,
        store: StoreAddress | None,
        closed: Callable[[], bool],
        options: GenerationOptions | None = None,
        names: Sequence[str] = (),
        device: torch.device | None = None,
    ) -> None:
        """Returns when the groups stand. closed: has the ledger closed it? Asked often, from this thread. names: of the
        members in rank order, for people. device: of the gradients, where the backend is NCCL.

        Raises GenerationClosed when it closed, NotFormed when it did not form within `form_timeout_s`, and UsageError
        where members share a device that each needs for itself.
        """
        assert 0 <= rank < world, (rank, world)
        self.number, self.world, self.rank = number, world, rank
        self.names = tuple(names) or tuple(f"rank {member}" for member in range(world))
        self.options, self.device = options or GenerationOptions(), device
        self._told, self._over, self.outlived = closed, threading.Event(), False
        self._groups = Groups(None, None, False, [])
        if world > 1:
            assert store is not None, "more than one member meet in a store"
            self._groups = self._form(store)
        # Whoever forgets to leave: neither dropping this nor the interpreter's exit may wait for a hung member.
        self._end = weakref.finalize(self, self._groups.end, self.options.leave_timeout_s)
        self.check()

    def _form(self, store: StoreAddress) -> Groups:
        """In a thread of its own, so that neither a stopped store nor a dead member can hold up the owner."""
        forming = _Forming(self, store)
        forming.start()
        while not forming.done.wait(POLL_S):
            late = time.monotonic() > forming.until
            if self.is_closed or late:
                forming.abandon()
                self.check()
                raise NotFormed(f"Generation {self.number} did not form: {forming.why()}.")
        if forming.groups is None:
            self.check()
            if isinstance(forming.failure, UsageError):
                raise forming.failure
            raise NotFormed(f"Generation {self.number} did not form: {forming.why()}.") from forming.failure
        return forming.groups

    @property
    def is_closed(self) -> bool:
        """Closed by the ledger, by `close`, or left."""
        return self._over.is_set() or self._told()

    def outlive(self) -> None:
        """The ledger has nothing to say of it any more: it is closed when a member has gone."""
        self._told, self.outlived = (lambda: False), True

    def check(self) -> None:
        """Raises GenerationClosed if it is."""
        if self.is_closed:
            raise GenerationClosed(f"Generation {self.number} is closed.")

    def run(self, work: Any) -> Any:
        """Keeps the handle of something in flight: its tensors belong to the group until it is done."""
        self._groups.works.append(work)
        return work

    def wait(self, work: Any) -> None:
        """Returns when `work` is done and its result valid for the host. Raises GenerationClosed when it failed."""
        try:
            done = self._groups.wait(work, lambda: self.is_closed)
        except RuntimeError as error:
            raise GenerationClosed(f"A collective of generation {self.number} failed: {_brief(error)}") from error
        if not done:
            self.check()
        whereabouts.mine().progress()

    def settled(self) -> None:
        """Everything run so far was waited for: forget its handles."""
        self._groups.works.clear()

    def allreduce(self, tensor: torch.Tensor, op: Any = ReduceOp.SUM, *, again: bool = False) -> Any:
        """Starts the reduction of `tensor` in place, over all members, and returns its handle. again: see Mesh."""
        groups, by_nccl = self._groups, self._groups.nccl and tensor.is_cuda
        by_data = by_nccl or self.options.backend == "gloo"
        mesh = groups.data_mesh if by_data else groups.ctl_mesh
        if mesh is not None and not by_nccl and mesh.takes(tensor.nbytes):
            return self._start(lambda: mesh.allreduce(tensor, op, again=again))
        return self._start(lambda: (groups.data if by_data else groups.ctl).allreduce(tensor, op))

    def gather(self, rows: torch.Tensor, row: torch.Tensor) -> Any:
        """Starts filling `rows` (world, width) with everybody's `row` (width); both on the CPU."""
        mesh = self._groups.ctl_mesh
        if mesh is not None and mesh.takes(row.nbytes):
            return self._start(lambda: mesh.gather(rows, row))
        return self._start(lambda: self._groups.ctl.allgather(list(rows.unbind()), row))

    def broadcast(self, tensor: torch.Tensor, source_rank: int) -> Any:
        """Starts overwriting `tensor`, on the CPU, with that of `source_rank`."""
        return self._start(lambda: self._groups.ctl.broadcast(tensor, source_rank))

    def _start(self, collective: Callable[[], Any]) -> Any:
        self.check()
        try:
            return self.run(collective())
        except RuntimeError as error:
            raise GenerationClosed(f"Generation {self.number} takes no collectives: {_brief(error)}") from error

    def close(self) -> None:
        """From any thread, any number of times: what waits here raises within milliseconds.

        At the peers only what waits for this member fails, so each of them must be told as well.
        """
        self._over.set()
        self._groups.shut()

    def leave(self) -> bool:
        """By the thread that owns the model. False: an operation could not be ended and may still write the tensors it
        was started with, which are not ours any more. They are freed once it has run into `op_timeout_s`.
        """
        self.close()
        sweep()
        settled = self._end()
        return settled is None or bool(settled)


class _Forming(threading.Thread):
    """Connects, waits for everybody, then builds: a group takes milliseconds once all are there."""

    def __init__(self, generation: Generation, address: StoreAddress) -> None:
        super().__init__(name=f"antdt-generation-{generation.number}", daemon=True)
        self.number, self.world, self.rank = generation.number, generation.world, generation.rank
        self.options, self.address, self.names = generation.options, address, generation.names
        self.device, self.starts_nccl = generation.device, False
        self.host = self.options.host or LOOPBACK
        self.until = time.monotonic() + self.options.form_timeout_s
        self.done = threading.Event()
        self.client: StoreClient | None = None
        self.groups: Groups | None = None
        self.failure: Exception | None = None
        self.listener: Address = ("", 0)
        self.door: Door | None = None
        self.met: dict[int, Address] = {}

    @property
    def peers(self) -> set[Address]:
        """Where the other members listen, as far as they have come."""
        return {where for rank, where in list(self.met.items()) if rank != self.rank}

    def run(self) -> None:
        try:
            self.groups = self._build()
        except (RuntimeError, OSError, ValueError) as error:
            self.failure = error
        finally:
            for one in (self.client, self.door):
                if one is not None:
                    one.close()
            self.done.set()

    def _build(self) -> Groups:
        self.client = client = StoreClient(self.address.host, self.address.port, self.number, self.until)
        device, self.listener = listen(self.host)
        self._meet(client)
        meshes = self._meshes(client)
        ctl, card = self._gloo(GroupStore(client, "ctl"), device), self.device
        data = self._gloo(GroupStore(client, "data"), device) if card is None else self._nccl(client, card)
        found = connections({self.listener}, self.peers)
        needed = (self.world - 1) * (2 if card is None else 1)
        if len(found) < needed:  # abandoned meanwhile, or a member is gone: one that cannot be ended would hang another
            shut(found, socket.SHUT_RDWR)
            raise OSError(f"{needed - len(found)} of {needed} connections ended while it formed")
        return Groups(ctl, data, card is not None, found, meshes)

    def _meet(self, client: StoreClient) -> None:
        client.set(f"here/{self.rank}", "{} {}".format(*self.listener).encode())
        for rank in range(self.world):
            host, _, port = client.get(f"here/{rank}").decode().rpartition(" ")
            self.met[rank] = (host, int(port))

    def _meshes(self, client: StoreClient) -> Sequence[Mesh]:
        """Among very many there is none: what each sent to each would be too much."""
        if self.world - 1 > PEERS_MAX:
            return ()
        self.door = Door(self.listener[0])
        client.set(f"door/{self.rank}", self.door.said.encode())
        others = {rank: client.get(f"door/{rank}").decode() for rank in range(self.world) if rank != self.rank}
        found = self.door.meet(self.rank, others, self.until, each=2, names=self.names)
        by_number = [{rank: found[rank, number] for rank in others} for number in range(2)]
        return [Mesh(self.rank, peers, self.options.op_timeout_s, self.names) for peers in by_number]

    def why(self) -> str:
        """What held it up: whose address could not be reached, or who did not come. Takes a second at most."""
        store = f"the store of {self.names[0]} at {_shown(self.address.host, self.address.port)}"
        if self.client is None:
            return f"{store} could not be reached ({_brief(self.failure) if self.failure else 'no answer'})"
        if self.starts_nccl:
            lost = _brief(self.failure) if self.failure else f"no answer within {nccl.START_S:g} s"
            return f"NCCL did not start between {', '.join(self.names)} ({lost}); NCCL_DEBUG=INFO lets it say more"
        missing = [self.names[rank] for rank in range(self.world) if rank not in self.met]
        if missing:
            lost = f" ({_brief(self.failure)})" if self.failure else ""
            return f"{', '.join(missing)} did not come to {store} within {self.options.form_timeout_s:g} s{lost}"
        others = {rank: where for rank, where in self.met.items() if rank != self.rank}
        deaf = [
            f"{self.names[rank]} at {_shown(*others[rank])} could not be reached ({reason})"
            for rank, reason in unreachable(others, PROBE_S).items()
        ]
        return "; ".join(deaf) or (_brief(self.failure) if self.failure else "somebody could not reach somebody else")

    def _gloo(self, store: Any, device: Any) -> Any:
        options = ProcessGroupGloo._Options()
        options._devices = [device]
        options._timeout = timedelta(seconds=self.options.form_timeout_s)
        group = ProcessGroupGloo(store, self.rank, self.world, options)
        group.set_timeout(timedelta(seconds=self.options.op_timeout_s))
        return group

    def _nccl(self, client: StoreClient, device: torch.device) -> Any:
        """It needs torch's own store."""
        client.set(f"card/{self.rank}", nccl.card_of(device).encode())
        nccl.refuse_shared({self.names[rank]: client.get(f"card/{rank}").decode() for rank in range(self.world)})
        timeout = timedelta(seconds=self.options.form_timeout_s)
        if self.rank == 0:
            store = TCPStore(self.host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
            client.set("nccl/0", f"{self.host} {store.port}".encode())
        else:
            host, _, port = client.get("nccl/0").decode().rpartition(" ")
            store = TCPStore(host, int(port), is_master=False, timeout=timeout)
        self.until, self.starts_nccl = time.monotonic() + nccl.START_S, True
        return nccl.started(store, self.rank, self.world, device, self.options.op_timeout_s)

    def abandon(self) -> None:
        """Frees the thread from whatever it waits for: the store's or a member's answer."""
        for one in (self.client, self.door):
            if one is not None:
                one.abandon()
        with suppress(OSError):
            found = connections({self.listener}, self.peers)
            shut(found, socket.SHUT_RDWR)
            for copy in found:
                copy.close()


def _brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
