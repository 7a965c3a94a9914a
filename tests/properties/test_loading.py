"""Whatever becomes of leases, data processes give each step the samples that the step has taken, and hold few."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from antdt.data.loading import Loader, LoadingOptions, loader_of
from antdt.data.sources import source_of
from antdt.worker.session.asking import Outbox, SessionOptions
from antdt.worker.session.leases import Leases
from antdt_schemas import records
from antdt_schemas.ranges import Range
from antdt_schemas.records import Status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.loading import Numbers, same

SIZE, EPOCHS = 120, 2
SPEC = records.JobSpec("d", SIZE, bytes(16), "feistel", EPOCHS, 7, 2, 32, 2, 4, "allreduce")
STEP = st.tuples(st.just("step"), st.integers(1, 25))
GRANTED = st.tuples(st.just("granted"), st.integers(1, 60))
OTHERS = st.tuples(st.just("others"), st.integers(1, 15))
OUT = st.tuples(st.sampled_from(["release", "regroup"]), st.just(0))


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    """One pair of processes for all examples: the next one finds what the last one has left."""
    made = loader_of(source_of(Numbers(SIZE), seed=7, collate=list), 2, 7, LoadingOptions(chunk_size=8))
    assert isinstance(made, Loader)
    yield made
    made.close()


class Ledger:
    """Gives positions out; what comes back, and what others had, goes out again or not at all."""

    def __init__(self) -> None:
        self.leases = Leases(SPEC, SessionOptions(prefetch_samples_max=1000))
        self.free = [(epoch, 0, SIZE) for epoch in range(EPOCHS)]
        self.number, self.outbox, self.now_s = 0, Outbox("w", "w.0"), 0.0
        self.listed: list[int] = []

    def grant(self, length: int) -> None:
        """The next free positions, in an answer to a question that is asked first."""
        self.now_s += 10.0
        self.leases.rate = 1e6
        self.leases.ask(self.now_s, 1, self.outbox)
        for request in self.outbox.emptied():
            found = self.cut(length)
            if found is not None:
                self.number += 1
                self.listed += [self.number, 7, *found]
            self.leases.take_answer(
                records.Reply("w", "w.0", request.number, Status.OK, "", 1, 0, False, tuple(self.listed), None, "")
            )

    def cut(self, length: int) -> tuple[int, int, int] | None:
        """Positions that nobody has."""
        if not self.free:
            return None
        epoch, start, stop = self.free.pop(0)
        end = min(stop, start + length)
        if end < stop:
            self.free.insert(0, (epoch, end, stop))
        return epoch, start, end - start

    def take_back(self) -> None:
        """What was not taken is free again."""
        held = [(h.epoch, h.next, h.end) for h in self.leases.held if h.length]
        self.free = sorted(held + self.free)
        self.leases.begin()
        self.listed = []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(STEP, STEP, STEP, GRANTED, GRANTED, OTHERS, OUT), min_size=8, max_size=30))
def test_each_step_gets_the_samples_that_it_has_taken(loader: Loader, story: list[tuple[str, int]]) -> None:
    ledger, plain = Ledger(), source_of(Numbers(SIZE), seed=7, collate=list)
    for what, number in [("granted", 50), ("granted", 20), *story]:
        if what == "granted":
            ledger.grant(number)
        elif what == "others":
            ledger.cut(number)
        elif what == "release":
            ledger.leases.rate = 0.0
            ledger.leases.observe(0, 1)
        elif what == "regroup":
            ledger.take_back()
            loader.expect((), 16)
            assert not loader._jobs
        else:
            ranges = [Range(*r) for r in ledger.leases.take(number, 100)]
            ahead = ledger.leases.ahead(loader.ahead(number))
            loader.expect([*((r.epoch, r.start, r.length) for r in ranges), *ahead], number)
            held = sum(job.piece.length for job in loader._jobs)
            # The largest step there may be, what is named ahead of that, and the rests of chunks at both ends.
            assert held <= 25 + (2 * 25 + 8) + 2 * (8 - 1)
            if ranges:
                assert same(loader.fetch(ranges), plain.fetch(ranges))
