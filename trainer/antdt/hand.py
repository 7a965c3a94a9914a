"""The samples that a worker has in hand: loaded, gone through, and accused where they make it fail.

Owns micro-batches between the loader and the loss, how large they may be, and where the time of a step goes. Must not
know what a step is made of, nor who else makes it.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from antdt_schemas.errors import UsageError
from antdt_schemas.ranges import Range

from antdt.connect.alone import Alone
from antdt.connect.client import Client
from antdt.data.loading import Loading
from antdt.data.sources import IterableSource, MapSource, position_key, split
from antdt.data.topics import TopicSource
from antdt.driving.blame import Witness
from antdt.driving.holds import Holds, is_out_of_memory
from antdt.host import whereabouts
from antdt.host.whereabouts import At
from antdt.job import AgentOptions
from antdt.strategies.allreduce.randomness import seed_all
from antdt.strategies.base import Outcome, Part
from antdt.strategies.habits.counting import Counting
from antdt.worker.instructions import Train
from antdt.worker.telemetry import StepTiming

log = logging.getLogger("antdt")

FIRST_STEP_S = 300.0  # whoever comes later compiles alone, while the others wait


@dataclass(slots=True)
class _Clock:
    """Where the time of one step goes; seconds by perf_counter."""

    began: float = 0.0
    data_s: float = 0.0
    first_bucket_at: float | None = None
    optimizer_steps: int = 1
    micro_batches: int = 0


class Hand:
    """`ranges`: the samples of the micro-batch that the script has; none while it has none. `unit_seed`: where they are
    units that are to give the same bits on every worker, what their random numbers follow from.
    """

    def __init__(
        self, client: Client | Alone, source: MapSource | IterableSource, loader: Loading, options: AgentOptions
    ) -> None:
        self._client, self._source, self._loader = client, source, loader
        self._page, self._micro_batch_size_max = whereabouts.mine(), options.micro_batch_size_max
        self.holds = Holds(self._page, options.batch_size_max)
        self.witness, self.counting = Witness(client, source, self.holds), Counting()
        self.ranges: list[Range] = []
        self.unit_seed: int | None = None
        self._has_stepped, self._clock = False, _Clock()
        self._comes: Callable[[int], list[tuple[int, int, int]]] = lambda _: []
        self._batch_size, self._accumulation = 0, 1
        self._known: dict[tuple[Range, ...], Any] = {}
        self.show: Callable[[Any, Callable[[], list[Any]]], None] = lambda batch, following: None

    def expect(self, part: Part, batch_size: int, comes: Callable[[int], list[tuple[int, int, int]]]) -> None:
        """A step begins: data processes make the samples of this part, and what comes next."""
        self._comes, self._batch_size = comes, batch_size
        if not self._loader.is_here and (not part.leaving or part.place is not None):
            self._load_ahead(part.ranges, batch_size)
        self._clock = _Clock(perf_counter())

    def _load_ahead(self, ranges: Iterable[Range], batch_size: int) -> None:
        with self._client.lock:
            ahead = self._comes(self._loader.ahead(batch_size))
        self._loader.expect([*((r.epoch, r.start, r.length) for r in ranges), *ahead], batch_size)

    def micro_batches(self, asked: Train) -> Iterator[tuple[list[Range], bool, bool]]:
        """All of them in order, each with whether it is the last one of a step of the optimizer, and of all."""
        if asked.units:
            yield from self._apart(asked.units)
            return
        self._accumulation, samples = asked.accumulation, self.count(asked.ranges)
        steps = self._split(asked.ranges, -(-samples // asked.batch_size))
        self._clock.optimizer_steps = len(steps)
        for number, step in enumerate(steps):
            if number and not self._loader.is_here:
                self._load_ahead([r for later in steps[number:] for r in later], asked.batch_size)
            mine = samples if len(steps) == 1 else self.count(step)
            parts = self._split(step, self._parts(asked.accumulation, mine))
            for at, part in enumerate(parts, 1):
                last = at == len(parts)
                yield part, last, last and step is steps[-1]

    def count(self, part: Sequence[Range]) -> int:
        """How many samples there are."""
        return self._source.count(part)

    def _split(self, ranges: Sequence[Range], parts: int) -> list[list[Range]]:
        """As few and as even pieces as can be."""
        if isinstance(self._source, TopicSource):
            return self._source.split(ranges, parts)
        return split(ranges, parts)

    def _apart(self, units: Sequence[Sequence[Range]]) -> Iterator[tuple[list[Range], bool, bool]]:
        """Those of one step that is cut already."""
        parts = [part for unit in units for part in split(unit, self._parts(1, sum(r.length for r in unit)))]
        if self.unit_seed is not None and len(parts) > len(units):
            raise UsageError(
                "A unit of AllReduce(deterministic='bitwise') is more than this worker may hold at a time (see "
                "micro_batch_size_max, or memory ran out), and in parts it gives other bits: take a smaller unit_size."
            )
        self._clock.optimizer_steps = 1
        for at, part in enumerate(parts, 1):
            yield part, at == len(parts), at == len(parts)

    def _parts(self, accumulation: int, samples: int) -> int:
        """How many to make of so many samples."""
        stated, learned = self._micro_batch_size_max or 0, self.holds.limit
        limit = min(stated or learned, learned or stated)  # before there is a plan that fits
        return max(accumulation, -(-samples // limit) if limit else 1)

    def load(self, part: list[Range], samples: int) -> Any:
        """One micro-batch of so many samples, which is in hand from now on."""
        started_s = perf_counter()
        page, hand = self._page, [(r.epoch, r.start, r.length) for r in part]
        page.enter(At.LOADING)
        page.take(hand if self._loader.is_here else ())
        self.holds.tries(samples)
        try:
            batch = self._known.pop(_places(part), None) if self._known else None
            if batch is None:
                batch = self._loader.fetch(part)
        except Exception as error:
            self.ran_out(error)
            self.witness.saw(error, part, loading=True)
            raise
        if not self._loader.is_here:
            page.take(hand)
        if self._source.has_names:
            page.say(whereabouts.KEY, position_key(self._source, part[0].epoch, part[0].start))
        self.ranges = part
        if self._has_stepped:
            page.enter(At.COMPUTING)
        else:
            page.enter(At.COMPUTING, "its first step", FIRST_STEP_S)
        if self.unit_seed is not None:
            seed_all(f"{self.unit_seed}/{part[0].epoch}/{part[0].start}".encode())
        self.show(batch, self.following)
        self._clock.data_s += perf_counter() - started_s
        return batch

    def following(self) -> list[Any]:
        """The micro-batches of the next step, as far as they are known, and there without any code of the data set:
        whole tensors, records of a topic that were read, what data processes have loaded.
        """
        self._known.clear()
        with self._client.lock:
            comes = [Range(0, 0, *span) for span in self._comes(self._batch_size)]
        found = list[Any]()
        try:
            if isinstance(self._source, TopicSource):
                return [self._source.peek(comes)]
            for part in split(comes, self._parts(self._accumulation, self.count(comes))):
                batch = self._loader.peek(part)
                if batch is None:
                    break
                found.append(batch)
                if not self._loader.is_here:  # of tensors it is cheap, and they may be changed meanwhile
                    self._known[_places(part)] = batch
        except Exception:  # it fails again when it is loaded, and is accused there
            log.debug("the next batch cannot be looked at", exc_info=True)
        return found

    def passed(self, first_bucket_at: float | None) -> None:
        """It went forward and backward."""
        self.ranges, self._clock.first_bucket_at = [], first_bucket_at
        self._clock.micro_batches += 1
        self.holds.passed()

    def goes_on(self) -> None:
        """The script was busy with something else than this step."""
        self._clock.began = perf_counter()

    def drop(self) -> None:
        """Its step was given up."""
        self.ranges = []

    def ran_out(self, error: Exception) -> None:
        """Where memory was out, the next life of this worker takes fewer samples at a time."""
        if is_out_of_memory(error):
            self.holds.shrink()

    def survives(self, error: Exception) -> bool:
        """Whether memory was out, and fewer samples at a time can be tried: the step is given up, and begun anew.
        Any other error speaks against the samples in hand.
        """
        at, smaller = self.holds.at, self.holds.failed() if is_out_of_memory(error) else 0
        if not smaller:
            self.witness.saw(error, self.ranges)
            return False
        log.warning(
            "%s: memory is out with %d samples at a time: it goes on with %d", self._client.session.worker, at, smaller
        )
        traceback.clear_frames(error.__traceback__)
        self.ranges = []
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True

    def measure(self, outcome: Outcome, step: int) -> None:
        """A step was applied: say where its time went. Where it holds several steps of the optimizer, what is said is
        the mean of them, as plans are about the batch of one.
        """
        self._has_stepped = True
        mine, clock, timings = outcome.rows[self._client.session.rank], self._clock, outcome.timings
        self._client.telemetry.batch_size_max = self.holds.limit
        at = clock.first_bucket_at
        compute_s = max(0.0, at - clock.began - clock.data_s) if at is not None else 0.0
        many = clock.optimizer_steps
        self._client.telemetry.add(
            StepTiming(
                self._client.session.generation,
                step,
                -(-mine.samples // many),
                mine.plan,
                clock.data_s / many,
                compute_s / many,
                timings.reduction_s / many,
                timings.composition_s / many,
                max(1, -(-clock.micro_batches // many)),
            )
        )


def _places(part: Sequence[Range]) -> tuple[Range, ...]:
    """Whose samples they are: whatever lease they are in, they are the same."""
    return tuple(r._replace(lease=0, token=0) for r in part)
