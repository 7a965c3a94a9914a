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

import atexit
import logging
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any, ClassVar

import torch
from antdt_schemas.errors import AntdtError, ExitCode, UsageError
from antdt_schemas.ranges import Range

from antdt.connect.settings import Settings
from antdt.data.loading import LoadingOptions, loader_of
from antdt.data.pinning import pinning_of
from antdt.data.sources import position_key, source_of, split
from antdt.job import AgentOptions, Schedule, spec_of
from antdt.strategies.allreduce import AllReduce
from antdt.strategies.base import GenerationClosed, Outcome, Part, StrategyOptions
from antdt.worker import told, whereabouts
from antdt.worker.blame import Witness, by_exception
from antdt.worker.holds import Holds, is_out_of_memory
from antdt.worker.membership import HINT_EVERY_S, Membership, here_of
from antdt.worker.plans import Plans, Share
from antdt.worker.session import Composition, Phase, Session
from antdt.worker.telemetry import StepTiming
from antdt.worker.whereabouts import At

__all__ = ["Agent", "AgentOptions", "AllReduce", "LoadingOptions"]

log = logging.getLogger("antdt")

IDLE_ROUND_S = 0.02
FIRST_LEASE_S = 1.0
LEAVE_EARLY_S = 20.0
FIRST_STEP_S = 300.0  # whoever comes later compiles alone, while the others wait
SLOW_BYTES_A_S = 10e6  # a disk that is slower than that is stuck


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
        strategy: StrategyOptions | None = None,
        options: AgentOptions | None = None,
        settings: Settings | None = None,
    ) -> None:
        """batch_size: samples of all workers together in one step. size: of an iterable data set without a length.

        Every worker must have the same samples in the same order: a few of them, and the names of all where the data
        set has them (`sample_key(index)`, or a list such as `samples`, `files`, `paths`), are compared with those of
        the job's first worker (`AgentOptions.fingerprint_samples`). A stream must give the same in every iteration.

        num_workers: processes that load samples ahead for this worker; 0 loads them in the loop itself. A batch is made
        of the same samples in the same order whatever it is. What a data set draws by `random`, `torch` or `numpy`
        while a data process makes a sample depends on seed, epoch and position only: it is the same for any number of
        them, any batch size, and when another worker has to make it again. (A data set with `__getitems__` draws for
        a chunk as a whole, so chunks of another size draw differently. With 0, data sets draw from the generators of
        the loop.) A TensorDataset is cut in the loop in any case, which is faster than passing samples on.

        Random numbers of the loop (dropout, augmentation with num_workers=0): `torch.manual_seed(s)` in the script
        gives all workers the same weights, as ever. When the loop begins, the first worker goes on from there as a
        single process would, and each other one, and each further life of one, draws numbers of its own, which follow
        from that seed, its name, and which life it is. Under torchrun all would draw the same, unless the script seeds
        by rank. To draw the same everywhere, use a `torch.Generator`, or seed inside the loop. A script that seeds
        nothing draws others in every process. A checkpoint holds where the generators of all ranks are.

        pin_memory: batches lie in page-locked memory, so that `x.to(device, non_blocking=True)` does not hold up the
        loop. Costs no further copy, but for what a collate_fn returns. Without an accelerator it does nothing but warn.

        strategy: how workers train one model together; AllReduce() by default. All workers of a job have the same.

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
        chosen = strategy or AllReduce()
        self.spec = spec_of(schedule, dataset, self.source, self.options, chosen)
        # Processes are forked before there is anything that must not be: threads, clients, sockets.
        self.loader = loader_of(self.source, num_workers, seed, self.options.loading)
        self.plans = Plans(batch_size)
        self.epoch = 0
        self._micro: tuple[int, bool] | None = None
        self._hand: list[Range] = []
        self._broken = self._loaded_back = self._all_leave = self._has_stepped = False
        self._previous_total = 1
        self._clock = _Clock()
        try:
            self.strategy = chosen.member(model, optimizer, here_of(self.settings))
            self._membership = Membership(self.settings, self.options, self.spec, self.strategy, self.plans)
        except BaseException:
            self.loader.close()
            raise
        self._client = self._membership.client
        self._client.on_leases = self.source.prepare
        self._page = whereabouts.mine()
        self._holds = Holds(self._page, self.options.batch_size_max)
        self._witness = Witness(self._client, self.source, self._holds)
        self._page.numbers[whereabouts.ATTEMPTS] = self.options.max_attempts

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

        Leaving the loop earlier (`break`, an exception, the end of the script) is a good-bye: the first worker writes a
        checkpoint, which the next launch goes on from, and workers that are still in the loop go on without this one.
        A batch that was not passed to `step` counts for nothing.

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
        iteration = self._iterate()
        # A script that ends without having closed it must not leave the others waiting for somebody silent.
        atexit.register(_close, weakref.ref(iteration))
        return iteration

    def _iterate(self) -> Generator[Any]:
        member = self._membership
        self._witness.listen()
        try:
            member.drain_on_sigterm()
            self._client.start()
            while not member.ended:
                member.end_if_told()
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
        except GeneratorExit:
            if self._hand and by_exception():
                self._witness.left_with(self._hand)
            else:
                self._leave_early()
            raise
        finally:
            self.loader.close()
            member.finish(linger=self._witness.waits)
            self._page.enter(At.USER, "behind the loop")
        if told.at_s() is not None:  # while the last step was made: what a script does behind its loop is left undone
            sys.exit(int(ExitCode.DRAINED))

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
            self._hand = []
            return False
        result: Outcome | None = None
        try:
            if last:
                self.strategy.see(self.plans.newest)
            try:
                self.strategy.backward(loss, samples, last)
            except Exception as error:
                if self._survives(error):
                    return False
                self._witness.saw(error, self._hand)
                raise
            self._hand = []
            self._holds.passed()
            if last:
                self._clock.first_bucket_at = self.strategy.first_bucket_at
                self._page.enter(At.REDUCING)
                result = self._reduce_and_apply()
                self._account(result)
        except GenerationClosed as closed:
            log.info("generation is over: %s", closed)
            self._broken, self._hand = True, []
        self._page.enter(At.USER)
        return result is not None and result.applied and result.skipped is None

    def _reduce_and_apply(self) -> Outcome:
        try:
            return self.strategy.finish()
        except Exception as error:
            if is_out_of_memory(error):  # perhaps in the middle of the optimizer
                self._holds.shrink()
            raise

    def _survives(self, error: Exception) -> bool:
        """Whether memory was out, and fewer samples at a time can be tried: the step is given up, and begun anew."""
        at, smaller = self._holds.at, self._holds.failed() if is_out_of_memory(error) else 0
        if not smaller:
            return False
        log.warning(
            "%s: memory is out with %d samples at a time: it goes on with %d", self._session.worker, at, smaller
        )
        traceback.clear_frames(error.__traceback__)
        self._broken, self._hand = True, []
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True

    def _refuse_another(self) -> None:
        if Agent._begun and not self._named and not self._iterated:
            raise UsageError(
                "This process has trained with an Agent before, and a worker has one for its life: pass epochs=N to it "
                "instead of making one for each epoch; train another model by another script, as another job."
            )

    @contextmanager
    def pause(self, seconds: float, what: str = "") -> Iterator[None]:
        """Announce that the script itself is busy for up to so long, between two batches: with an evaluation, say.

        Others wait meanwhile, and this worker is not given up for it. Without announcement it is, once it has held them
        up for longer than the ledger's `--stuck-ms`. What all workers do alike need not be announced.
        """
        before = self._page.phase
        self._page.enter(At.USER, what, seconds)
        try:
            yield
        finally:
            self._page.enter(before)

    # -- one round

    def _leave_early(self) -> None:
        """The script has left the loop, or is about to end: say good-bye as on SIGTERM, with the model in a file.

        A step that was begun is given up, and the others regroup; where they do not come along within LEAVE_EARLY_S,
        leave them.
        """
        member, worker, until = self._membership, self._session.worker, monotonic() + LEAVE_EARLY_S
        self._micro, again = None, self._broken or self.strategy.is_open
        impatience = threading.Timer(LEAVE_EARLY_S, self.strategy.close)
        impatience.daemon = True
        impatience.start()
        try:
            while not (member.departed or member.ended or (member.may_go and member.generation is None)):
                if again:
                    self._broken = False
                    member.leave()
                try:
                    member.enter(until - monotonic())
                    if member.generation is not None and not member.ended:
                        for _ in self._round(leaving=True):
                            raise AssertionError("who leaves takes no samples")
                except GenerationClosed:
                    again = True
        except (AntdtError, UsageError) as error:
            late = monotonic() > until
            log.warning("%s: %s", worker, f"nobody came along within {LEAVE_EARLY_S:.0f} s" if late else error)
        finally:
            impatience.cancel()
        if not member.ended:
            log.warning("%s left the loop early, behind step %d: %s", worker, self.step_number, self._kept())

    def _kept(self) -> str:
        """Where the model is that this worker leaves with."""
        member, files, session = self._membership, self._membership.files, self._session
        if self.step_number == 0:
            kept = "no step was made."
        elif files.written_step == self.step_number:
            kept = f"its model is in {files.folder / files.written_name}."
        elif session.rank > 0 and member.departed:
            kept = f"{member.workers[0]} saves its model."
        else:
            kept = f"its model is not saved, {files.last_good(session)}."
        if session.finished:
            return f"{kept} Every sample is in it."
        alone = " The other workers go on." if member.departed and not self._all_leave else ""
        return f"{kept}{alone} The job is not at its end: launched again, it goes on."

    @property
    def _session(self) -> Session:
        return self._client.session

    def _round(self, leaving: bool = False) -> Iterator[Any]:
        shares = self.plans.shares(self.strategy.plan, self._membership.workers)
        mine = shares[self._session.rank]
        if not self._await_room(leaving):
            self._membership.leave_unsaved()
            return
        leaving = leaving or self._membership.draining
        ranges = [] if leaving else self._take(mine.batch_size)
        samples = sum(r.length for r in ranges)
        self._clock = _Clock(perf_counter())
        reference, ended = sum(s.batch_size for s in shares), self._session.phase is Phase.ENDED
        self.strategy.announce(
            Part(ranges, self.plans.newest, reference, ended, leaving, checkpoint=self._asks_for_file())
        )
        if samples == 0:
            self._page.enter(At.REDUCING)
            self._account(self.strategy.finish())
            return
        self.epoch = ranges[0].epoch
        parts = split(ranges, self._micro_count(mine, samples))
        for number, part in enumerate(parts):
            started = perf_counter()
            batch = self._load(part)
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

    def _asks_for_file(self) -> bool:
        """Whether this member, as the first one, wants the model behind this step in a file."""
        every, files = self.options.checkpoint_every_steps, self._membership.files
        asked = bool(every) and (self.strategy.step_number + 1) % every == 0
        return self._session.rank == 0 and (asked or files.owes) and files.may_try

    def _load(self, part: list[Range]) -> Any:
        page, hand = self._page, [(r.epoch, r.start, r.length) for r in part]
        page.enter(At.LOADING)
        page.take(hand if self.loader.is_here else ())
        self._holds.tries(sum(r.length for r in part))
        try:
            batch = self.loader.fetch(part)
        except Exception as error:
            if is_out_of_memory(error):
                self._holds.shrink()
            self._witness.saw(error, part, loading=True)
            raise
        if not self.loader.is_here:
            page.take(hand)
        if self.source.has_names:
            page.say(whereabouts.KEY, position_key(self.source, part[0].epoch, part[0].start))
        self._hand = part
        if self._has_stepped:
            page.enter(At.COMPUTING)
        else:
            page.enter(At.COMPUTING, "its first step", FIRST_STEP_S)
        return batch

    def _micro_count(self, share: Share, samples: int) -> int:
        limits = self.options.micro_batch_size_max, self._holds.limit
        limit = min((one for one in limits if one), default=0)  # before there is a plan that fits
        return max(share.accumulation, -(-samples // limit) if limit else 1)

    def _await_room(self, leaving: bool = False) -> bool:
        """Applied steps that await their commit are bounded: where the ledger is away for long, training waits.

        False: leaving early, or told to leave, and there is no time to wait any more.
        """
        session, strategy, most = self._session, self.strategy, self.strategy.pending_max
        member = self._membership

        def too_late() -> bool:
            return member.draining and member.leave_within_s == 0

        def free() -> bool:
            moved = not strategy.pending or session.committed >= strategy.pending[0].step
            return moved or too_late() or session.phase is not Phase.MEMBER

        while len(strategy.pending) >= most and session.phase is Phase.MEMBER:
            self._page.enter(At.FORMING, "waits for the ledger")
            if leaving or too_late():
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
            ranges = [Range(*r) for r in session.leases.take(batch_size, self.strategy.ranges_max)]
            ahead = session.leases.ahead(self.loader.ahead(batch_size))
        self.loader.expect([*((r.epoch, r.start, r.length) for r in ranges), *ahead], batch_size)
        return ranges

    def _account(self, result: Outcome) -> None:
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
            self._membership.note()
        self._has_stepped = self._has_stepped or result.applied
        if result.applied:
            self._measure(result)
            self._load_back()
        if result.skipped is not None:
            log.warning(
                "step %d was skipped: its gradient is not finite (%s)",
                strategy.step_number,
                "by " + ", ".join(result.skipped) if result.skipped else "by no worker alone, the sum overflows",
            )
        self._checkpoint(result)

    def _measure(self, result: Outcome) -> None:
        mine, clock, timings = result.rows[self._session.rank], self._clock, result.timings
        self._client.telemetry.batch_size_max = self._holds.limit
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

    def _load_back(self) -> None:
        """Once, behind the first step that this process makes as the first member: what cannot be read again is to be
        known now, not when it is needed.
        """
        if self._session.rank == 0 and not self._loaded_back:
            self.strategy.load_back()
            self._loaded_back = True

    def _checkpoint(self, result: Outcome) -> None:
        """Files where they are asked for, when somebody leaves on purpose (perhaps everybody does), and the final one.

        The rows say it to all members alike, who then give their random states to the first one.
        """
        session, step = self._session, self.strategy.step_number
        leaving = any(row.leaving for row in result.rows)
        if leaving:
            self._membership.somebody_leaves()
        random: list[bytes] = []
        if leaving or (result.applied and any(row.checkpoint for row in result.rows)):
            self._page.enter(At.REDUCING)
            self.strategy.verify()
            random = self.strategy.gather_random()
            with self._client.changed:
                session.proven(step)
        files = self._membership.files
        final = session.finished and session.committed == step
        leave = result.rows[session.rank].leaving
        if session.rank == 0 and (random or final) and step not in (files.written_step, 0):
            if leaving or (session.files.newest is None and files.may_try):
                self._page.enter(At.SAVING, f"the file of step {step}", self.strategy.size_bytes / SLOW_BYTES_A_S)
                # The file first, then the event, repeated until it is answered.
                event = files.write(session, random, self._membership.leave_within_s if leave else 0.0)
                if event is not None:
                    with self._client.changed:
                        session.files.wrote(event)
                    files.prune(session)
        files.retry_init()
        if leave:
            self._all_leave = all(row.leaving for row in result.rows)
            self._membership.say_farewell()


def _close(iteration: weakref.ref[Generator[Any]]) -> None:
    """Weak, or leaving the loop would not end it."""
    found = iteration()
    if found is not None:
        found.close()
