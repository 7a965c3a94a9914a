"""The Agent: what a training script adds to a plain PyTorch loop.

    agent = antdt.Agent(model, optimizer, dataset, batch_size=256, epochs=5)
    for x, y in agent:
        loss = loss_function(model(x), y)
        agent.step(loss)

Owns the order of things in the training thread: take samples, hand out micro-batches, reduce and apply, report. Must
not know how a member comes into a generation (`membership`), the protocol (`session`), the collectives (`allreduce`),
the connection (`client`), or files (`model_files`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar

import torch
from antdt_schemas.errors import ExitCode, UsageError

from antdt.allreduce import AllReduce, GenerationClosed, Range, StepResult
from antdt.allreduce.composition import RANGES_MAX
from antdt.data import source_of, split
from antdt.job import AgentOptions, Schedule, spec_of
from antdt.loading import LoadingOptions, loader_of
from antdt.membership import HINT_EVERY_S, Membership
from antdt.pinning import pinning_of
from antdt.plans import Plans, Share
from antdt.session import Composition, Phase, Session
from antdt.settings import Settings
from antdt.telemetry import StepTiming

__all__ = ["Agent", "AgentOptions", "LoadingOptions"]

log = logging.getLogger("antdt")

IDLE_ROUND_S = 0.02
FIRST_LEASE_S = 1.0


@dataclass(slots=True)
class _Clock:
    """Where the time of one step goes; seconds by perf_counter."""

    began: float = 0.0
    data_s: float = 0.0
    first_bucket_at: float | None = None


class Agent:
    """One worker of a job. Iterate it for micro-batches; call `step(loss)` for each of them.

    Invariant: a process is one worker of one job once. What begins again is another process.
    """

    _begun: ClassVar[bool] = False

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
        num_workers: int = 0,
        pin_memory: bool = False,
        options: AgentOptions | None = None,
        settings: Settings | None = None,
    ) -> None:
        """batch_size: samples of all workers together in one step. size: of an iterable data set without a length.

        num_workers: processes that load samples ahead for this worker; 0 loads them in the loop itself. A batch is made
        of the same samples in the same order whatever it is. What a data set draws by `random`, `torch` or `numpy`
        while a data process makes a sample depends on seed, epoch and position only: it is the same for any number of
        them, any batch size, and when another worker has to make it again. (A data set with `__getitems__` draws for
        a chunk as a whole, so chunks of another size draw differently. With 0, data sets draw from the generators of
        the loop.) A TensorDataset is cut in the loop in any case, which is faster than passing samples on.

        pin_memory: batches lie in page-locked memory, so that `x.to(device, non_blocking=True)` does not hold up the
        loop. Costs no further copy, but for what a collate_fn returns. Without an accelerator it does nothing but warn.

        Raises:
            UsageError: a value that cannot work, with what to do about it.
            Unavailable, UnknownJob: the broker is away, or the job was not started.
        """
        self.options = options or AgentOptions()
        self._named = settings is not None  # by the caller, who then knows which worker of which job this is
        self._iterated = False
        self._refuse_another()
        self.settings = settings or Settings.of()
        schedule = Schedule(batch_size, epochs, seed, self.options.workers_min or self.settings.world_size)
        pinning = pinning_of(pin_memory)
        self.source = source_of(dataset, seed=seed, size=size, shuffle=shuffle, collate=collate_fn, pinning=pinning)
        self.spec = spec_of(schedule, dataset, self.source, self.options)
        # Processes are forked before there is anything that must not be: threads, clients, sockets.
        self.loader = loader_of(self.source, num_workers, seed, self.options.loading)
        self.strategy = AllReduce(model, optimizer, self.options.allreduce)
        self.plans = Plans(batch_size)
        self.epoch = 0
        self._micro: tuple[int, bool] | None = None
        self._broken = False
        self._previous_total = 1
        self._clock = _Clock()
        try:
            self._membership = Membership(self.settings, self.options, self.spec, self.strategy, self.plans)
        except BaseException:
            self.loader.close()
            raise
        self._client = self._membership.client
        self._client.on_leases = self.source.prepare

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
    def ended(self) -> bool:
        """Whether every sample of every epoch is in the model and in a durable file."""
        return self._membership.ended

    @property
    def batch_size(self) -> int:
        """Samples that this worker takes in the step at hand."""
        workers = self._membership.workers
        return self.plans.shares(self.strategy.plan, workers)[self._session.rank].batch_size if workers else 0

    def __iter__(self) -> Iterator[Any]:
        """Micro-batches until every sample of every epoch is in the model and a durable file holds it.

        Raises:
            Refused: the ledger refused this worker (other data, a job that is taken), with its reason.
            Unavailable: broker or ledger did not answer within the bounds.
            UsageError: it is iterated for a second time, or another Agent of this process was.
        """
        self._refuse_another()
        if self._iterated:
            raise UsageError(
                "This Agent was iterated already: it runs through all epochs itself. Write one loop over it, none over "
                "epochs around it, and pass epochs=N to antdt.Agent; agent.epoch says which one a batch is of."
            )
        self._iterated = True
        Agent._begun = Agent._begun or not self._named
        member = self._membership
        self._client.start()
        member.drain_on_sigterm()
        try:
            while not member.ended:
                if member.departed or (member.draining and member.generation is None):
                    sys.exit(ExitCode.DRAINED)
                try:
                    if member.enter():
                        self._previous_total = 1
                    if not member.ended and member.generation is not None:
                        yield from self._round()
                except GenerationClosed as closed:
                    log.info("generation is over: %s", closed)
                    self._broken, self._micro = False, None
                    self.loader.expect((), self.spec.batch_size)  # leases are void with their generation
                    member.leave()
        finally:
            self.loader.close()
            member.finish()

    def step(self, loss: torch.Tensor) -> bool:
        """Backward for the micro-batch at hand; reduces and applies after the last one of a step.

        loss: the mean over the micro-batch. Returns True when the model has changed: `step_number` and `lineage` say to
        what. A step whose gradient is not finite is skipped by all workers: its samples count, the model stays as it
        was, no hook of the optimizer is called, and False is returned.

        Raises:
            UsageError: something that would be silently wrong, with what to do instead.
            ReplicasDiffer: the workers do not hold the same model any more; which part, and what likely did it.
            NotFinite: the model is not finite, or too many steps in a row were skipped.
        """
        if self._micro is None:
            raise UsageError("agent.step(loss) belongs into the loop over the Agent, once for every batch.")
        (samples, last), self._micro = self._micro, None
        if self._broken:
            return False
        result: StepResult | None = None
        try:
            if last:
                self.strategy.see(self.plans.newest)
            self.strategy.backward(loss, samples, last)
            if last:
                self._clock.first_bucket_at = self.strategy.first_bucket_at
                result = self.strategy.step()
                self._account(result)
        except GenerationClosed as closed:
            log.info("generation is over: %s", closed)
            self._broken = True
        return result is not None and result.applied and result.skipped is None

    def _refuse_another(self) -> None:
        if Agent._begun and not self._named and not self._iterated:
            raise UsageError(
                "This process has trained with an Agent before, and a worker has one for its life: pass epochs=N to it "
                "instead of making one for each epoch; train another model by another script, as another job."
            )

    # -- one round

    @property
    def _session(self) -> Session:
        return self._client.session

    def _round(self) -> Iterator[Any]:
        shares = self.plans.shares(self.strategy.plan, self._membership.workers)
        mine = shares[self._session.rank]
        if not self._await_room():
            self._membership.departed = True
            return
        leaving = self._membership.draining
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
        parts = split(ranges, self._micro_count(mine, samples))
        for number, part in enumerate(parts):
            started = perf_counter()
            batch = self.loader.fetch(part)
            self._clock.data_s += perf_counter() - started
            self._micro = sum(r.length for r in part), number == len(parts) - 1
            yield batch
            if self._micro is not None:
                raise UsageError(
                    "A batch was not passed to agent.step(loss): every sample counts exactly once. Pass a loss that is "
                    "not finite as well (all workers skip that step), and loss * 0.0 to learn nothing from a batch."
                )
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
            return moved or self._membership.draining or session.phase is not Phase.MEMBER

        while len(strategy.pending) >= most and session.phase is Phase.MEMBER:
            if self._membership.draining:
                return False
            if not self._client.wait(free, HINT_EVERY_S):
                log.warning("%d steps await their commit: waiting for the ledger", len(strategy.pending))
            strategy.drop_pending(session.committed)
        return True

    def _take(self, batch_size: int) -> list[Range]:
        """Samples from the front of what is held; waits a little where everybody else is idle, too."""
        session = self._session
        if session.leases.untaken == 0 and session.phase is Phase.MEMBER:
            patience_s = IDLE_ROUND_S if self._previous_total == 0 else 0.0
            if not session.leases.answered:
                patience_s = FIRST_LEASE_S
            if patience_s:
                self._client.wait(lambda: session.leases.untaken > 0 or session.phase is not Phase.MEMBER, patience_s)
        with self._client.changed:
            session.leases.batch_size = batch_size
            ranges = [Range(*r) for r in session.leases.take(batch_size, RANGES_MAX)]
            ahead = session.leases.ahead(self.loader.ahead(batch_size))
        self.loader.expect([*((r.epoch, r.start, r.length) for r in ranges), *ahead], batch_size)
        return ranges

    def _account(self, result: StepResult) -> None:
        """A round is complete: everybody entered it, so everybody had applied the step before."""
        strategy, session = self.strategy, self._session
        self._previous_total = result.total
        if result.ended:
            self._membership.ended = True
        with self._client.changed:
            session.proven(strategy.step_number - 1 if result.applied else strategy.step_number)
            if result.applied:
                made = strategy.pending[-1]
                session.applied(Composition(made.step, made.ranges, strategy.lineage, made.plan, made.skipped))
                session.leases.observe(result.total, result.rows[0].reference)
            strategy.drop_pending(session.committed)
        if result.applied:
            self._measure(result)
        if result.skipped is not None:
            log.warning(
                "step %d was skipped: its gradient is not finite (%s)",
                strategy.step_number,
                "by " + ", ".join(result.skipped) if result.skipped else "by no worker alone, the sum overflows",
            )
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
            self.strategy.verify()
            random = self.strategy.gather_random()
            with self._client.changed:
                session.proven(step)
        files = self._membership.files
        final = session.finished and session.committed == step
        if session.rank == 0 and (random or final) and step not in (files.written_step, 0):
            if session.files.newest is None or leaving:
                event = files.write(session, random)  # the file first, then the event, repeated until it is answered
                with self._client.changed:
                    session.files.wrote(event)
                files.prune(session)
        if result.rows[session.rank].leaving:
            self._membership.say_farewell()
