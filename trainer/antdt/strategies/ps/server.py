"""One server of a generation: takes pushes and pulls, obeys the primary's order, answers. The first one is the primary.

Rules
    One thread calls it. Only writing a checkpoint's part runs beside it, from memory that nobody else uses meanwhile.
    A message that is of another generation, or that is no message, changes nothing.
    A connection between servers that breaks ends the generation for this server: orders or reports may be lost.

Must not know the ledger: what it must be told comes out of `turn`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any

from antdt_schemas.errors import Refused, Undecodable
from antdt_schemas.strategies import server_name
from antdt_schemas.waiting import Waiting

from antdt.strategies.ps import links, wire
from antdt.strategies.ps.agreeing import all_seen, unlike
from antdt.strategies.ps.core.facts import PULL, Contribution, Key, Mode, Order, Version
from antdt.strategies.ps.core.ordering import Ordering
from antdt.strategies.ps.core.staging import Answer, Apply, Item, Save, Staging
from antdt.strategies.ps.load import Load, Meter
from antdt.strategies.ps.reached import Peer, Reached
from antdt.strategies.ps.requests import Request, gradient_of, request_of, rows_of
from antdt.strategies.ps.saving import Saved, Saving, Write
from antdt.strategies.ps.state import ServerState

log = logging.getLogger("antdt")

MESSAGES_A_TURN = 1_024
PATIENCE_S = 60.0
FAREWELL_MS = 1_000
AWAITED_S = 10.0  # other servers, before it is said
GIVEN_UP = "The ledger has given this worker up."


class Server:
    """Its state outlives generations. mode: when versions are made. job: what every message must be of. write: makes a
    durable file, and returns its digest. sign: what it has written into the folder of checkpoints; sees: what is wrong
    if the primary does not find there what another server says that it has written.
    """

    def __init__(self, state: ServerState, mode: Mode, job: str, write: Write, patience_s: float = PATIENCE_S) -> None:
        self.state, self.mode, self.job, self.generation = state, mode, job, -1
        self.checkpoint_wanted = False
        self._context, self._bell, self._meter = links.context(), links.Bell(), Meter()
        self._saving = Saving(state, write, self._bell)
        self._router: Any = None
        self._primary: links.Watch | None = None
        self._up: Any = None
        self._polling = links.Polling(self._bell)
        self._patience = links.Patience(patience_s)
        self._reached, self._awaited = Reached("", "", (), self._patience), Waiting(AWAITED_S)
        self.sign, self.sees = "", all_seen
        self._peers, self._name = dict[int, Peer](), f"server {server_name(state.part)}"
        self._plan, self._factor, self._backup = 0, 1.0, 0
        self._ordering: Ordering | None = None
        self._staging = Staging(state.version, state.lineage)
        self._present: set[int] = set()
        self._orders: deque[Order] = deque()
        self._out: list[Version | Saved] = []

    # -- generations

    def bind(self, host: str) -> int:
        """Listen anew; the port that the next grant is to name. Raises Unavailable."""
        self.leave()
        self._router, port = links.listen(self._context, host)
        return port

    def begin(self, generation: int, peers: Sequence[tuple[str, int]]) -> None:
        """The generation of these servers, in their order, with the state as it is."""
        state = self.state
        assert self._router is not None and len(peers) == state.servers, (
            "bind first, and as many servers as the job has"
        )
        self.generation, self.checkpoint_wanted = generation, False
        self._staging = Staging(state.version, state.lineage)
        self._present, self._orders = {state.part}, deque()
        own_host, watch = peers[state.part][0], None
        self._awaited = Waiting(AWAITED_S)
        self._polling = links.Polling(self._bell)
        self._polling.add(self._router)
        if state.part == 0:
            self._ordering = Ordering(self.mode, state.servers, state.version, state.lineage)
            self._ordering.plan, self._ordering.factor = self._plan, self._factor
            self._carry_out(self._ordering.set_backup(self._backup))
        else:
            self._up, watch = links.connect(self._context, *peers[0], f"server/{state.part}")
            self._primary = watch
            self._polling.add(self._up)
            self._polling.add(self._primary.events)
            self._report(self._hello())
        needed = range(1, state.servers) if state.part == 0 else (0,)
        self._peers = {part: Peer(server_name(part), *peers[part], watch) for part in needed}
        self._reached = Reached(self._name, own_host, list(self._peers.values()), self._patience)

    def leave(self) -> None:
        """The generation is over: what is staged is dropped, the state stays."""
        self.generation, self._ordering = -1, None
        self._saving.forget()
        if self._primary is not None:
            self._primary.close()
        if self._router is not None:
            self._router.close()
        self._router = self._primary = self._up = None
        self._orders.clear()
        self._out.clear()

    def close(self) -> None:
        """For good; waits for a part that is being written."""
        self.leave()
        self._saving.close()
        links.close(self._context)
        self._bell.close()

    # -- what the caller says, in its own thread

    @property
    def version(self) -> int:
        """Of the state."""
        return self.state.version

    @property
    def lineage(self) -> bytes:
        """Of the state, 16 bytes."""
        return self.state.lineage

    @property
    def active(self) -> tuple[str, ...]:
        """At the primary: incarnations that have asked for parameters and are neither idle nor gone."""
        return self._ordering.active if self._ordering is not None else ()

    @property
    def is_saving(self) -> bool:
        """Whether a checkpoint was begun that is not told yet: the next one has to wait."""
        return self._saving.is_open

    @property
    def plan(self) -> int:
        """At the primary: the number of the plan under which versions are made from now on."""
        return self._plan

    @plan.setter
    def plan(self, number: int) -> None:
        self._plan = number
        if self._ordering is not None:
            self._ordering.plan = number

    @property
    def learning_rate_factor(self) -> float:
        """At the primary: what learning rates are multiplied by from now on."""
        return self._factor

    @learning_rate_factor.setter
    def learning_rate_factor(self, factor: float) -> None:
        self._factor = factor
        if self._ordering is not None:
            self._ordering.factor = factor

    @property
    def backup(self) -> int:
        """At the primary: how many active workers a version need not wait for."""
        return self._backup

    @backup.setter
    def backup(self, workers: int) -> None:
        if workers != self._backup:
            self._backup = workers
            if self._ordering is not None:
                self._carry_out(self._ordering.set_backup(workers))

    def lost(self, incarnations: Sequence[str]) -> None:
        """At the primary: the ledger has given these up. No version that is decided from now on has any of theirs."""
        if self._ordering is not None:
            self._carry_out(self._ordering.on_lost(incarnations))

    def checkpoint(self, name: str) -> None:
        """At the primary: all servers save the version that is the newest now, each its part."""
        assert self._ordering is not None and not self.is_saving, "one checkpoint at a time, by the primary"
        self.checkpoint_wanted = False
        self._saving.begin(name)
        self._carry_out(self._ordering.mark(name))

    def want_checkpoint(self) -> None:
        """At another server: ask the primary for one."""
        self._report(wire.WantCheckpoint(self.state.part))

    def wake(self) -> None:
        """From any thread: `turn` returns soon."""
        self._bell.ring()

    def load(self) -> Load:
        """What there was to do since it was last asked."""
        return self._meter.read()

    # -- turns

    def turn(self, timeout_s: float) -> list[Version | Saved]:
        """Handle what is there, or wait for it; returns what was decided and saved, for the ledger.

        Raises Unavailable if a connection to another server stays broken, or a part cannot be written; NotFinite; and
        Mismatch where servers differ.
        """
        assert self.generation >= 0, "begin first"
        self._collect_saved()
        if not self._out:
            self._polling.wait(timeout_s)
        with self._meter.busy():
            for link, handle in ((self._router, self._on_routed), (self._up, self._on_ordered)):
                for _ in range(MESSAGES_A_TURN if link is not None else 0):
                    frames = links.receive(link)
                    if frames is None:
                        break
                    handle(frames)
        self._collect_saved()
        self._look_at_links()
        out, self._out = self._out, []
        return out

    def _look_at_links(self) -> None:
        self._reached.look()
        if self.state.part or len(self._present) == self.state.servers:
            return
        now_s = monotonic()
        if self._awaited.is_due(now_s):
            missing = ", ".join(peer.where for part, peer in self._peers.items() if part not in self._present)
            for_s = now_s - (self._awaited.since_s or now_s)
            log.warning("%s: nothing has come of %s for %.0f s; nothing is served before", self._name, missing, for_s)

    def _message(self, frames: Sequence[Any]) -> wire.Message | None:
        self._meter.received(frames)
        try:
            message = wire.unpack(self.job, [frame.buffer for frame in frames])
        except Undecodable as error:
            log.warning("server s%d: %s", self.state.part, error)
            return None
        return message if message.generation == self.generation else None

    def _on_routed(self, frames: list[Any]) -> None:
        who, message = frames[0].bytes, self._message(frames[1:])
        if message is None:
            return
        body = message.body
        if isinstance(body, wire.Hello | wire.Staged | wire.Saved | wire.WantCheckpoint):
            self._on_server(who, body)
        elif isinstance(body, wire.Pull | wire.Push | wire.AskRows | wire.Idle):
            try:
                self._on_worker(who, message)
            except ValueError as error:
                self._refuse(who, str(error))

    def _on_ordered(self, frames: list[Any]) -> None:
        message = self._message(frames)
        if message is not None and isinstance(message.body, wire.Ordered):
            self._obey(wire.order_of(message.body))
        elif message is not None and isinstance(message.body, wire.Refused):
            raise Refused(f"The primary server does not go on with {self._name}: {message.body.why}")

    # -- servers

    def _on_server(self, who: bytes, body: Any) -> None:
        ordering, part = self._ordering, int(who.removeprefix(b"server/"))
        assert ordering is not None and 0 < part < self.state.servers, f"{who!r} speaks to s{self.state.part}"
        if isinstance(body, wire.Hello):
            self._on_hello(body)
        elif isinstance(body, wire.Staged):
            self._carry_out(ordering.on_staged(part, body.key))
        elif isinstance(body, wire.WantCheckpoint):
            self.checkpoint_wanted = True
        else:
            self._on_saved(part, body)

    def _hello(self) -> wire.Hello:
        state = self.state
        holds = state.version, state.lineage.hex(), state.layout.digest
        return wire.Hello(state.part, *holds, state.stated(), state.first_digest(), self.sign)

    def _on_hello(self, hello: wire.Hello) -> None:
        wrong = unlike(self._hello(), hello) or self.sees(hello)
        if wrong is not None:  # the other one is to know it as well, and not to wait for this one
            links.linger(self._router, FAREWELL_MS)
            self._refuse(b"server/%d" % hello.part, str(wrong))
            raise wrong
        self._present.add(hello.part)
        self._carry_out([])

    def _report(self, body: Any) -> None:
        """To the primary."""
        assert self._up is not None, "the primary reports to nobody"
        if links.send(self._up, wire.pack(self.job, self.generation, body)) is None:
            self._reached.refuses(server_name(0))

    # -- workers

    def _on_worker(self, who: bytes, message: wire.Message) -> None:
        body = message.body
        request = request_of(self.state, message)
        incarnation = request.incarnation
        if who != f"worker/{incarnation}".encode():
            raise ValueError(f"{who!r} speaks for {incarnation}")
        if self._staging.is_dropped(incarnation):
            self._refuse(who, GIVEN_UP, lost=True)
        elif isinstance(body, wire.AskRows):
            answer = wire.Rows(body.number, self.state.version)
            self._send(who, answer, [self.state.tables[body.table].values(request.wanted[body.table])])
        elif isinstance(body, wire.Idle):
            if self._ordering is not None:
                said = self._ordering.on_bye if body.gone else self._ordering.on_idle
                self._carry_out(said(incarnation))
        else:
            facts = body.facts if isinstance(body, wire.Push) else Contribution(body.key, self._staging.version)
            self._stage(who, facts, request)

    def _stage(self, who: bytes, facts: Contribution, request: Request) -> None:
        self._staging.stage(Item(facts, (who, request)))
        if self._ordering is not None:
            if facts.key.attempt == PULL:
                facts = facts._replace(base=self._ordering.version)
            self._carry_out(self._ordering.on_staged(0, facts.key, facts))
        else:
            self._report(wire.Staged(facts.key))

    def _refuse(self, who: bytes, why: str, lost: bool = False) -> None:
        log.warning("server s%d refuses what %s sends: %s", self.state.part, who.decode(errors="replace"), why)
        self._send(who, wire.Refused(why, lost))

    def _send(self, who: bytes, body: Any, tensors: Sequence[Any] = ()) -> Any | None:
        """To a worker. One that is gone, or takes nothing, hears nothing: the ledger says what becomes of it."""
        frames = wire.pack(self.job, self.generation, body, tensors)
        self._meter.sent(frames)
        return links.send(self._router, frames, who)

    # -- the order

    def _carry_out(self, orders: Sequence[Order]) -> None:
        """At the primary. Orders wait until every server has said what it holds."""
        self._orders.extend(orders)
        ordering = self._ordering
        assert ordering is not None
        while self._orders and len(self._present) == self.state.servers:
            order = self._orders.popleft()
            body = wire.ordered(order)
            for part in range(1, self.state.servers):
                if links.send(self._router, wire.pack(self.job, self.generation, body), b"server/%d" % part) is None:
                    self._reached.refuses(server_name(part))
            self._obey(order)
        self._out.extend(ordering.versions)
        ordering.versions.clear()

    def _obey(self, order: Order) -> None:
        for do in self._staging.obey(order):
            if isinstance(do, Apply):
                gradients = [gradient_of(item.facts, item.payload[1]) for item in do.items]
                self.state.apply(gradients, do.version, order.lineage, do.plan, do.factor)
            elif isinstance(do, Answer):
                self._answer(do)
            else:
                self._save(do)

    def _answer(self, answer: Answer) -> None:
        who, request = answer.item.payload
        key: Key = answer.item.facts.key
        ids = request.pushed if answer.outcome == "late" else request.wanted
        rows = rows_of(self.state, ids)
        counts = tuple(len(one) for one in ids)
        said = key.n, key.attempt, answer.outcome, answer.version, answer.staleness, self.state.lineage.hex()
        body = wire.Params(*said, counts, self._ordering is not None and self._ordering.somebody_is_idle)
        outgoing = self.state.dense.outgoing
        tracker = self._send(who, body, [*outgoing.of(self.state.dense.params), *rows])
        if tracker is not None:
            outgoing.sent(tracker)

    # -- checkpoints

    def _save(self, save: Save) -> None:
        self._saving.save(save.name)

    def _collect_saved(self) -> None:
        written = self._saving.written()
        if written is not None:
            if self._ordering is None:
                self._report(written)
            else:
                self._on_saved(0, written)

    def _on_saved(self, part: int, body: wire.Saved) -> None:
        complete = self._saving.collect(part, body)
        if complete is not None:
            self._out.append(complete)
