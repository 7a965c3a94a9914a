"""The Agent: what a training script adds to a plain PyTorch loop.

    agent = antdt.Agent(model, optimizer, dataset, batch_size=256, epochs=5)
    for x, y in agent:
        loss = loss_function(model(x), y)
        agent.step(loss)

Owns what happens in the training thread between the script and the life of its worker: batches out, losses in. Must not
know the order of things (`life`), the protocol (`session`), how members exchange what they learn (`strategies`), the
connection (`client`), or files (`model_files`).
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any, ClassVar, Literal

import torch
from antdt_schemas.errors import AntdtError, ExitCode, UsageError

from antdt.connect.settings import Settings
from antdt.data.loading import LoadingOptions, loader_of
from antdt.data.pinning import pinning_of
from antdt.data.sources import source_of, split
from antdt.epochs import Epochs
from antdt.hand import Hand
from antdt.host import told, whereabouts
from antdt.host.whereabouts import At
from antdt.job import AgentOptions, Schedule, spec_of
from antdt.stepping import Stepping
from antdt.strategies.allreduce import AllReduce
from antdt.strategies.base import GenerationClosed, Outcome, Strategy, StrategyOptions
from antdt.strategies.once import Once
from antdt.strategies.together import one_model, one_optimizer
from antdt.talking import Talking
from antdt.worker import instructions as ask
from antdt.worker.blame import by_exception
from antdt.worker.effects import Effects
from antdt.worker.instructions import Course
from antdt.worker.membership import Membership, here_of
from antdt.worker.plans import Plans
from antdt.worker.session import Session

__all__ = ["Agent", "AgentOptions", "AllReduce", "LoadingOptions"]

log = logging.getLogger("antdt")

LEAVE_EARLY_S = 20.0


class Agent(Stepping, Talking, Epochs):
    """One worker of a job. Iterate it for micro-batches; call `step(loss)` for each of them.

    Invariant: a process is one worker of one job once. What begins again is another process.

    batch_size: samples of all workers together in one step. size: of an iterable data set without a length.

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

    model, optimizer: several are given in a list or a dict, and are saved and compared as one (`antdt.Group`).

    What happens once a step, on every worker alike, and is saved, restored and adopted with the model: scheduler, one
    or a list, stepped every "step" or every "epoch" (a skipped step counts; ReduceLROnPlateau is stepped by the script,
    with a value that all workers know); clip_grad_norm, the largest norm of the gradients of the whole step; scaler, a
    torch.amp.GradScaler, which scales losses and unscales those gradients; state, whatever else has `state_dict` and
    `load_state_dict`, by name. buffers: how buffers become one, by name or pattern: "mean" (floats), "max" (whole
    numbers), "sum" of what was added, "first" worker's, "local" for none of it.

    Raises:
        UsageError: a value that cannot work, with what to do about it.
        Unavailable, UnknownJob: the broker is away, or the job was not started.
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
        scheduler: Any = None,
        scheduler_every: Literal["step", "epoch"] = "step",
        clip_grad_norm: float | None = None,
        scaler: Any = None,
        state: Mapping[str, Any] | None = None,
        buffers: Mapping[str, str] | None = None,
        strategy: StrategyOptions | None = None,
        options: AgentOptions | None = None,
        settings: Settings | None = None,
    ) -> None:
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
        self._broken = self._loaded_back = False
        self._course: Course | None = None
        try:
            once = Once(scheduler, scheduler_every, clip_grad_norm, scaler, state, buffers)
            self._enroll(chosen.member(one_model(model), one_optimizer(optimizer), here_of(self.settings)), once)
        except BaseException:
            self.loader.close()
            raise

    def _enroll(self, strategy: Strategy, once: Once) -> None:
        self.strategy = strategy
        strategy.accompany(once)
        self._membership = Membership(self.settings, self.options, self.spec, strategy, self.plans)
        self._client = self._membership.client
        self._client.on_leases = self.source.prepare
        self._page = whereabouts.mine()
        self._effects = Effects(self.plans, self.strategy)
        self._hand = Hand(self._client, self.source, self.loader, self.options)
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
    def learning_rate_factor(self) -> float:
        """What the plan in force multiplies the learning rates by while the optimizer steps; else they are as set."""
        return self.strategy.rates.factor

    @property
    def incarnation(self) -> str:
        """This life of this worker. It is a new one after the ledger has given the old one up for lost."""
        return self._session.incarnation

    @property
    def ended(self) -> bool:
        """Whether every sample of every epoch is in the model and in a durable file."""
        return self._membership.life.ended

    @property
    def batch_size(self) -> int:
        """Samples that this worker takes in the step at hand."""
        workers = self._membership.life.workers
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
                "This Agent was iterated already: it runs through all epochs itself. Write one loop over it and pass "
                "epochs=N to antdt.Agent, or nest: for epoch in agent.epochs(): for batch in epoch."
            )
        self._iterated = True
        Agent._begun = Agent._begun or not self._named
        iteration = self._iterate()
        # A script that ends without having closed it must not leave the others waiting for somebody silent.
        atexit.register(_close, weakref.ref(iteration))
        return iteration

    def _iterate(self) -> Generator[Any]:
        member = self._membership
        self._hand.witness.listen()
        try:
            member.drain_on_sigterm()
            self._client.start()
            self._course = course = Course(member.life.run())
            while course.asks is not None:
                if isinstance(course.asks, ask.Train):
                    yield from self._turn(course.asks.ranges[0].epoch)
                    yield from self._train(course)
                else:
                    course.carry_out(self._perform)
            if course.result is not None and not (self._stopped and course.result == ExitCode.DRAINED):
                sys.exit(int(course.result))
            if member.life.ended:
                self.strategy.outlive()
                yield from self._turn(max(self.spec.epochs, self.strategy.once.epoch + 1), over=True)
        except GeneratorExit:
            if self._hand.ranges and by_exception():
                self._hand.witness.left_with(self._hand.ranges)
            else:
                self._leave_early()
            raise
        finally:
            self._over = True
            self.loader.close()
            member.finish(linger=self._hand.witness.waits)
            self._page.enter(At.USER, "behind the loop")
        if told.at_s() is not None:  # while the last step was made: what a script does behind its loop is left undone
            sys.exit(int(ExitCode.DRAINED))

    def _train(self, course: Course) -> Iterator[Any]:
        """What the life asks for now: a generation may have ended while the script was at the end of an epoch."""
        asked = course.asks
        if not isinstance(asked, ask.Train):
            return
        yield from self._batches(asked)
        if self._broken:
            self._broken = False
            course.closed(GenerationClosed("it closed in the middle of a step"))
        self._inside = False
        assert course.asks is not asked, "the step before is still open"

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
        page, before = self._page, self._page.phase
        page.enter(At.USER, what, seconds)
        try:
            yield
        finally:
            page.enter(before)

    # -- what the life asks for

    def _perform(self, asked: ask.Instruction) -> Any:
        match asked:
            case ask.Announce(part, batch_size):
                self._hand.expect(part, batch_size)
                self.strategy.announce(part)
            case ask.Finish():
                with self._hand.may_run_out():  # perhaps in the middle of the optimizer
                    self._outcome = self.strategy.finish(self._effects.on_plan)
                return self._outcome
            case ask.Accounted(outcome):
                self._account(outcome)
            case ask.Between():
                pass
            case ask.Leave():
                self._micro = None
                self.loader.expect((), self.spec.batch_size)  # leases are void with their generation
                self._membership.perform(asked)
            case _:
                return self._membership.perform(asked)
        return None

    def _leave_early(self) -> None:
        """The script has left the loop, or is about to end: say good-bye as on SIGTERM, with the model in a file.

        A step that was begun is given up, and the others regroup; where they do not come along within LEAVE_EARLY_S,
        leave them.
        """
        member, worker, until = self._membership, self._session.worker, monotonic() + LEAVE_EARLY_S
        self._micro, given_up = None, self._broken or self.strategy.is_open
        impatience = threading.Timer(LEAVE_EARLY_S, self.strategy.close)
        impatience.daemon = True
        impatience.start()
        try:
            if self._course is not None:
                self._course.end()
            course = Course(member.life.leave_early(until, regroup=given_up))
            while course.asks is not None:
                course.carry_out(self._perform)
        except (AntdtError, UsageError) as error:
            late = monotonic() > until
            log.warning("%s: %s", worker, f"nobody came along within {LEAVE_EARLY_S:.0f} s" if late else error)
        finally:
            impatience.cancel()
        if not member.life.ended:
            log.warning("%s left the loop early, behind step %d: %s", worker, self.step_number, member.kept())

    @property
    def _session(self) -> Session:
        return self._client.session

    # -- batches

    def _batches(self, asked: ask.Train) -> Iterator[Any]:
        """Micro-batches, each of which the script gives to `step`; the last one of them finishes the step."""
        ranges = list(asked.ranges)
        self.epoch = ranges[0].epoch
        parts = split(ranges, self._hand.micro_batches(asked.accumulation, sum(r.length for r in ranges)))
        for number, part in enumerate(parts):
            batch = self._hand.load(part)
            self._micro, self._losses = (sum(r.length for r in part), number == len(parts) - 1), 0
            self._updates, self._whole, self._inside = 0, len(parts) == 1, True
            yield batch
            if self._micro is not None and self._updates and not self._losses:
                self._end_updates()
            if self._micro is not None:
                raise UsageError(
                    "A batch was not passed to agent.step(loss): every sample counts exactly once. Behind "
                    "agent.backward(loss) call agent.apply(). Call agent.skip(reason) to have all workers skip this "
                    "step, and agent.step(loss, weight=0) to learn nothing from this batch alone."
                )
            if self._broken:
                return

    def _account(self, outcome: Outcome) -> None:
        with self._client.changed:
            self._membership.note()
        if any(row.stopping for row in outcome.rows):
            self._stop_now()
        if outcome.applied:
            self._hand.measure(outcome, self.strategy.step_number)
        if outcome.applied and self._session.rank == 0 and not self._loaded_back:
            # Behind the first step that this process makes as the first member: what cannot be read again is to be
            # known now, not when it is needed.
            self.strategy.load_back()
            self._loaded_back = True

    def _stop_now(self) -> None:
        """Some script has called `stop`, and all have heard it in the same step."""
        if self._stopped is None:
            self._stopped = "another worker's script called agent.stop"
            log.warning("stops behind step %d: %s", self.step_number, self._stopped)
        if self._membership.life.told_at_s is None:
            self._membership.life.told_at_s = monotonic()


def _close(iteration: weakref.ref[Generator[Any]]) -> None:
    """Weak, or leaving the loop would not end it."""
    found = iteration()
    if found is not None:
        found.close()
