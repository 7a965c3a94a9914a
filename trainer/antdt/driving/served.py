"""What a worker of servers is made of, and what a server is: as `membership`, for lives of their own.

Owns how their instructions are carried out. Must not know in which order.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

from antdt_schemas import records
from antdt_schemas.errors import UsageError
from antdt_schemas.strategies import server_name

from antdt.connect.settings import Settings
from antdt.driving.membership import Membership
from antdt.files import checkpoint
from antdt.files.model_files import ModelFiles
from antdt.files.no_files import NoFiles
from antdt.files.part_files import SEEN_S, PartFiles, stem_of
from antdt.host import whereabouts
from antdt.host.whereabouts import At
from antdt.job import AgentOptions
from antdt.strategies.base import Strategy
from antdt.strategies.ps.core.facts import Version
from antdt.strategies.ps.member import ServedMember
from antdt.strategies.ps.saving import Saved
from antdt.strategies.ps.serving import Serving
from antdt.strategies.ps.wire import Hello
from antdt.worker import instructions as ask
from antdt.worker.attached import AttachedLife
from antdt.worker.instructions import Decided, Parts, Turned
from antdt.worker.life import Life
from antdt.worker.plans import Plans
from antdt.worker.serving import ServingLife
from antdt.worker.telemetry import StepTiming

log = logging.getLogger("antdt")

REPORT_S = 0.25  # of service in one row of what a server says of itself


class WorkerOfServers(Membership):
    """See Membership: the model is on servers."""

    strategy: ServedMember
    files: Any
    life_of: type[Life] = AttachedLife
    _looked = False

    def _files(self) -> ModelFiles | NoFiles:
        s = self.settings
        return PartFiles(s.checkpoints, s.job, self.strategy, self.strategy.assemble)

    def perform(self, asked: ask.Instruction) -> Any:
        """See Membership."""
        if isinstance(asked, ask.Idle):
            self.strategy.idle(leaving=asked.leaving)
            return None
        heard = super().perform(asked)
        if isinstance(asked, ask.Align) and not self._looked:
            self._look_at_folder(asked.grant)
        return heard

    def _look_at_folder(self, grant: records.Grant) -> None:
        """Servers that have answered have written into theirs: whether it is this worker's, too."""
        self._looked = True
        first = grant.members[0]
        if not self.files.sees(server_name(0), first.incarnation, SEEN_S):
            log.warning(
                "%s has nothing of what the servers write into the folder of checkpoints: where it is not the same as "
                "theirs this worker cannot load the final model, and ends with 75. Mount one everywhere, and name it "
                "in ANTDT_CHECKPOINTS.",
                self.files.folder,
            )

    def kept(self) -> str:
        """Where the model is that this worker leaves the loop with."""
        done = " Every sample is in it." if self.session.finished else ""
        return f"the model is on the servers, at version {self.strategy.step_number} or later.{done}"


class ServerOfWorkers(Membership):
    """See Membership: this process serves."""

    strategy: Any
    life_of: type[Life] = ServingLife
    files: Any

    def __init__(
        self, settings: Settings, options: AgentOptions, spec: records.JobSpec, strategy: Strategy, plans: Plans
    ) -> None:
        super().__init__(settings, options, spec, strategy, plans)
        self.server: Serving = self.strategy
        self.server.write = self._write
        self._reported_s, self._row = monotonic(), 0

    def _files(self) -> ModelFiles | NoFiles:
        s = self.settings
        return _Parts(s.checkpoints, s.job, self.strategy)

    def perform(self, asked: ask.Instruction) -> Any:
        """See Membership."""
        match asked:
            case ask.Serve(patience_s):
                return self._serve(patience_s)
            case ask.Obey(lost, plan, backup, factor):
                self.server.obey(lost, plan, backup, factor)
            case ask.Mark():
                step, session = self.server.step_number, self.session
                stem = stem_of(session.generation, session.incarnation, step)
                self.server.mark(stem, primary=session.rank == 0)
            case ask.Publish(parts):
                return self.files.publish(self.session, parts)
            case ask.Bind():
                return self.server.bind()
            case _:
                return super().perform(asked)
        return None

    def _serve(self, patience_s: float) -> Turned:
        whereabouts.mine().enter(At.SERVING)
        decided, saved = list[Decided](), list[Parts]()
        for one in self.server.turn(patience_s):
            if isinstance(one, Version):
                ranges = tuple(number for made in one.contributions for number in made.ranges)
                decided.append(Decided(one.version, ranges, one.lineage, one.plan))
            else:
                saved.append(_parts(one, self.server.plan_in_force))
        self._report()
        return Turned(decided, saved)

    def _write(self, name: str, data: memoryview) -> bytes:
        """A part, by a thread of the server's."""
        digest: bytes = self.files.write_part(name, data, self.session)
        self.server.saved_step = checkpoint.step_of(name)
        return digest

    def _report(self) -> None:
        """How busy this server is: a row of its own among the timings of steps."""
        now_s = monotonic()
        if now_s - self._reported_s < REPORT_S:
            return
        self._reported_s = now_s
        self.note()
        load = self.server.load_since()
        if not load.messages:
            return
        self._row += 1
        step = self.server.step_number if self.server.options.mode == "bsp" else self._row
        served = load.bytes_in + load.bytes_out
        idle_s = max(0.0, load.period_s - load.busy_s)
        session, plan = self.session, self.server.plan_in_force
        self.client.telemetry.add(StepTiming(session.generation, step, served, plan, 0.0, load.busy_s, 0.0, idle_s))


class _Parts(PartFiles):
    """Of a server: it has one part, and loads that."""

    strategy: Any

    def restore(self, grant: records.Grant, rank: int) -> None:
        """See ModelFiles."""
        self.strategy.void = True
        found = self.part(grant, self.strategy.part)
        self.strategy.load(None if found is None else found[1])
        # Not what was there before: a folder that was copied is not one that is shared.
        self.strategy.sign = self.leave_sign(server_name(rank), self.strategy.incarnation)
        self.strategy.sees = self._seen

    def _seen(self, hello: Hello) -> Exception | None:
        """What is wrong if another server writes elsewhere: a manifest here would name a part that nobody finds."""
        server = server_name(hello.part)
        if not hello.sign or self.sees(server, hello.sign, SEEN_S):
            return None
        return UsageError(
            f"The folder of checkpoints is not the same on all machines: {self.folder} has nothing of what server "
            f"{server} has just written into its own. Mount one everywhere, and name it in ANTDT_CHECKPOINTS."
        )


def _parts(saved: Saved, plan: int) -> Parts:
    return Parts(saved.version, saved.lineage, plan, tuple((name, digest) for name, digest in saved.parts))
