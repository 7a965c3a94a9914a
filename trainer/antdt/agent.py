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
import os
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from time import monotonic
from typing import Any, Literal

import torch
from antdt_schemas.batches import EVEN
from antdt_schemas.errors import AntdtError, ExitCode, UsageError
from antdt_schemas.strategies import unit_of

from antdt.begun import Begun
from antdt.connect.settings import SERVER, Settings
from antdt.data.loading import LoadingOptions, loader_of
from antdt.dataloader import Data, taken_apart
from antdt.driving.blame import by_exception
from antdt.driving.kinds import kind_of, placed
from antdt.driving.membership import here_of
from antdt.epochs import Epochs
from antdt.hand import Hand
from antdt.host import told, whereabouts
from antdt.host.whereabouts import At
from antdt.job import AgentOptions, Schedule, spec_of
from antdt.reading import Reading, reached
from antdt.standing import Standing
from antdt.stepping import Micro, Stepping
from antdt.strategies.allreduce import AllReduce
from antdt.strategies.base import GenerationClosed, LooksAhead, Outcome, StrategyOptions
from antdt.strategies.once import Once
from antdt.strategies.together import one_model, one_optimizer, optimizers_of
from antdt.talking import Talking
from antdt.weights import Mode, Weights
from antdt.worker import instructions as ask
from antdt.worker.effects import Effects
from antdt.worker.instructions import Course
from antdt.worker.plans import Plans

__all__ = ["Agent", "AgentOptions", "AllReduce", "LoadingOptions"]

log = logging.getLogger("antdt")

LEAVE_EARLY_S = 20.0


class Agent(Standing, Stepping, Talking, Epochs):
    """One worker of a job. Iterate it for micro-batches; call `step(loss)` for each of them.

    Invariant: a process is one worker of one job once (`begun`). What begins again is another process.

    Without a job (`python train.py`: nothing in the environment speaks of one) the same loop trains in this process
    alone, without a broker, and nothing is recorded.

    batch_size: samples of all workers together in one step; the job goes on with another one when it is launched with
    that. epochs: how often each sample is trained on, once by default; or steps: so many, whatever epoch they reach.
    size: of an iterable data set without a length. A DataLoader as dataset is taken apart (`dataloader`): what is not
    said here comes from it, batch_size as well.

    sampler: draws the order of each epoch, see `Drawn`; by default all samples are shuffled (shuffle=False: they are
    not). It may repeat samples or leave some out: a sample of the account is a position in its list, and exactly once.

    Every worker must have the same samples in the same order: a few of them, and the names of all where the data
    set has them (`sample_key(index)`, or a list such as `samples`, `files`, `paths`), are compared with those of
    the job's first worker (`AgentOptions.fingerprint_samples`). A stream must give the same in every iteration.

    Steps of a fixed size (`AgentOptions.order`): step s of an epoch consists of the same samples for any number of
    workers, whoever is slow, dies or joins, and every worker runs the loop's body once for it (or as often as its part
    is cut into micro-batches), with `local_batch_min` samples or more as far as there are enough. last: what becomes of
    the samples of an epoch that fill no batch: all of its steps are a little smaller ("even"), its last one is
    ("small"), or they are left out ("drop"). Epochs begin at the same step everywhere, and `len(agent)` is the number
    of steps.

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

    strategy: how workers train one model together; AllReduce() by default, in which a step is one of the optimizer.
    With LocalSGD(every=8) each worker takes 8 of them by itself, then all average: that is a step. All workers of a
    job have the same.

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

    epoch = 0
    _micro: Micro | None = None
    _course: Course | None = None
    _broken = _loaded_back = False

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Any,
        dataset: Any,
        *,
        batch_size: int | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        shuffle: bool | None = None,
        sampler: Any = None,
        size: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        last: str | None = None,
        local_batch_min: int = 1,
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
        self.settings = settings or Settings.here()
        self._begun = Begun(model, named=settings is not None, alone=self.settings.alone)
        how = shuffle, sampler, collate_fn, num_workers, pin_memory, last
        data = taken_apart(
            Data(reached(dataset, self.settings), batch_size, seed, size, *how, loading=self.options.loading)
        )
        workers = self.options.workers_min or self.settings.world_size
        schedule = Schedule(data.batch_size or 0, epochs, data.seed, workers, data.last or EVEN, local_batch_min, steps)
        self.source = data.source(schedule.epochs_max)
        chosen = placed(strategy or AllReduce(), self.settings)
        self.spec = spec_of(schedule, data.dataset, self.source, self.options, chosen)
        # Processes are forked before there is anything that must not be: threads, clients, sockets.
        processes = 0 if self.settings.role == SERVER else data.num_workers or 0
        self.loader = loader_of(self.source, processes, data.seed, data.loading)
        try:
            once = Once(scheduler, scheduler_every, clip_grad_norm, scaler, state, buffers)
            self._enroll(one_model(model), one_optimizer(optimizer), chosen, once)
        except BaseException:
            self.loader.close()
            raise

    def _enroll(self, model: torch.nn.Module, optimizer: Any, chosen: StrategyOptions, once: Once) -> None:
        self.plans = Plans(self.spec.batch_size)
        self.optimizers = optimizers_of(optimizer)
        self.strategy = chosen.member(model, optimizer, here_of(self.settings))
        self.strategy.accompany(once)
        kind = kind_of(self.settings, self.spec.strategy)
        self._membership = kind(self.settings, self.options, self.spec, self.strategy, self.plans)
        self._client = self._membership.client
        self._client.on_leases = self.source.prepare
        self._page = whereabouts.mine()
        self._effects = Effects(self.plans, self.strategy, self.spec.strategy)
        self._hand = Hand(self._client, self.source, self.loader, self.options)
        self._hand.unit_seed = self.spec.seed if unit_of(self.spec.strategy) else None
        if isinstance(self.strategy, LooksAhead):
            self._hand.show = self.strategy.look_ahead
        self._page.numbers[whereabouts.ATTEMPTS] = self.options.max_attempts
        self._reading = Reading(self.source, self._client)
        self._weights = Weights(model, self._membership, self.options, self.pause)

    # -- what a script uses

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
        self._begun.begin()
        iteration = self._hand.counting.goes_through(self._iterate())
        # A script that ends without having closed it must not leave the others waiting for somebody silent.
        atexit.register(_close, weakref.ref(iteration))
        return iteration  # type: ignore[no-any-return]

    def _iterate(self) -> Generator[Any]:
        member = self._membership
        self._hand.witness.listen()
        try:
            member.drain_on_sigterm()
            self._client.start()
            self._reading.start()
            self._course = course = Course(member.life.run())
            while course.asks is not None:
                if isinstance(course.asks, ask.Train):
                    yield from self._turn(course.asks.ranges[0].epoch)
                    yield from self._train(course)
                elif isinstance(course.asks, ask.Between) and self.has_made_all:
                    yield from self._turn(self._epochs_begun, hold=True)
                    if isinstance(course.asks, ask.Between):
                        course.carry_out(self._perform)
                else:
                    course.carry_out(self._perform)
            self._end_if_told(course)
            if member.life.ended:
                self.strategy.outlive()
                yield from self._turn(max(self._epochs_begun, self.strategy.once.epoch + 1), over=True)
        except GeneratorExit:
            if self._hand.ranges and by_exception():
                self._hand.witness.left_with(self._hand.ranges)
            else:
                self._leave_early()
            raise
        finally:
            self._over = True
            self._reading.stop()
            self.loader.close()
            member.finish(linger=self._hand.witness.over(lambda: f"behind step {self.step_number}: {member.kept()}"))
            self._page.enter(At.USER, "behind the loop")
        if told.at_s() is not None:  # while the last step was made: what a script does behind its loop is left undone
            sys.exit(int(ExitCode.DRAINED))

    def _end_if_told(self, course: Course) -> None:
        """What follows the loop is for workers that have come to its end."""
        if self.settings.role == SERVER and course.result is None:
            sys.exit(int(ExitCode.DONE))
        if course.result is not None and not (self._stopped and course.result == ExitCode.DRAINED):
            sys.exit(int(course.result))

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

    def save(self, path: str | os.PathLike[str]) -> bool:
        """Write the weights to a file, which `antdt.load_model` or another library reads. All workers may call it, one
        writes, and is told True. Raises Unavailable, UsageError.
        """
        return self._weights.save(path)

    def keep_best(self, value: float, path: str | os.PathLike[str] = "best.safetensors", mode: Mode = "max") -> bool:
        """As `save`, where no value of this run was as good, in whichever life of the worker that writes."""
        return self._weights.keep_best(value, path, mode)

    # -- what the life asks for

    def _perform(self, asked: ask.Instruction) -> Any:
        match asked:
            case ask.Announce(part, batch_size, ahead):
                self._page.numbers[whereabouts.STEP] = self.strategy.step_number + 1
                self._hand.expect(part, batch_size, ahead)
                self._first_rank = part.place.first if part.place is not None else 0
                self.strategy.announce(part)
            case ask.Finish():
                self._page.enter(At.REDUCING)
                try:
                    self._outcome = self.strategy.finish(self._effects.on_plan)
                except Exception as error:
                    self._hand.ran_out(error)  # perhaps in the middle of the optimizer
                    raise
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
            log.warning(
                "%s: %s", worker, f"nobody came along within {LEAVE_EARLY_S:.0f} s" if monotonic() > until else error
            )
        finally:
            impatience.cancel()
        if not member.life.ended:
            log.warning("%s left the loop early, behind step %d: %s", worker, self.step_number, member.kept())

    # -- batches

    def _batches(self, asked: ask.Train) -> Iterator[Any]:
        """Micro-batches, each of which the script gives to `step`; the last one of them finishes the step."""
        whole = True
        self._cut = bool(asked.units) and self._hand.unit_seed is None
        if self._needs_whole and self._cut:
            asked = replace(asked, units=())
        for part, last, over in self._hand.micro_batches(asked):
            self.epoch = part[0].epoch
            samples = self._hand.count(part)
            batch = self._hand.load(part, samples)
            self._micro, self._losses, self._updates, self._heard = Micro(samples, last, over), 0, 0, None
            self._whole, self._inside, self._between, whole = whole and over, True, False, False
            with self._watched.begin(batch, samples):
                yield batch
            if self._micro is not None and self._updates and not self._losses:
                self._end_updates()
            if self._micro is not None:
                raise UsageError(
                    "A batch was not passed to agent.step(loss): every sample counts exactly once. Behind "
                    "agent.backward(loss) call agent.apply(). (Gradients are accumulated by a larger batch_size, cut "
                    "into parts of AgentOptions(micro_batch_size_max=n).) Call agent.skip(reason) to have all workers "
                    "skip this step, and agent.step(loss, weight=0) to learn nothing from this batch alone."
                )
            if self._broken:
                return

    def _account(self, outcome: Outcome) -> None:
        with self._client.lock:
            self._membership.note()
        if any(row.stopping for row in outcome.rows):
            self._stop_now()
        if outcome.applied:
            self._hand.measure(outcome, self.strategy.step_number)
            self._weights.made(self.step_number)
        if outcome.applied and self._session.rank == 0 and not self._loaded_back:
            # Behind the first step that this process makes as the first member: what cannot be read again is to be
            # known now, not when it is needed.
            self.strategy.load_back()
            self._loaded_back = True

    def _stop_now(self) -> None:
        """Some script has called `stop`, and all have heard it in the same step."""
        reason = self._stopped or ""
        if self._stopped is None:
            self._stopped = "another worker's script called agent.stop"
            log.warning("stops behind step %d: %s", self.step_number, self._stopped)
            self.strategy.stop()  # whoever comes now hears it as well
        self._membership.life.stop(reason)


def _close(iteration: weakref.ref[Generator[Any]]) -> None:
    """Weak, or leaving the loop would not end it."""
    found = iteration()
    if found is not None:
        found.close()
