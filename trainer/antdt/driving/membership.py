"""What one worker is made of, and what its life asks of it: the connection, the files, the way out.

Owns how instructions of a `life` are carried out that concern generations and files, and what SIGTERM means meanwhile.
Must not know in which order, nor of samples and micro-batches.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from antdt_schemas import records
from antdt_schemas.address import ENV_ADVERTISE, LOOPBACK, can_bind, own_address
from antdt_schemas.errors import ExitCode

from antdt.connect.alone import Alone
from antdt.connect.client import Client, ClientOptions, renew
from antdt.connect.settings import SERVER, Settings
from antdt.files.model_files import ModelFiles
from antdt.files.no_files import NoFiles
from antdt.host import told, whereabouts
from antdt.host.whereabouts import At
from antdt.job import AgentOptions, batch_factor
from antdt.strategies.base import Here, Strategy
from antdt.worker import instructions as ask
from antdt.worker.life import Life
from antdt.worker.outside import LifeOptions, Outside
from antdt.worker.plans import Plans
from antdt.worker.session import Phase, Session, Where
from antdt.worker.telemetry import Sort, Telemetry

log = logging.getLogger("antdt")

LINGER_S = 1.0
SLOW_BYTES_A_S = 10e6  # a disk that is slower than that is stuck


class Membership:
    """Carries out what its `life` asks for, in the training thread. `client` holds the session of the present
    incarnation, which is that of the life. life_of: the class of lives that it has.
    """

    life_of: type[Life] = Life

    def __init__(
        self, settings: Settings, options: AgentOptions, spec: records.JobSpec, strategy: Strategy, plans: Plans
    ) -> None:
        if settings.alone:  # what another model of this process has learned of its memory is not for this one
            whereabouts.adopt(whereabouts.Page())
        self.settings, self.options, self.spec, self.strategy = settings, options, spec, strategy
        self._began_at_step, self._batch_size = -1, spec.batch_size
        self._handler: Any = None
        self.files = self._files()
        self.client = self._connect(plans)
        self.client.on_closed = strategy.close
        every, patience_s = options.checkpoint_every_steps, options.join_timeout_s
        said = LifeOptions(settings.job, spec.workers_min, patience_s, every, settings.grace_s, settings.rank)
        outside = Outside(monotonic, self.client.lock, lambda level, what: log.log(level, "%s", what))
        self.life = self.life_of(self.client.session, plans, strategy, self.files, said, outside)

    def _files(self) -> ModelFiles | NoFiles:
        s = self.settings
        kept = not s.alone or s.checkpoints != Path()
        return ModelFiles(s.checkpoints, s.job, self.strategy) if kept else NoFiles(self.strategy)

    def _connect(self, plans: Plans) -> Client | Alone:
        s = self.settings
        host, port = self.strategy.address
        where = Where(host, port, s.node, s.hardware, s.restarts, s.launch, s.launcher, s.place, s.take_over)
        asking = replace(self.options.session, commit_every_s=0.0, hurried_s=0.0) if s.alone else self.options.session
        session = Session(s.worker, s.incarnation, self.spec, where, asking, role=s.role)
        telemetry = self._telemetry(s.incarnation)
        if s.alone:
            return Alone(session, plans, telemetry)
        most = self.strategy.pending_max
        options = ClientOptions(s.connection, s.job, s.secret, pending_max=most, ousted_s=s.grace_s)
        return Client(options, session, plans, telemetry)

    def _telemetry(self, incarnation: str) -> Telemetry:
        s = self.settings
        sort = Sort(s.role, strategy=self.spec.strategy)
        return Telemetry(s.worker, incarnation, s.node, s.hardware, self.options.batch_size_max, sort)

    @property
    def session(self) -> Session:
        """That of the present incarnation."""
        return self.client.session

    @property
    def is_main(self) -> bool:
        """Whether this worker speaks for all: the first member, or whoever the launcher counts first where none is."""
        rank = self.session.rank
        return rank == 0 or (rank < 0 and self.settings.rank == 0)

    def labels(self) -> dict[str, str]:
        """What the model is, for a file of its weights."""
        head = {"antdt.step": str(self.strategy.step_number), "antdt.lineage": self.strategy.lineage.hex()}
        return {"antdt.job": self.settings.job, "antdt.run": self.files.run_id, **head}

    # -- what the life asks for

    def perform(self, asked: ask.Instruction) -> Any:
        """Do it; returns what is to be heard of it. Raises GenerationClosed where it cannot be done for that."""
        page = whereabouts.mine()
        match asked:
            case ask.Enter(at, detail):
                page.enter(at, detail)
            case ask.Wait(met, patience_s):
                with self.session.waiting():
                    return self.client.wait(met, patience_s)
            case ask.Form(grant, closed):
                self.strategy.incarnation = self.session.incarnation
                self.strategy.form(grant, self.session.rank, closed)
            case ask.Align(grant):
                self._align(grant)
            case ask.Stands():
                if self._began_at_step < 0:
                    self._began_at_step = self.strategy.step_number
                self.note()
            case ask.Leave():
                self.strategy.abort()
            case ask.Renew():
                return self._renew()
            case _:
                return self._file(asked)
        return None

    def _file(self, asked: ask.Instruction) -> Any:
        match asked:
            case ask.GatherRandom():
                self.strategy.verify()
                return self.strategy.gather_random()
            case ask.WriteFile(random, patience_s):
                what = f"the file of step {self.strategy.step_number}"
                whereabouts.mine().enter(At.SAVING, what, self.strategy.size_bytes / SLOW_BYTES_A_S)
                return self.files.write(self.session, random, patience_s)
            case ask.Prune():
                self.files.prune(self.session)
            case ask.RetryInit():
                self.files.retry_init()
            case ask.TakeFinal(file):
                return self.files.take_final(file)
            case _:
                raise AssertionError(f"{asked} is not for a member")
        return None

    def _align(self, grant: records.Grant) -> None:
        asked, found, rank = self.options.shard_size, grant.shard_size, self.session.rank
        if not self.files.run_id and asked and found not in (0, asked):
            said = "shard_size=%d is ignored: the shards of job %s have %d samples, as its first worker has named it"
            log.warning(said, asked, self.settings.job, found)
        first, self.files.run_id = not self.files.run_id, grant.run_id
        if first:
            self._draw_apart(grant, rank)
        self._announce(grant)
        self.strategy.align(grant, rank, self.files)
        if grant.batch_size:
            self._resize(grant)

    def _announce(self, grant: records.Grant) -> None:
        """To load a model takes its time, and nobody can end it."""
        page, what = whereabouts.mine(), "takes over the model"
        page.enter(At.FORMING, what)
        size_bytes = max(self.strategy.size_bytes, self.files.size_bytes(grant))
        page.enter(At.FORMING, what, size_bytes / SLOW_BYTES_A_S)

    def _resize(self, grant: records.Grant) -> None:
        """Steps of this generation have its batch size, and learning rates go with it where the script wants that."""
        rates, how = self.strategy.rates, self.options.learning_rate_with_batch
        rates.batch_factor = batch_factor(how, grant.batch_size, grant.batch_size_first)
        if grant.batch_size != self._batch_size:
            step, times = self.strategy.step_number + 1, f", learning rates times {rates.batch_factor:g}" if how else ""
            log.info("the global batch is %d samples from step %d on%s", grant.batch_size, step, times)
        self._batch_size = grant.batch_size

    def _draw_apart(self, grant: records.Grant, rank: int) -> None:
        """Scripts seed all workers alike, for equal weights. What the loop draws from here on (dropout, augmentation)
        must not be the same for all of them, nor once more what an earlier life has drawn. The first worker of a job
        goes on as the script has seeded it, as a single process does. What a checkpoint restores comes later, and wins.
        """
        s = self.settings
        if (rank, s.restarts, grant.committed) != (0, 0, 0):
            self.strategy.diverge(s.worker, s.restarts, grant.generation)

    def _renew(self) -> Session:
        old = self.session
        port = self.strategy.address[1]
        incarnation = f"{old.worker}.{old.where.restarts + 1}.{port:x}{int(monotonic() * 1e3):x}"
        whereabouts.mine().say(whereabouts.NAME, incarnation)
        with self.client.lock:
            self.client.session = renew(old, incarnation)
            self.client.telemetry = self._telemetry(incarnation)
        return self.client.session

    def kept(self) -> str:
        """Where the model is that this worker leaves the loop with."""
        life, files, session, step = self.life, self.files, self.session, self.strategy.step_number
        if self.settings.alone and not files.written_name:
            return "its model is the one in this process."
        if step == 0:
            kept = "no step was made."
        elif files.written_step == step:
            kept = f"its model is in {files.folder / files.written_name}."
        elif session.rank > 0 and life.departed:
            kept = f"{life.workers[0]} saves its model."
        else:
            kept = f"its model is not saved, {files.last_good(session)}."
        if session.finished:
            return f"{kept} Every sample is in it."
        alone = " The other workers go on." if life.departed and not life.all_leave else ""
        return f"{kept}{alone} The job is not at its end: launched again, it goes on."

    # -- the way out

    def note(self) -> None:
        """Let the launcher know where this worker stands."""
        step = min(self.session.committed, self.strategy.step_number)
        # What was committed before this life is none of its merits.
        taken_part = step if step > self._began_at_step else 0
        whereabouts.mine().note(taken_part, self.session.files.kept_steps[-1])

    def drain_on_sigterm(self) -> None:
        """SIGTERM: finish the step, leave, exit with 143. A handler that was there before is called as well.

        Where everybody leaves at once, the first member writes a checkpoint: nothing has to be done again. Whoever was
        told before, and held up the end that this means, ends here.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(signal.SIGTERM)

        def drain(number: int, frame: Any) -> None:
            told.remember()
            self.life.told_at_s = told.at_s()
            if callable(before) and before is not told.end:
                before(number, frame)

        self._handler = drain, before
        signal.signal(signal.SIGTERM, drain)
        if told.at_s() is not None:
            sys.exit(int(ExitCode.DRAINED))

    def _restore_handler(self) -> None:
        """Behind the loop SIGTERM means again what it did before."""
        if self._handler is not None and signal.getsignal(signal.SIGTERM) is self._handler[0]:
            signal.signal(signal.SIGTERM, self._handler[1])

    def finish(self, *, linger: bool = False) -> None:
        """Say good-bye, whatever happened; soon, where there may be a last word to be said before.

        What is in quarantine by now makes the process end with 3, unless the script ends it otherwise.
        """
        page = whereabouts.mine()
        page.enter(At.ENDING)
        if self.life.ended and self.session.quarantined:
            missing = self.session.reason or f"{self.session.quarantined:,} samples are in quarantine"
            log.warning("%s", missing)
            page.say(0, missing)
            page.numbers[whereabouts.INCOMPLETE] = 1
        self.client.on_closed = None
        self.strategy.end()
        try:
            if linger:
                self.client.linger(LINGER_S)
            else:  # who was ousted has nothing to say any more
                self.client.stop(leave=self.session.phase is not Phase.OUSTED)
        finally:
            self._restore_handler()


def here_of(settings: Settings) -> Here:
    """Where other members meet this process. gloo tells its peers the address that it is bound to, so that has to be
    one of this machine.
    """

    if settings.alone:
        return Here(LOOPBACK, lambda: LOOPBACK, settings.job, settings.worker)

    def listens_at() -> str:
        named, route = settings.advertise, own_address({}, settings.connection.bootstrap)
        if can_bind(named):
            return named
        said = "%s=%s is no address of this machine: members meet there, and exchange gradients at %s"
        log.warning(said, ENV_ADVERTISE, named, route)
        return route

    return Here(settings.advertise, listens_at, settings.job, settings.worker, settings.role == SERVER)
