"""A worker's side: it pulls parameters from all servers, and pushes its gradient to all of them.

    pull -> Pulled;  push -> Included, or Late;  rows -> values;  idle, bye

Rules
    One contribution is open at a time. After Late the same ranges are computed anew and pushed again, under the same
    number: the servers include it once.
    All servers answer at one point of their order, so dense parameters and rows of an answer are of one version.
    A connection that breaks is not made again in this generation: what was sent may be lost. It waits to be told that
    the generation is over, and gives up after a while.

Must not know the ledger, nor how parameters reach the model.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from antdt_schemas.address import LOOPBACK
from antdt_schemas.errors import Mismatch, Refused
from antdt_schemas.strategies import server_name

from antdt.strategies.base import GenerationClosed
from antdt.strategies.ps import links, wire
from antdt.strategies.ps.core.facts import PULL, Contribution, Key
from antdt.strategies.ps.layout import DTYPES, Layout
from antdt.strategies.ps.reached import Peer, Reached
from antdt.strategies.ps.scattered import Scattered, scattered

log = logging.getLogger("antdt")

POLL_S, TELL_S, PATIENCE_S, FAREWELL_MS = 0.25, 30.0, 60.0, 1_000

RowIds = Mapping[str, torch.Tensor]
RowGradients = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class Pulled(NamedTuple):
    """Parameters of one version, whose lineage (16 bytes) this is. idle: some worker has no samples. dense: of each
    block all of it, in memory that the next answer fills again. rows: values of those that were asked for, float32 of
    shape (ids, width).
    """

    version: int
    lineage: bytes
    idle: bool
    dense: list[torch.Tensor]
    rows: dict[str, torch.Tensor]


class Included(NamedTuple):
    """The contribution is in a version. staleness: versions that were made since its parameters were pulled."""

    version: int
    lineage: bytes
    idle: bool
    staleness: int
    dense: list[torch.Tensor]
    rows: dict[str, torch.Tensor]


class Late(NamedTuple):
    """It came behind its version, and is in none: compute the same ranges on these parameters. rows: of the ids whose
    gradients were pushed.
    """

    version: int
    lineage: bytes
    idle: bool
    attempt: int
    dense: list[torch.Tensor]
    rows: dict[str, torch.Tensor]


class Exchange:
    """One worker's. `gradients`: a flat row of numbers for each block, to be filled and pushed; they are sent as they
    lie, so take them anew after GenerationClosed. `parameters`: what answers fill; a model's may be views of it.
    """

    def __init__(
        self,
        layout: Layout,
        job: str,
        incarnation: str,
        patience: links.Patience | None = None,
        *,
        own_host: str = LOOPBACK,
        drops: bool = False,
    ) -> None:
        """patience: how long servers may be out of reach, over several of these. own_host: where this worker's machine
        is reached. drops: what is late is not computed anew.
        """
        self.layout, self.job, self.incarnation, self.generation = layout, job, incarnation, -1
        self.parameters = self._new()
        self.gradients = self._new()
        self._context, self._bell = links.context(), links.Bell()
        self._watches: list[links.Watch] = []
        self._links: list[Any] = []
        self._polling = links.Polling(self._bell)
        self._patience = links.Patience(PATIENCE_S) if patience is None else patience
        self._own_host, self._reached = own_host, Reached(incarnation, own_host, (), self._patience)
        self._aborted = threading.Event()
        self._closed: Callable[[], bool] = lambda: False
        self._n, self._attempt, self._asked, self._base = 0, 0, 0, -1
        self._ranges: tuple[int, ...] = ()
        self._is_sending, self._drops = False, drops

    def _new(self) -> list[torch.Tensor]:
        return [torch.zeros(block.size, dtype=DTYPES[block.dtype], device="cpu") for block in self.layout.blocks]

    # -- generations

    def connect(self, generation: int, servers: Sequence[tuple[str, int]], closed: Callable[[], bool] = bool) -> None:
        """To the servers of a grant, in their order. closed: whether that generation is known to be over; who changes
        its answer calls `abort`.
        """
        self._disconnect()
        self._aborted.clear()
        self.generation, self._closed = generation, closed
        self._n, self._attempt, self._base, self._ranges = 0, 0, -1, ()
        self._polling, peers = links.Polling(self._bell), list[Peer]()
        for part, (host, port) in enumerate(servers):
            link, watch = links.connect(self._context, host, port, f"worker/{self.incarnation}")
            self._links.append(link)
            self._watches.append(watch)
            self._polling.add(link)
            self._polling.add(watch.events)
            peers.append(Peer(server_name(part), host, port, watch))
        self._reached = Reached(self.incarnation, self._own_host, peers, self._patience)

    def abort(self) -> None:
        """From any thread: whoever waits gets GenerationClosed."""
        self._aborted.set()
        self._bell.ring()

    def close(self) -> None:
        """For good."""
        self._disconnect()
        links.close(self._context)
        self._bell.close()

    def _disconnect(self) -> None:
        for watch in self._watches:
            watch.close()
        self._watches, self._links, self.generation = [], [], -1

    # -- parameters

    def pull(self, rows: RowIds | None = None) -> Pulled:
        """The newest parameters, and these rows (ids ascending, each once).

        Raises GenerationClosed; Unavailable where a server is out of reach; Refused, Mismatch.
        """
        wanted = self._scattered(rows or {})
        key = Key(self.incarnation, self._n + 1, PULL)
        for server in range(len(self._links)):
            body = wire.Pull(key, self.layout.digest, tuple(len(one.ids[server]) for one in wanted))
            self._send(server, body, [one.ids[server] for one in wanted])
        said, values = self._params(key, wanted)
        self._base = said.version
        return Pulled(said.version, bytes.fromhex(said.lineage), said.idle, self.parameters, values)

    def push(
        self,
        ranges: Sequence[int],
        samples: int,
        weight: float,
        scale: float = 1.0,
        gradients: Sequence[torch.Tensor] | None = None,
        rows: RowGradients | None = None,
        next_rows: RowIds | None = None,
    ) -> Included | Late:
        """A gradient, summed over these samples, on the parameters of the last answer; the answer has the next ones.

        ranges: flat quintuples. weight: what the sum is to be divided by; 0 for one that counts nothing. scale: what
        it counts beside others, where each makes a version. gradients: of each block; `self.gradients` if not given.
        rows: of each table ids (ascending, each once) and their gradients. next_rows: ids to be answered with.

        Raises as `pull`.
        """
        assert self._base >= 0, "pull first"
        assert self._attempt == 0 or tuple(ranges) == self._ranges, "the same ranges again, until they are included"
        brought = self._scattered({name: ids for name, (ids, _) in (rows or {}).items()})
        wanted = self._scattered(next_rows or {})
        values = [(rows or {}).get(table.name, (None, None))[1] for table in self.layout.tables]
        if self._attempt == 0:
            self._n, self._ranges = self._n + 1, tuple(ranges)
        key = Key(self.incarnation, self._n, self._attempt)
        facts = Contribution(key, self._base, self._ranges, samples, float(weight), float(scale))
        dense = self.gradients if gradients is None else gradients
        self._is_sending = True
        for server in range(len(self._links)):
            self._push(server, facts, dense, list(zip(brought, values, strict=True)), wanted)
        said, found = self._params(key, wanted, brought)
        self._base, self._is_sending = said.version, False
        at = said.version, bytes.fromhex(said.lineage), said.idle
        if said.outcome == "late":
            self._attempt = 0 if self._drops else self._attempt + 1
            return Late(*at, self._attempt, self.parameters, found)
        self._attempt = 0
        return Included(*at, said.staleness, self.parameters, found)

    def _push(
        self,
        server: int,
        facts: Contribution,
        dense: Sequence[torch.Tensor],
        brought: Sequence[tuple[Scattered, torch.Tensor | None]],
        wanted: Sequence[Scattered],
    ) -> None:
        tensors, count = [], len(self._links)
        for block, flat in zip(self.layout.blocks, dense, strict=True):
            assert len(flat) == block.size and flat.dtype == DTYPES[block.dtype], f"{len(flat)} numbers, {flat.dtype}"
            tensors.append(flat[block.piece(server, count)])
        for ids, values in brought:
            tensors.append(ids.ids[server])
            tensors.append(torch.empty(0, device="cpu") if values is None else ids.of(server, values))
        tensors.extend(one.ids[server] for one in wanted)
        counts = tuple(len(ids.ids[server]) for ids, _ in brought)
        body = wire.Push(facts, self.layout.digest, counts, tuple(len(one.ids[server]) for one in wanted))
        self._send(server, body, tensors)

    def rows(self, table: str, ids: torch.Tensor) -> torch.Tensor:
        """Values of rows of one table (ids ascending, each once), as they are now.

        Raises as `pull`.
        """
        number = next(at for at, one in enumerate(self.layout.tables) if one.name == table)
        split = self._scattered({table: ids})[number]
        self._asked += 1
        asked = [server for server in range(len(self._links)) if len(split.ids[server])]
        for server in asked:
            body = wire.AskRows(self.incarnation, self._asked, number, len(split.ids[server]))
            self._send(server, body, [split.ids[server]])
        width, found = self.layout.tables[number].width, {}
        for server, message in self._answers(asked, lambda body: isinstance(body, wire.Rows)).items():
            assert message.body.number == self._asked, f"{message.body} answers {self._asked}"
            found[server] = wire.joined(message.segments[0], torch.float32).view(-1, width)
        return split.together(found, width)

    # -- without samples

    def idle(self) -> None:
        """There are none for now: nobody waits for this worker. It pulls before it pushes again."""
        self._base = -1
        self._send(0, wire.Idle(self.incarnation, gone=False))

    def bye(self) -> None:
        """There will be none."""
        if self._links:
            links.linger(self._links[0], FAREWELL_MS)
            self._send(0, wire.Idle(self.incarnation, gone=True))

    # -- messages

    def _scattered(self, rows: RowIds) -> list[Scattered]:
        """Of each table which ids go to which server."""
        unknown = set(rows) - {table.name for table in self.layout.tables}
        assert not unknown, f"{unknown} are no tables"
        none = torch.empty(0, dtype=torch.int64, device="cpu")
        return [scattered(rows.get(table.name, none), len(self._links)) for table in self.layout.tables]

    def _send(self, server: int, body: Any, tensors: Sequence[torch.Tensor] = ()) -> None:
        self._check()
        if links.send(self._links[server], wire.pack(self.job, self.generation, body, tensors)) is None:
            self._reached.refuses(server_name(server))

    def _params(
        self, key: Key, wanted: Sequence[Scattered], pushed: Sequence[Scattered] = ()
    ) -> tuple[wire.Params, dict[str, torch.Tensor]]:
        """What all servers answer to a key, as the primary says it, and rows of tables that have any."""
        everybody = list(range(len(self._links)))
        found = self._answers(everybody, lambda body: isinstance(body, wire.Params))
        first: wire.Params = found[0].body
        if len(found) > 1:
            said = {m.body._replace(rows=(), idle=first.idle) for m in found.values()}
            assert len(said) == 1, f"servers answer {key} at different points: {said}"
        assert (first.n, first.attempt) == key[1:], f"{(first.n, first.attempt)} answers {key}"
        asked = pushed if first.outcome == "late" else wanted
        dense, rows = len(self.layout.blocks), dict[str, torch.Tensor]()
        for server, message in found.items():
            assert len(message.segments) == dense + len(asked), f"{len(message.segments)} rows of numbers"
            self._fill(server, message.segments[:dense])
        for at, (table, one) in enumerate(zip(self.layout.tables, asked, strict=True), dense):
            if one.total:
                parts = {server: wire.joined(m.segments[at], torch.float32) for server, m in found.items()}
                width = table.width
                rows[table.name] = one.together({s: part.view(-1, width) for s, part in parts.items()}, width)
        return first, rows

    def _fill(self, server: int, segments: Sequence[wire.Segment]) -> None:
        for block, flat, segment in zip(self.layout.blocks, self.parameters, segments, strict=True):
            wire.copy_into(flat[block.piece(server, len(self._links))], segment)

    def _answers(self, servers: Sequence[int], fits: Callable[[Any], bool]) -> dict[int, wire.Message]:
        """One message of each of these servers."""
        found: dict[int, wire.Message] = {}
        tell_at_s = time.monotonic() + TELL_S
        while len(found) < len(servers):
            self._polling.wait(POLL_S)
            for server in servers:
                while server not in found and (frames := links.receive(self._links[server])) is not None:
                    message = wire.unpack(self.job, [frame.buffer for frame in frames])
                    if message.generation == self.generation:
                        found[server] = self._checked(server, message, fits)
            if len(found) < len(servers):
                self._check()
            if time.monotonic() > tell_at_s:
                tell_at_s += TELL_S
                missing = self._reached.blamed([server_name(s) for s in servers if s not in found])
                log.warning("%s still waits for an answer of %s", self.incarnation, missing)
        return found

    @staticmethod
    def _checked(server: int, message: wire.Message, fits: Callable[[Any], bool]) -> wire.Message:
        body = message.body
        if isinstance(body, wire.Refused):
            if body.lost:
                raise GenerationClosed(body.why)
            raise Refused(f"Server s{server} does not take what this worker sends: {body.why}")
        if not fits(body):
            raise Mismatch(f"What server s{server} answers", "parameters or rows", type(body).__name__)
        return message

    def _check(self) -> None:
        """Raises GenerationClosed, or Unavailable where a connection stays broken."""
        if self._aborted.is_set() or self._closed() or self.generation < 0:
            if self._is_sending:
                self.gradients, self._is_sending = self._new(), False
            raise GenerationClosed("The servers' generation is over.")
        self._reached.look()
