"""The samples that a worker has in hand: loaded, gone through, and accused where they make it fail.

Owns micro-batches between the loader and the loss, how large they may be, and where the time of a step goes. Must not
know what a step is made of, nor who else makes it.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from antdt_schemas.ranges import Range

from antdt.connect.client import Client
from antdt.data.sources import IterableSource, MapSource, position_key
from antdt.host import whereabouts
from antdt.host.whereabouts import At
from antdt.job import AgentOptions
from antdt.strategies.base import Outcome, Part
from antdt.worker.blame import Witness
from antdt.worker.holds import Holds, is_out_of_memory
from antdt.worker.telemetry import StepTiming

log = logging.getLogger("antdt")

FIRST_STEP_S = 300.0  # whoever comes later compiles alone, while the others wait


@dataclass(slots=True)
class _Clock:
    """Where the time of one step goes; seconds by perf_counter."""

    began: float = 0.0
    data_s: float = 0.0
    first_bucket_at: float | None = None


class Hand:
    """`ranges`: the samples of the micro-batch that the script has; none while it has none."""

    def __init__(self, client: Client, source: MapSource | IterableSource, loader: Any, options: AgentOptions) -> None:
        self._client, self._source, self._loader = client, source, loader
        self._page, self._micro_batch_size_max = whereabouts.mine(), options.micro_batch_size_max
        self.holds = Holds(self._page, options.batch_size_max)
        self.witness = Witness(client, source, self.holds)
        self.ranges: list[Range] = []
        self._has_stepped, self._clock = False, _Clock()

    def expect(self, part: Part, batch_size: int) -> None:
        """A step begins: data processes make the samples of this part, and what comes next."""
        if not part.leaving:
            with self._client.changed:
                ahead = self._client.session.leases.ahead(self._loader.ahead(batch_size))
            self._loader.expect([*((r.epoch, r.start, r.length) for r in part.ranges), *ahead], batch_size)
        self._clock = _Clock(perf_counter())

    def micro_batches(self, accumulation: int, samples: int) -> int:
        """How many to make of so many samples."""
        limits = self._micro_batch_size_max, self.holds.limit
        limit = min((one for one in limits if one), default=0)  # before there is a plan that fits
        return max(accumulation, -(-samples // limit) if limit else 1)

    def load(self, part: list[Range]) -> Any:
        """One micro-batch, which is in hand from now on."""
        started_s = perf_counter()
        page, hand = self._page, [(r.epoch, r.start, r.length) for r in part]
        page.enter(At.LOADING)
        page.take(hand if self._loader.is_here else ())
        self.holds.tries(sum(r.length for r in part))
        try:
            with self.may_run_out():
                batch = self._loader.fetch(part)
        except Exception as error:
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
        self._clock.data_s += perf_counter() - started_s
        return batch

    def passed(self, first_bucket_at: float | None) -> None:
        """It went forward and backward."""
        self.ranges, self._clock.first_bucket_at = [], first_bucket_at
        self.holds.passed()

    def goes_on(self) -> None:
        """The script was busy with something else than this step."""
        self._clock.began = perf_counter()

    def drop(self) -> None:
        """Its step was given up."""
        self.ranges = []

    @contextmanager
    def may_run_out(self) -> Iterator[None]:
        """Where memory is out in here, the next life of this worker takes fewer samples at a time."""
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                self.holds.shrink()
            raise

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
        """A step was applied: say where its time went."""
        self._has_stepped = True
        mine, clock, timings = outcome.rows[self._client.session.rank], self._clock, outcome.timings
        self._client.telemetry.batch_size_max = self.holds.limit
        at = clock.first_bucket_at
        compute_s = max(0.0, at - clock.began - clock.data_s) if at is not None else 0.0
        self._client.telemetry.add(
            StepTiming(
                self._client.session.generation,
                step,
                mine.samples,
                mine.plan,
                clock.data_s,
                compute_s,
                timings.reduction_s,
                timings.composition_s,
            )
        )
