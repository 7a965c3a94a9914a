"""One replica under AllReduce: take, backward (once or more), step.

Rules
    Every member makes the same sequence of collectives in a step: buckets in index order, then buffers. Compositions
    ride in the first bucket, or are gathered beside it.
    A step is applied by a member only once every other member's part of it has arrived; that a member announces step
    s + 1 proves that it applied step s.
    Weights: each loss counts n / reference in backward, and the sum counts reference / total afterwards. Together that
    is the gradient of the mean over the global batch, whatever the split.
    A round without a sample is no step: neither optimizer nor step number move.
    A step whose reduced gradient is not finite is skipped by all alike: its samples count and the step number moves,
    model, optimizer and buffers stay. Nobody calls the optimizer, so none of its hooks either.
    Until the optimizer is called, `abort` leads back to the last applied step, bit by bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from antdt_schemas.batches import Cursor
from antdt_schemas.errors import UsageError
from antdt_schemas.lineage import ROOT
from antdt_schemas.ranges import Range

from antdt.strategies.allreduce import finite, guard, randomness, replicas
from antdt.strategies.allreduce.buckets import LocalGradients, ReducedGradients, partition
from antdt.strategies.allreduce.composition import ROW_WIDTH, Composition, Round, Row, outlier
from antdt.strategies.allreduce.memory import Buffers, RandomState
from antdt.strategies.allreduce.options import AllReduce
from antdt.strategies.allreduce.rates import LearningRates
from antdt.strategies.allreduce.rendezvous import Generation
from antdt.strategies.allreduce.state import (
    Head,
    Progress,
    Saved,
    broadcast,
    dump,
    gather_bytes,
    gather_heads,
    load,
    misfit,
    parse,
)
from antdt.strategies.base import GenerationClosed, Outcome, Place, Timings

COMPARED_AT_FIRST = 4  # steps of a generation, all of which are compared


class AllReduceReplica:
    """One replica of a model. Only the thread that owns the model calls it.

    Public state: step_number, lineage (16 bytes), plan and cursor of the model; `rates`, whose factor is that plan's
    and is saved with it; `pending`, the compositions of applied steps not yet seen committed; `void`, true while the
    model holds no valid state (torn in the middle of an adoption or of the optimizer; the Agent may set it, too).
    first_bucket_at: time.perf_counter() when the first bucket was full in the last backward, where this member's own
    compute ends; None without one.
    """

    def __init__(self, model: torch.nn.Module, optimizer: Any, options: AllReduce | None = None) -> None:
        guard.refuse(model, optimizer)
        self.model, self.optimizer, self.options = model, optimizer, options or AllReduce()
        self.step_number, self.lineage, self.plan, self.cursor = 0, ROOT, 0, Cursor()
        self.rates = LearningRates(optimizer)
        self.pending: list[Composition] = []
        self.void = False
        self.first_bucket_at: float | None = None
        self._generation: Generation | None = None
        self._gradients: ReducedGradients | LocalGradients | None = None
        self._trained: list[torch.nn.Parameter] = []
        self._buffers = Buffers(model)
        self._replica = replicas.Replica(model, optimizer, self._buffers)
        self._guard = guard.Guard(model, optimizer)
        self._workers: Sequence[str] = ()
        self._rounds, self._skips, self._state = 0, 0, 0
        self._finite = finite.Finite(model, self._buffers)
        self._random = RandomState({param.device for param in model.parameters()})
        self._random_of_file: tuple[bytes, ...] = ()
        self._row: Row | None = None
        self._place: Place | None = None
        self._gathered: torch.Tensor | None = None

    # -- generations

    def attach(self, generation: Generation, workers: Sequence[str] = ()) -> None:
        """From now on steps are made with the members of this generation. workers: what to call each rank."""
        assert self._row is None, "abort the step first"
        trained = [param for param in self.model.parameters() if param.requires_grad]
        if not trained:
            raise UsageError("All parameters are frozen: at least one must have requires_grad=True.")
        kind = LocalGradients if generation.world == 1 else ReducedGradients
        same = len(trained) == len(self._trained) and all(a is b for a, b in zip(trained, self._trained, strict=True))
        if not (same and isinstance(self._gradients, kind)):
            self.detach()
            groups = partition(trained, self.options.first_bucket_size_bytes, self.options.bucket_size_bytes)
            self._gradients = (
                LocalGradients(groups) if kind is LocalGradients else ReducedGradients(groups, self.options.overlap)
            )
        self._trained, self._generation = trained, generation
        self._frozen = [param for param in self.model.parameters() if not param.requires_grad]
        if isinstance(self._gradients, ReducedGradients):
            self._gradients.connect(generation, self._inline())
        self._workers = workers or [f"rank {rank}" for rank in range(generation.world)]
        self._rounds, self._state = 0, 0
        self._replica.forget()
        self._guard.open()
        self._forget_step()
        self._keep()

    def detach(self) -> None:
        """Takes the hooks off the model; the state stays."""
        self._guard.close()
        if self._gradients is not None:
            self._gradients.disconnect()
        self._gradients, self._generation = None, None

    def _inline(self) -> bool:
        if self.options.compositions == "auto":
            return str(self._trained[-1].device.type) == "cpu"
        return self.options.compositions == "inline"

    def adopt(self, source_rank: int) -> bool:
        """All members call it after `attach`: whoever differs takes over the state of `source_rank`, pending steps
        included. Returns False where all are equal already, and nothing is sent.

        Before the first step equal numbers say nothing about the weights, so there the source's are always taken.

        Raises ReplicasDiffer where members that are at the same step hold different models: neither is taken over.
        """
        generation = self._attached()
        assert self._row is None, "abort the step first"
        state = 0
        if generation.world > 1 and self.step_number and not self.void and self.options.compare_every:
            state = self._replica.state(frozen=True)
        heads = gather_heads(generation, Head(self.step_number, self.lineage, self.plan, self.void, state))
        assert not heads[source_rank].void, "the source of an adoption must hold a valid state"
        for at in {(head.step, head.lineage) for head in heads}:
            unequal = outlier([head.state if (head.step, head.lineage) == at else 0 for head in heads])
            if unequal is not None:
                raise replicas.difference(generation, self._replica, self._workers, at[0], unequal)
        if generation.world == 1 or (len(set(heads)) == 1 and self.step_number > 0):
            return False
        mine = generation.rank == source_rank
        data = broadcast(generation, source_rank, self.snapshot() if mine else None)
        generation.settled()
        if not mine:
            self.restore(data, of="What the other workers hold")
        return True

    @property
    def is_open(self) -> bool:
        """Whether a step was begun and is not applied: only `abort` leads out of it."""
        return self._row is not None

    def abort(self) -> None:
        """After GenerationClosed, or to give up a step: leaves the generation; the state is that of the last step."""
        if self._generation is not None and not self._generation.leave() and self._gradients is not None:
            self._gradients.renounce()
        self._generation = None
        self._buffers.restore()
        self._random.restore()
        self._forget_step()

    # -- state

    def gather_random(self) -> list[bytes]:
        """Random states of all members, in rank order; all of them call it, between two steps.

        Its end proves that everybody has applied the last step.
        """
        assert self._row is None, "random states belong between two steps"
        return gather_bytes(self._attached(), randomness.pack(self._random.devices))

    def snapshot(self, random: Sequence[bytes] = (), labels: Mapping[str, str] | None = None) -> bytes:
        """Model, optimizer, step number, lineage, plan and pending compositions.

        random: states of each rank, to be restored with it; without any, those that this state was restored with, as
        long as no step was applied since. labels: for whoever restores it.
        """
        assert self._row is None, "a snapshot belongs between two steps"
        assert not self.void, "the state is void"
        at, pending = (self.step_number, self.lineage, self.plan), tuple(self.pending)
        progress = Progress(*at, pending, self._skips, self.rates.factor, self.cursor)
        return dump(self.model, self.optimizer, progress, random or self._random_of_file, labels or {})

    def load_back(self) -> None:
        """Whether what `snapshot` gives can be read again, in memory. Dear: asked once, when a step was made.

        Raises UsageError, with what cannot be read.
        """
        parse(self.snapshot())

    def diverge(self, *salt: object) -> None:
        """From here on this member draws numbers of its own: they follow from where its generators are, and `salt`."""
        assert self._row is None, "random states belong between two steps"
        randomness.diverge(salt, self._random.devices)
        self._random.keep()

    def restore(self, data: bytes, check: Callable[[Saved], None] | None = None, of: str = "The state") -> None:
        """The inverse. Read whole first; void while it is being loaded, and for good if that fails.

        check: looks at what was read before anything is overwritten. Random states are those of this rank. of: what to
        call it.

        Raises UsageError: it is that of another model or optimizer.
        """
        assert self._row is None, "abort the step first"
        saved = parse(data)
        if check is not None:
            check(saved)
        wrong = misfit(saved, self.model, self.optimizer)
        if wrong:
            raise UsageError(f"{of} cannot be loaded: {wrong} Run the script that the job began with, or a new job.")
        self.void = True
        load(saved, self.model, self.optimizer)
        progress = saved.progress
        self.step_number, self.lineage, self.plan = progress.step, progress.lineage, progress.plan
        self.pending, self._skips, self.cursor = list(progress.pending), progress.skips, progress.cursor
        self.rates.factor = progress.learning_rate_factor
        self._random_of_file, self._state = saved.random, 0
        if saved.random:
            rank = self._generation.rank if self._generation is not None else 0
            randomness.take_over(saved.random, rank, self._random.devices)
        self.void = False
        self._keep()

    @property
    def size_bytes(self) -> int:
        """About how large a snapshot is: parameters, and two moments of each in the optimizer."""
        return 3 * sum(int(param.numel() * param.element_size()) for param in self.model.parameters())

    def verify(self) -> None:
        """Before a checkpoint, by all members alike, between two steps: what is written is what everybody has.

        Raises ReplicasDiffer, or NotFinite.
        """
        generation = self._attached()
        if generation.world > 1 and self.options.compare_every:
            mine = self._replica.state(frozen=True)
            found = torch.empty(generation.world, 1, dtype=torch.int64)
            generation.wait(generation.gather(found, torch.tensor([mine])))
            generation.settled()
            unequal = outlier(found.flatten().tolist())
            if unequal is not None:
                raise replicas.difference(generation, self._replica, self._workers, self.step_number, unequal)
        self.check_finite()

    def check_finite(self) -> None:
        """Raises NotFinite for a model that nobody should go back to."""
        self._finite.check(self.step_number)

    def check_equal(self, saved: Saved, file: str) -> None:
        """Raises ReplicasDiffer where a saved state is of this very step, but of another model: loading hides that."""
        at, mine = (saved.progress.step, saved.progress.lineage), (self.step_number, self.lineage)
        if at == mine and self.step_number and not self.void and self.options.compare_every:
            replicas.check_file(self._replica.parts(), saved.model, at[0], file)

    def drop_pending(self, up_to_step: int) -> None:
        """These are committed: nobody has to report them again."""
        if self.pending and self.pending[0].step <= up_to_step:  # in order; asked after every step, seldom to be done
            self.pending = [made for made in self.pending if made.step > up_to_step]

    # -- one step

    def take(
        self,
        ranges: Sequence[tuple[int, int, int, int, int]],
        samples: int,
        plan_seen: int,
        ended: bool,
        reference: int,
        *,
        leaving: bool = False,
        checkpoint: bool = False,
        place: Place | None = None,
    ) -> None:
        """Announces this member's part of the next step; without samples it takes part all the same.

        ranges: at most RANGES_MAX of (lease, token, epoch, start, length). reference: the global batch that the plan in
        the model expects, the same number on all members. leaving, checkpoint: see Row. place: of a step of a fixed
        size; then `ranges` are as many as they are. Call it only with the step before applied.
        """
        generation = self._attached()
        generation.check()
        assert self._row is None, "the step before is still open"
        assert not self.void, "the state is void"
        assert samples == sum(taken[4] for taken in ranges) and reference > 0, (samples, reference, ranges)
        assert len(self.pending) < self.options.pending_max, "too many applied steps await their commit"
        (settings, state), self._place = self._fingerprints(generation, samples), place
        self._row = Row(
            samples=samples,
            plan_seen=plan_seen,
            plan=self.plan,
            lineage=self.lineage,
            step=self.step_number,
            ended=ended,
            reference=reference,
            ranges=tuple(Range(*taken) for taken in ranges) if place is None else (),
            leaving=leaving,
            checkpoint=checkpoint,
            settings=settings,
            state=state,
            split=place.split if place is not None else 0,
        )
        self._announce(generation, self._row)

    def _fingerprints(self, generation: Generation, samples: int) -> tuple[int, int]:
        """Of the last applied step: the optimizer's numbers always, the model where everybody gives it.

        Whoever takes no sample gives it always: when nobody takes any, perhaps at the end, all are compared.
        """
        every = self.options.compare_every
        due = bool(every) and (self._rounds < COMPARED_AT_FIRST or self.step_number % every == 0)
        if due:
            self._guard.check_parameters()
        self._rounds += 1
        if generation.world == 1 or not every:
            return self._replica.settings, 0
        state = self._state  # of the round before, if that one had no sample: the script did not run since
        if not state and (due or samples == 0):
            state = self._replica.state(frozen=self._rounds == 1)
        self._state = 0 if samples else state
        return self._replica.settings, state

    def see(self, plan: int) -> None:
        """The newest plan that was read since `take`; it counts for this step if the row has not left yet."""
        row, gradients = self._row, self._gradients
        if row is None or plan <= row.plan_seen or self._gathered is not None:
            return
        if isinstance(gradients, ReducedGradients) and gradients.launched:
            return
        self._row = replace(row, plan_seen=plan)
        self._announce(self._attached(), self._row)

    def _announce(self, generation: Generation, row: Row) -> None:
        if not isinstance(self._gradients, ReducedGradients):
            return
        columns = torch.tensor(row.pack(), dtype=torch.int64)
        if self._inline():
            self._gradients.announce(columns)
        else:
            self._gathered = torch.empty(generation.world, ROW_WIDTH, dtype=torch.int64)
            self._gathering = generation.gather(self._gathered, columns)

    def backward(self, loss: torch.Tensor, samples: int, last: bool = True) -> None:
        """loss: the mean over this micro-batch's `samples`. last: no other micro-batch of this step follows.

        Raises GenerationClosed.
        """
        assert self._row is not None and self._gradients is not None, "take first"
        assert samples > 0, "without samples there is nothing to go backward from"
        guard.check_loss(loss)
        self._weighed += samples
        self._gradients.expect(last)
        (loss * (samples / self._row.reference)).backward()
        self._gradients.done(last)
        if last and not self._gradients.touched:
            raise UsageError(
                "The loss depends on no trainable parameter of the Agent's model (on a copy of it, or another model?): "
                "give the Agent the very model that the loss is computed with."
            )
        if last:
            first_at = self._gradients.first_at
            self.first_bucket_at = time.perf_counter() if first_at is None else first_at

    def step(self, on_plan: Callable[[int], None] | None = None) -> Outcome:
        """Reduces what is left, weighs and applies. on_plan: told the plan from this step on, if it is a new one,
        before the optimizer runs.

        Raises GenerationClosed (then `abort`), ReplicasDiffer and NotFinite. To change gradients before they are
        applied, register a step pre-hook on the optimizer.
        """
        generation, row, gradients = self._attached(), self._row, self._gradients
        assert row is not None and gradients is not None, "take first"
        assert self._weighed == row.samples, f"backward saw {self._weighed} of {row.samples} samples taken"
        generation.check()
        self._check_frozen()
        started = time.perf_counter()
        if row.samples == 0:
            round_ = Round.of(self._rows())
            if round_.total == 0:
                self._compare(round_)
                return self._idle(round_, started, counts=self._place is not None and self._place.total == 0)
        gradients.launch_rest()
        self._buffers.launch(generation, row.samples / row.reference)
        round_ = Round.of(self._rows())
        self._compare(round_)
        composed = time.perf_counter()
        factor = row.reference / round_.total
        gradients.finish(factor)
        self._buffers.wait(generation)
        reduced = time.perf_counter()
        if self._place is not None and round_.total != self._place.total:
            return self._idle(round_, started)  # somebody leaves without its part: it is no step
        skipped = None if gradients.is_finite() else self._authors(generation, gradients)
        # From here on nothing can fail half-way but this process itself.
        if round_.plan != self.plan and on_plan is not None:
            on_plan(round_.plan)
        if skipped is None:
            self._apply(factor)
        else:
            self._buffers.restore()
        self._advance(round_, skipped)
        timings = Timings(composed - started, reduced - composed, time.perf_counter() - reduced)
        return Outcome(round_.total, round_.rows, True, round_.ended, timings, skipped)

    def _compare(self, round_: Round) -> None:
        """Raises ReplicasDiffer, on all members alike."""
        unequal = round_.unequal()
        if unequal is not None:
            raise replicas.difference(self._attached(), self._replica, self._workers, self.step_number, unequal)

    def _authors(self, generation: Generation, gradients: ReducedGradients | LocalGradients) -> tuple[str, ...]:
        """Whose part of a gradient was not finite; nobody's, if only the sum is too large. Where a step must not be
        skipped, raises NotFinite instead, on all members alike.
        """
        self.check_finite()
        options, authors = self.options, None
        try:
            authors = finite.gather_authors(generation, self._workers, gradients.own_is_finite())
        except GenerationClosed:
            if options.on_nonfinite == "skip":
                raise
        if authors is None or options.on_nonfinite == "raise":
            raise finite.not_to_be_skipped(self.step_number + 1, authors, None)
        if self._skips + 1 >= options.skips_max:
            raise finite.not_to_be_skipped(self.step_number + 1, authors, options.skips_max)
        return authors

    def _rows(self) -> list[Row]:
        """Everybody's, in rank order; waits for them."""
        assert self._row is not None and self._generation is not None
        if not isinstance(self._gradients, ReducedGradients):
            return [self._row]
        if self._gathered is None:
            rows = self._gradients.announced()
        else:
            self._generation.wait(self._gathering)
            rows = self._gathered
        return [Row.unpack(columns) for columns in rows.tolist()]

    def _idle(self, round_: Round, started: float, *, counts: bool = False) -> Outcome:
        self._attached().settled()
        self._buffers.restore()
        self._advance(round_, None) if counts else self._forget_step()
        return Outcome(0, round_.rows, counts, round_.ended, Timings(time.perf_counter() - started, 0.0, 0.0))

    def _apply(self, factor: float) -> None:
        """Void until `_advance` has said which step this is."""
        self.void = True
        self._buffers.finish(factor)
        self._guard.applying = True
        try:
            self.rates.step()
        finally:
            self._guard.applying = False
        self._replica.stepped(self.rates.factor)

    def _advance(self, round_: Round, skipped: tuple[str, ...] | None) -> None:
        self.step_number += 1
        self.plan = round_.plan
        place, step = self._place, self.step_number
        self.lineage = round_.lineage_after(self.lineage, step, place)
        self.pending.append(round_.composition(step, skipped, place))
        self.cursor = place.behind if place is not None else self.cursor
        self._skips = 0 if skipped is None else self._skips + 1
        self._random_of_file, self._state, self.void = (), 0, False
        self._attached().settled()
        self._forget_step()
        self._keep()

    # -- helpers

    def _attached(self) -> Generation:
        assert self._generation is not None, "attach a generation first"
        return self._generation

    def _forget_step(self) -> None:
        """No step is open, no gradient is there."""
        if self._gradients is not None:
            self._gradients.reset()
        self._row, self._place, self._gathered, self._gathering, self._weighed = None, None, None, None, 0
        self.first_bucket_at = None

    def _keep(self) -> None:
        """This is what an abort leads back to."""
        self._buffers.keep()
        self._random.keep()

    def _check_frozen(self) -> None:
        if any(param.requires_grad for param in self._frozen):
            raise UsageError(
                "A parameter was unfrozen within a generation: freeze and unfreeze before training starts."
            )
