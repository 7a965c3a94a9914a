"""The Agent: what a training script adds to a plain PyTorch loop.

    agent = antdt.Agent(model, optimizer, dataset, batch_size=256, epochs=5)
    for x, y in agent:
        loss = loss_function(model(x), y)
        agent.step(loss)

Owns the order of things in the training thread: form a generation, take samples, hand out micro-batches, reduce and
apply, report. The protocol is `session`'s, the collectives are `allreduce`'s, the connection is `client`'s.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any

import torch
from antdt_schemas import records
from antdt_schemas.errors import ExitCode, ForeignState, Refused, Unavailable, UsageError
from antdt_schemas.limits import INIT_FILE

from antdt import checkpoint
from antdt.allreduce import (
    AllReduce,
    AllReduceOptions,
    Generation,
    GenerationClosed,
    GenerationOptions,
    Range,
    Rendezvous,
    StepResult,
    store_of,
)
from antdt.allreduce.composition import RANGES_MAX
from antdt.allreduce.state import Saved
from antdt.client import Client, ClientOptions, renew
from antdt.data import manifest_digest, source_of
from antdt.plans import Plans, Share
from antdt.session import Composition, Phase, Session, SessionOptions, Where
from antdt.settings import Settings
from antdt.telemetry import StepTiming, Telemetry

log = logging.getLogger("antdt")

IDLE_ROUND_S = 0.02
FIRST_LEASE_S = 1.0
HINT_EVERY_S = 10.0
FAREWELL_S = 5.0
INIT_NAME = f"{INIT_FILE}.pt"


@dataclass(frozen=True)
class AgentOptions:
    """What most jobs leave alone.

    shard_size: samples; 0 chooses an eighth of an even share. micro_batch_size_max: samples that one backward may hold;
    0 for all. checkpoint_every_steps: 0 for the final one only. join_timeout_s bounds the wait for the other workers.
    """

    workers_min: int = 0
    shard_size: int = 0
    max_attempts: int = 4
    micro_batch_size_max: int = 0
    checkpoint_every_steps: int = 0
    join_timeout_s: float = 600.0
    allreduce: AllReduceOptions = field(default_factory=AllReduceOptions)
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    session: SessionOptions = field(default_factory=SessionOptions)


@dataclass(slots=True)
class _Clock:
    """Where the time of one step goes; seconds by perf_counter."""

    began: float = 0.0
    data_s: float = 0.0
    first_bucket_at: float | None = None


class Agent:
    """One worker of a job. Iterate it for micro-batches; call `step(loss)` for each of them."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Any,
        dataset: Any,
        *,
        batch_size: int,
        epochs: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        size: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        options: AgentOptions | None = None,
        settings: Settings | None = None,
    ) -> None:
        """batch_size: samples of all workers together in one step. size: of an iterable data set without a length.

        Raises:
            UsageError: a value that cannot work, with what to do about it.
            Unavailable, UnknownJob: the broker is away, or the job was not started.
        """
        self.options = options or AgentOptions()
        self.settings = settings or Settings.of()
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}: the global batch needs at least one sample.")
        if epochs < 1:
            raise UsageError(f"epochs={epochs}: train for at least one.")
        self.source = source_of(dataset, seed=seed, size=size, shuffle=shuffle, collate=collate_fn)
        workers = self.options.workers_min or self.settings.world_size
        self._check_sizes(workers, batch_size)
        self.spec = records.JobSpec(
            dataset=getattr(dataset, "name", None) or type(dataset).__name__,
            samples=self.source.size,
            dataset_digest=manifest_digest(dataset, self.source),
            order=self.source.order,
            epochs=epochs,
            seed=seed,
            shard_size=self.options.shard_size or max(1, batch_size // (8 * workers)),
            batch_size=batch_size,
            workers_min=workers,
            max_attempts=self.options.max_attempts,
            strategy="allreduce",
        )
        self.strategy = AllReduce(model, optimizer, self.options.allreduce)
        self.plans = Plans(batch_size)
        self.epoch = 0
        self.ended = False
        self._rendezvous = Rendezvous(self.settings.advertise)
        self._generation: Generation | None = None
        self._workers: list[str] = []
        self._micro: tuple[int, bool] | None = None
        self._broken, self._draining, self._departed = False, False, False
        self._previous_total = 1
        self._clock = _Clock()
        self._written_step = -1
        self._run_id = ""
        self._client = self._connect()

    def _check_sizes(self, workers: int, batch_size: int) -> None:
        if self.source.size < workers:
            raise UsageError(
                f"The data set has {self.source.size} samples for {workers} workers: "
                f"start at most {self.source.size} workers, or take more data."
            )
        if batch_size < workers:
            raise UsageError(f"batch_size={batch_size} is less than one sample for each of the {workers} workers.")

    def _connect(self) -> Client:
        s = self.settings
        where = Where(self._rendezvous.host, self._rendezvous.port, s.node, s.hardware, s.restarts)
        session = Session(s.worker, s.incarnation, self.spec, where, self.options.session)
        telemetry = Telemetry(s.worker, s.incarnation, s.node, s.hardware)
        client = Client(ClientOptions(s.connection, s.job, s.secret), session, self.plans, telemetry)
        client.on_leases = self.source.prepare
        return client

    # -- what a script uses

    @property
    def rank(self) -> int:
        """Rank in the current generation; 0 is the one that reports. -1 while there is none."""
        return self._session.rank

    @property
    def step_number(self) -> int:
        """Steps in the model."""
        return self.strategy.step_number

    @property
    def lineage(self) -> str:
        """What is in the model, as the hexadecimal hash that the log has for this step."""
        return self.strategy.lineage.hex()

    @property
    def incarnation(self) -> str:
        """This life of this worker. It is a new one after the ledger has given the old one up for lost."""
        return self._session.incarnation

    @property
    def batch_size(self) -> int:
        """Samples that this worker takes in the step at hand."""
        return self._share().batch_size if self._workers else 0

    def __iter__(self) -> Iterator[Any]:
        """Micro-batches until every sample of every epoch is in the model and a durable file holds it.

        Raises:
            Refused: the ledger refused this worker (other data, a job that is taken), with its reason.
            Unavailable: broker or ledger did not answer within the bounds.
        """
        self._client.start()
        self._drain_on_sigterm()
        try:
            while not self.ended:
                if self._departed or (self._draining and self._generation is None):
                    sys.exit(ExitCode.DRAINED)
                try:
                    self._enter()
                    if not self.ended and self._generation is not None:
                        yield from self._round()
                except GenerationClosed as closed:
                    log.info("generation is over: %s", closed)
                    self._leave()
        finally:
            self._finish()

    def step(self, loss: torch.Tensor) -> bool:
        """Backward for the micro-batch at hand; reduces and applies after the last one of a step.

        loss: the mean over the micro-batch. Returns True when the model has changed: `step_number` and `lineage` say to
        what.
        """
        if self._micro is None:
            raise UsageError("agent.step(loss) belongs into the loop over the Agent, once for every batch.")
        (samples, last), self._micro = self._micro, None
        if self._broken:
            return False
        before = self.strategy.step_number
        try:
            if last:
                self.strategy.see(self.plans.newest)
            self.strategy.backward(loss, samples, last)
            if last:
                self._clock.first_bucket_at = self.strategy.first_bucket_at
                self._account(self.strategy.step())
        except GenerationClosed as closed:
            log.info("generation is over: %s", closed)
            self._broken = True
        return self.strategy.step_number > before

    # -- generations

    @property
    def _session(self) -> Session:
        return self._client.session

    def _enter(self) -> None:
        """Be a member of a generation that stands, or be at the end."""
        while self._generation is None and not self.ended and not self._draining:
            self._await_grant()
            session = self._session
            if session.phase is Phase.ENDED:
                self._take_final(session.file)
                self.ended = True
            elif session.phase is Phase.FAILED:
                raise Refused(f"The ledger refused {session.worker}: {session.reason}")
            elif session.phase is Phase.LOST:
                self._rejoin(session.reason)
            elif session.phase is Phase.MEMBER:
                self._form()
            else:
                self._leave()
        if self._session.phase is Phase.FAILED:
            raise Refused(f"The ledger refused {self._session.worker}: {self._session.reason}")

    def _await_grant(self) -> None:
        session, until = self._session, monotonic() + self.options.join_timeout_s
        asking = Phase.JOINING, Phase.REGROUPING
        while not self._client.wait(lambda: session.phase not in asking or self._draining, HINT_EVERY_S):
            waited_for = "the ledger and the job's other workers" if session.generation == 0 else "the next generation"
            log.warning("%s is waiting for %s", session.worker, waited_for)
            if monotonic() > until:
                raise Unavailable(
                    f"{waited_for} did not come within {self.options.join_timeout_s:.0f} s.",
                    f"Is `antdt up {self.settings.job}` running, and are all {self.spec.workers_min} workers started?",
                )

    def _form(self) -> None:
        session = self._session
        grant = session.grant
        assert grant is not None
        number = grant.generation

        def closed() -> bool:
            current = self._session
            return current is not session or session.generation != number or session.phase is not Phase.MEMBER

        first = grant.members[0]
        try:
            generation = Generation(
                number,
                len(grant.members),
                session.rank,
                store_of(first.host, first.port),
                closed,
                self.options.generation,
            )
            self._generation = generation
            self._client.on_closed = generation.close
            self._adopt(grant, generation)
        except GenerationClosed as error:
            log.info("%s", error)
            self._leave()
            return
        self._workers = [m.worker for m in grant.members]
        self._previous_total, self._written_step = 1, -1  # the event of an earlier file may be lost
        with self._client.changed:
            self.strategy.drop_pending(session.committed)
            pending = [Composition(c.step, c.ranges, b"", c.plan) for c in self.strategy.pending]
            session.begin(pending, self.strategy.lineage)
        log.info("%s is rank %d of %d in generation %d", session.worker, session.rank, len(self._workers), number)

    def _adopt(self, grant: records.Grant, generation: Generation) -> None:
        """Everybody holds the same state afterwards: the source's, or that of a file."""
        strategy, source = self.strategy, 0
        if not self._run_id and self.options.shard_size and grant.shard_size not in (0, self.options.shard_size):
            said = "shard_size=%d is ignored: the shards of job %s have %d samples, as its first worker has named it"
            log.warning(said, self.options.shard_size, self.settings.job, grant.shard_size)
        self._run_id = grant.run_id
        strategy.attach(generation)
        if grant.source is not None:
            source = next(i for i, m in enumerate(grant.members) if m.incarnation == grant.source)
        else:
            self._restore(grant, generation)
        strategy.adopt(source)

    def _restore(self, grant: records.Grant, generation: Generation) -> None:
        """The first member loads the file. The model before any step becomes one when it is first used.

        What the others hold is void until they have it from the first, or it would be taken for part of this run.
        """
        strategy, folder = self.strategy, self._folder()
        fresh = grant.restore_file == INIT_FILE and strategy.step_number == 0 and not strategy.void
        strategy.void = not fresh
        random = strategy.gather_random() if grant.restore_file == INIT_FILE else []
        if generation.rank:
            return
        name = INIT_NAME if grant.restore_file == INIT_FILE else grant.restore_file or ""
        if name != INIT_NAME or not fresh or (folder / name).exists():
            data = checkpoint.read(folder, name, self.settings.job)
            strategy.restore(data, lambda saved: self._check(saved, grant, name))
        else:
            checkpoint.write(folder, name, strategy.snapshot(random, self._labels(name)))

    def _take_final(self, file: str) -> None:
        """The job ended without this worker: it started later, or was behind. The final model is that file."""
        folder = self.settings.checkpoints
        found = next(folder.glob(f"*/{file}"), folder / file)  # names are unique; one who never was granted has no run
        self.strategy.restore(checkpoint.read(found.parent, file, self.settings.job))

    def _labels(self, name: str) -> dict[str, str]:
        return {"run": self._run_id, "job": self.settings.job, "file": name}

    def _check(self, saved: Saved, grant: records.Grant, name: str) -> None:
        """Before anything is overwritten: the file is the one of this grant, not one that was put in its place."""
        hint = f"Go back to another one: {checkpoint.rollback(self.settings.job)}."
        expected = {**self._labels(name), "step": str(grant.committed)}
        found = {**saved.labels, "step": str(saved.progress.step)}
        for label, value in expected.items():
            if found.get(label) != value:
                what = f"The {label} of checkpoint {self._folder() / name}"
                raise ForeignState(what, value, found.get(label, "none"), hint)

    def _folder(self) -> Any:
        return self.settings.checkpoints / self._run_id

    def _leave(self) -> None:
        """Out of the generation, state as of the last applied step; then ask for the next one."""
        self._client.on_closed = None
        self.strategy.abort()
        if self._generation is not None:
            self._generation.leave()
        self._generation, self._broken, self._micro = None, False, None
        self._workers = []
        claim = None if self.strategy.void else self.strategy.step_number
        with self._client.changed:
            self._session.regroup(claim, self.strategy.lineage)

    def _rejoin(self, reason: str) -> None:
        """This incarnation was declared lost while it slept: its model is void, and it comes back as a new one."""
        old = self._session
        log.warning("%s was declared lost (%s): joining anew", old.incarnation, reason)
        self.strategy.void = True
        incarnation = f"{old.worker}.{old.where.restarts + 1}.{self._rendezvous.port:x}{int(monotonic() * 1e3):x}"
        with self._client.changed:
            self._client.session = renew(old, incarnation)
            self._client.telemetry = Telemetry(old.worker, incarnation, self.settings.node, self.settings.hardware)

    # -- one round

    def _share(self) -> Share:
        return self.plans.shares(self.strategy.plan, self._workers)[self._session.rank]

    def _round(self) -> Iterator[Any]:
        shares = self.plans.shares(self.strategy.plan, self._workers)
        mine = shares[self._session.rank]
        if not self._await_room():
            self._departed = True
            return
        leaving = self._draining
        ranges = [] if leaving else self._take(mine.batch_size)
        samples = sum(r.length for r in ranges)
        self._clock = _Clock(perf_counter())
        every = self.options.checkpoint_every_steps
        self.strategy.take(
            ranges,
            samples,
            self.plans.newest,
            self._session.phase is Phase.ENDED,
            sum(s.batch_size for s in shares),
            leaving=leaving,
            checkpoint=bool(every) and self._session.rank == 0 and (self.strategy.step_number + 1) % every == 0,
        )
        if samples == 0:
            self._account(self.strategy.step())
            return
        self.epoch = ranges[0].epoch
        parts = _split(ranges, self._micro_count(mine, samples))
        for number, part in enumerate(parts):
            started = perf_counter()
            batch = self.source.fetch(part)
            self._clock.data_s += perf_counter() - started
            self._micro = sum(r.length for r in part), number == len(parts) - 1
            yield batch
            if self._micro is not None:
                raise UsageError("A batch was not passed to agent.step(loss): every sample counts exactly once.")
            if self._broken:
                raise GenerationClosed("it closed in the middle of a step")

    def _micro_count(self, share: Share, samples: int) -> int:
        limit = self.options.micro_batch_size_max
        return max(share.accumulation, -(-samples // limit) if limit else 1)

    def _await_room(self) -> bool:
        """Applied steps that await their commit are bounded: where the ledger is away for long, training waits.

        False: told to drain meanwhile.
        """
        session, strategy, most = self._session, self.strategy, self.options.allreduce.pending_max

        def free() -> bool:
            moved = not strategy.pending or session.committed >= strategy.pending[0].step
            return moved or self._draining or session.phase is not Phase.MEMBER

        while len(strategy.pending) >= most and session.phase is Phase.MEMBER:
            if self._draining:
                return False
            if not self._client.wait(free, HINT_EVERY_S):
                log.warning("%d steps await their commit: waiting for the ledger", len(strategy.pending))
            strategy.drop_pending(session.committed)
        return True

    def _take(self, batch_size: int) -> list[Range]:
        """Samples from the front of what is held; waits a little where everybody else is idle, too."""
        session = self._session
        if session.untaken == 0 and session.phase is Phase.MEMBER:
            patience_s = IDLE_ROUND_S if self._previous_total == 0 else 0.0
            if not session.answered:
                patience_s = FIRST_LEASE_S
            if patience_s:
                self._client.wait(lambda: session.untaken > 0 or session.phase is not Phase.MEMBER, patience_s)
        with self._client.changed:
            session.batch_size = batch_size
            return [Range(*r) for r in session.take(batch_size, RANGES_MAX)]

    def _account(self, result: StepResult) -> None:
        """A round is complete: everybody entered it, so everybody had applied the step before."""
        strategy, session = self.strategy, self._session
        self._previous_total = result.total
        if result.ended:
            self.ended = True
        with self._client.changed:
            session.proven(strategy.step_number - 1 if result.applied else strategy.step_number)
            if result.applied:
                made = strategy.pending[-1]
                session.applied(Composition(made.step, made.ranges, strategy.lineage, made.plan))
                session.observe(result.total, result.rows[0].reference)
            strategy.drop_pending(session.committed)
        if result.applied:
            self._measure(result)
        self._checkpoint(result)

    def _measure(self, result: StepResult) -> None:
        mine, clock, timings = result.rows[self._session.rank], self._clock, result.timings
        at = clock.first_bucket_at
        compute_s = max(0.0, at - clock.began - clock.data_s) if at is not None else 0.0
        self._client.telemetry.add(
            StepTiming(
                self._session.generation,
                self.strategy.step_number,
                mine.samples,
                mine.plan,
                clock.data_s,
                compute_s,
                timings.reduction_s,
                timings.composition_s,
            )
        )

    # -- files and the end

    def _checkpoint(self, result: StepResult) -> None:
        """Files where they are asked for, when somebody leaves on purpose (perhaps everybody does), and the final one.

        The rows say it to all members alike, who then give their random states to the first one.
        """
        session, step = self._session, self.strategy.step_number
        leaving = any(row.leaving for row in result.rows)
        random: list[bytes] = []
        if leaving or (result.applied and any(row.checkpoint for row in result.rows)):
            random = self.strategy.gather_random()
            with self._client.changed:
                session.proven(step)
        final = session.finished and session.committed == step
        if session.rank == 0 and (random or final) and step not in (self._written_step, 0):
            if session.checkpoint is None or leaving:
                self._write(random)
        if result.rows[session.rank].leaving:
            self._say_farewell()

    def _write(self, random: list[bytes]) -> None:
        """Parts first, then the name, then the event, which is repeated until it is answered."""
        session, step, folder = self._session, self.strategy.step_number, self._folder()
        name = checkpoint.file_name(session.generation, session.incarnation, step)
        digest = checkpoint.write(folder, name, self.strategy.snapshot(random, self._labels(name)))
        self._written_step = step
        with self._client.changed:
            session.wrote(records.Checkpoint(session.generation, step, self.strategy.lineage, name, digest))
        # The ledger refuses whatever is older than the oldest that it keeps, so no event can name these any more.
        checkpoint.prune(folder, min(session.kept_steps))

    def _say_farewell(self) -> None:
        """Everybody has this step: stay until it is committed, and the file of it known to the ledger. Bounded."""
        session, step = self._session, self.strategy.step_number
        with self._client.changed:
            session.leaving = True
        over = Phase.LOST, Phase.FAILED, Phase.ENDED

        def settled() -> bool:
            return session.phase in over or (session.committed >= step and session.checkpoint is None)

        if not self._client.wait(settled, FAREWELL_S):
            log.warning("step %d was not committed within %.0f s: leaving all the same", step, FAREWELL_S)
        self._departed = True

    def _drain_on_sigterm(self) -> None:
        """SIGTERM: finish the step, leave, exit with 143. A handler that was there before is called as well.

        Where everybody leaves at once, the first member writes a checkpoint: nothing has to be done again.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(signal.SIGTERM)

        def drain(number: int, frame: Any) -> None:
            self._draining = True
            if callable(before):
                before(number, frame)

        signal.signal(signal.SIGTERM, drain)

    def _finish(self) -> None:
        self._client.on_closed = None
        self.strategy.abort()
        self.strategy.detach()
        if self._generation is not None:
            self._generation.leave()
            self._generation = None
        self._client.stop(leave=True)


def _split(ranges: list[Range], parts: int) -> list[list[Range]]:
    """Cut ranges into `parts` pieces of nearly equal numbers of samples, in order; never an empty one."""
    if parts == 1:
        return [ranges]
    total = sum(r.length for r in ranges)
    parts = min(parts, total)
    sizes = [total // parts + (i < total % parts) for i in range(parts)]
    out, queue = list[list[Range]](), list(reversed(ranges))
    for size in sizes:
        piece: list[Range] = []
        while size:
            r = queue.pop()
            length = min(size, r.length)
            piece.append(r._replace(length=length))
            size -= length
            if length < r.length:
                queue.append(r._replace(start=r.start + length, length=r.length - length))
        out.append(piece)
    return out
