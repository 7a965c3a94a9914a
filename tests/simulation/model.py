"""What really is in a model, recorded beside the protocol: a chain of steps, each with the samples that were added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from antdt.strategies.allreduce.composition import RANGES_MAX
from antdt.strategies.base import Place
from antdt.worker.session import Composition
from antdt_schemas import lineage
from antdt_schemas.batches import Cursor
from antdt_schemas.ranges import Range

START = Cursor()
FOR_EVER_S = 1e9


class Model:
    """The state after one step. `origin` names the weights that the chain began with: no two processes start alike."""

    __slots__ = ("cursor", "lineage", "origin", "plan", "previous", "ranges", "skipped", "step", "truth")

    def __init__(
        self,
        origin: str,
        previous: Model | None = None,
        ranges: tuple[int, ...] = (),
        plan: int = 0,
        skipped: tuple[str, ...] | None = None,
        truth: tuple[Range, ...] | None = None,
        cursor: Cursor = START,
    ) -> None:
        """truth: what was really added, where `ranges` only say which step it is."""
        self.truth, self.cursor = truth, cursor
        self.origin, self.previous, self.ranges, self.plan, self.skipped = origin, previous, ranges, plan, skipped
        self.step, self.lineage = 0, lineage.ROOT
        if previous is not None:
            quads = [v for i in range(0, len(ranges), 5) for v in (ranges[i], *ranges[i + 2 : i + 5])]
            self.step = previous.step + 1
            self.lineage = lineage.next_lineage(previous.lineage, self.step, quads)

    def then(self, ranges: tuple[int, ...], plan: int, skipped: tuple[str, ...] | None = None) -> Model:
        """The model after one more step: flat quintuples (lease, token, epoch, start, length) in rank order."""
        return Model(self.origin, self, ranges, plan, skipped)

    def after(self, place: Place, truth: tuple[Range, ...], plan: int, skipped: tuple[str, ...] | None) -> Model:
        """The model after one more step of a fixed size, to which members really added `truth`."""
        return Model(self.origin, self, place.ranges, plan, skipped, truth, place.behind)

    def steps(self) -> Iterator[Model]:
        """Every step in it, the newest first; not the start."""
        model: Model | None = self
        while model is not None and model.step:
            yield model
            model = model.previous

    def at(self, step: int) -> Model | None:
        """The model as it was after `step`, None if it has not got there."""
        model: Model | None = self
        while model is not None and model.step > step:
            model = model.previous
        return model if model is not None and model.step == step else None

    def samples(self) -> Counter[tuple[int, int]]:
        """How often each (epoch, position) was added."""
        seen: Counter[tuple[int, int]] = Counter()
        for model in self.steps():
            for taken in model.truth or ():
                seen.update((taken.epoch, p) for p in range(taken.start, taken.start + taken.length))
            r = model.ranges if model.truth is None else ()
            for i in range(0, len(r), 5):
                seen.update((r[i + 2], p) for p in range(r[i + 3], r[i + 3] + r[i + 4]))
        return seen


class Snapshot(NamedTuple):
    """What is handed to another member, or into a file: the model, and its steps that may not be committed yet."""

    model: Model
    pending: tuple[Composition, ...]


class Replica:
    """A model as the life of its worker sees it: what a `Strategy` says of its own."""

    ranges_max, pending_max, form_patience_s, undivided = RANGES_MAX, 64, FOR_EVER_S, False

    def __init__(self, origin: str) -> None:
        self.model, self.pending, self.void = Model(origin), list[Composition](), False

    @property
    def step_number(self) -> int:
        """Steps in the model."""
        return self.model.step

    @property
    def lineage(self) -> bytes:
        """What is in it."""
        return self.model.lineage

    @property
    def plan(self) -> int:
        """The plan that it was made under."""
        return self.model.plan

    @property
    def cursor(self) -> Cursor:
        """Where it is, if steps have a fixed size."""
        return self.model.cursor

    def drop_pending(self, up_to_step: int) -> None:
        """What is committed need not be reported again."""
        self.pending = [c for c in self.pending if c.step > up_to_step]

    def load(self, snapshot: Snapshot) -> None:
        """Overwrite the model: void until the last byte is there."""
        self.model, self.pending, self.void = snapshot.model, list(snapshot.pending), False
