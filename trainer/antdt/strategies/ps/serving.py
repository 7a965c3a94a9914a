"""A server of parameters as one part of a job: what the rest of this process has of it.

Owns which state it serves: that of a file, or of the script. Must not know how versions are decided, nor what is
written where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from antdt_schemas import records
from antdt_schemas.batches import Cursor
from antdt_schemas.errors import UsageError
from antdt_schemas.strategies import DROP

from antdt.strategies.base import Here, Restores
from antdt.strategies.habits import guard
from antdt.strategies.once import Once
from antdt.strategies.ps.agreeing import all_seen
from antdt.strategies.ps.contribution import Factor
from antdt.strategies.ps.core.facts import Mode, Version
from antdt.strategies.ps.layout import layout_of
from antdt.strategies.ps.load import Load
from antdt.strategies.ps.options import ParameterServer
from antdt.strategies.ps.refusals import refuse, refuse_hooks
from antdt.strategies.ps.saving import Saved
from antdt.strategies.ps.server import Server
from antdt.strategies.ps.state import ServerState

Write = Callable[[str, memoryview], bytes]


class Serving:
    """A part of the model. Only the thread that owns it calls it. `server` is another one in each generation.

    write: makes a durable file of this name, and returns its digest; another thread calls it. sign, sees: as those
    of a Server.
    """

    ranges_max: ClassVar[int] = 0
    first_bucket_at: float | None = None
    incarnation = ""

    def __init__(self, model: torch.nn.Module, optimizer: Any, options: ParameterServer, here: Here) -> None:
        guard.refuse(model, optimizer)
        self.model, self.optimizer, self.options, self._here = model, optimizer, options, here
        self.layout, self.once = layout_of(model, optimizer), Once()
        self.part = int(here.worker.removeprefix("s"))
        self.pending_max, self.form_patience_s, self.backup = options.pending_max, options.unreachable_s, options.backup
        self.void, self.saved_step, self.cursor = False, -1, Cursor()
        self.pending: Sequence[Any] = ()
        self.write: Write
        self.sign, self.sees = "", all_seen
        self._server: Server | None = None
        self.plan_in_force = 0
        self.rates = Factor()
        self._peers: list[tuple[str, int]] = []
        self._generation = 0
        self._port = 0

    def accompany(self, once: Once) -> None:
        """Before the first step. Raises UsageError for what servers cannot do."""
        refuse(self.model, self.optimizer, once)
        self.once = once

    def diverge(self, *salt: object) -> None:
        """A server draws nothing but first values, which follow from seeds."""

    def drop_pending(self, up_to_step: int) -> None:
        """The session has what awaits its commit."""

    # -- where it is

    @property
    def step_number(self) -> int:
        """The version that this part has."""
        return self._server.state.version if self._server is not None else 0

    @property
    def lineage(self) -> bytes:
        """What is in it."""
        return self._serving().state.lineage

    @property
    def plan(self) -> int:
        """The one that a version was last made under. No server waits to have read it: the primary says what counts."""
        return 0

    @property
    def address(self) -> tuple[str, int]:
        """Where workers and other servers find it in the next generation."""
        if self._server is None:
            self.bind()
        return self._here.advertise, self._port

    @property
    def active(self) -> int:
        """Workers that are at something."""
        return len(self._serving().active)

    @property
    def is_saving(self) -> bool:
        """Whether files were asked for that are not all there."""
        return self._serving().is_saving

    @property
    def wanted(self) -> bool:
        """Whether another server asks for files."""
        return bool(self._serving().checkpoint_wanted)

    @property
    def is_open(self) -> bool:
        """A server has no step of its own."""
        return False

    @property
    def stands(self) -> bool:
        """Whether it serves."""
        return self._generation > 0

    @property
    def size_bytes(self) -> int:
        """About that of its part."""
        whole = sum(block.size for block in self.layout.blocks) * 4
        return whole // max(1, self.options.servers)

    # -- generations

    def bind(self) -> int:
        """Where the next generation finds it: another port, so that nothing of the last one arrives there."""
        mode = Mode(self.options.mode, self.options.staleness, self.options.late == DROP)
        if self._server is None:
            own = self.layout, self.model, self.optimizer, self.part, self.options.servers, self.once
            self._server = Server(ServerState(*own), mode, self._here.job, self._write, self.options.unreachable_s)
        self._port = self._server.bind(self._here.listens_at())
        return self._port

    def form(self, grant: records.Grant, rank: int, closed: Callable[[], bool]) -> None:
        """The other servers are known; it does not serve before it has what all begin with."""
        refuse_hooks(self.optimizer, self.once)
        if rank != self.part or len(grant.members) != self.options.servers:
            raise UsageError(
                f"{self._here.worker} is number {rank} of {len(grant.members)} servers, and {self.options.servers} "
                "were started as s0, s1, ...: start each name once."
            )
        self._peers, self._generation = [(m.host, m.port) for m in grant.members], grant.generation

    def align(self, grant: records.Grant, rank: int, files: Restores) -> None:
        """It has the part of the grant's file, or what the script has made; all of a generation begin with the same."""
        files.restore(grant, rank)
        self.void = False
        server = self._serving()
        server.sign, server.sees = self.sign, self.sees
        server.begin(self._generation, self._peers)

    def load(self, data: bytes | None) -> None:
        """A part of a file; None: what the script has made."""
        server = self._serving()
        if data is None:
            server.state.reset()
        else:
            server.state.load(data)
        self.saved_step = server.state.version

    def abort(self) -> None:
        """Out of the generation: nothing is staged any more."""
        self._generation = 0
        self._serving().leave()

    def close(self) -> None:
        """From any thread: it looks up."""
        if self._server is not None:
            self._server.wake()

    def end(self) -> None:
        """Behind the last version; waits for a part that is being written."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def outlive(self) -> None:
        """The job has ended."""

    # -- serving

    def turn(self, patience_s: float) -> list[Version | Saved]:
        """Take what has come, or wait so long for it. Returns what was decided, and what all servers have saved.

        Raises Unavailable, NotFinite, Mismatch.
        """
        found: list[Version | Saved] = self._serving().turn(patience_s)
        return found

    def obey(self, lost: Sequence[str], plan: int, backup: int, learning_rate_factor: float) -> None:
        """From now on nothing of these incarnations is taken, and versions are made under this plan."""
        server = self._serving()
        server.lost(list(lost))
        server.plan, server.backup, server.learning_rate_factor = plan, backup, learning_rate_factor
        self.plan_in_force, self.rates.factor = plan, learning_rate_factor

    def _write(self, name: str, data: memoryview) -> bytes:
        return self.write(name, data)

    def mark(self, stem: str, *, primary: bool) -> None:
        """All servers save their parts behind the same version; or are to be asked for that."""
        server = self._serving()
        server.checkpoint(stem) if primary else server.want_checkpoint()

    def load_since(self) -> Load:
        """What serving has taken since this was last asked."""
        return self._serving().load()

    def _serving(self) -> Server:
        assert self._server is not None, "bind first"
        return self._server
