"""The samples that a worker has in hand: how a step of the job becomes micro-batches, and what is told of its time."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from antdt.data.sources import source_of
from antdt.hand import Hand
from antdt.job import AgentOptions
from antdt.strategies.base import Outcome, Part, Timings
from antdt.worker.instructions import Train
from antdt.worker.session import Session, Where
from antdt.worker.telemetry import Telemetry
from antdt_schemas.ranges import Range
from torch.utils.data import TensorDataset

from tests.unit.test_session import GRANT, SPEC, reply


class Loading:
    """Remembers what it is told to load ahead; `ahead` samples behind what is taken."""

    is_here = False

    def __init__(self) -> None:
        self.told: list[list[tuple[int, int, int]]] = []

    def ahead(self, batch_size: int) -> int:
        return batch_size

    def expect(self, upcoming: Any, batch_size: int) -> None:
        self.told.append(list(upcoming))


def hand_of(loading: Loading, **options: Any) -> tuple[Hand, Telemetry]:
    """With 100 samples on lease."""
    session = Session("w0", "w0.0", SPEC, Where("h", 1))
    session.tick(0.0)
    session.on_reply(reply(-1, grant=GRANT))
    session.begin([], b"")
    session.tick(1.0)
    session.on_reply(reply(session.outbox.number, leases=(1, 7, 0, 0, 100)))
    telemetry = Telemetry("w0", "w0.0", "n", "")
    client: Any = SimpleNamespace(session=session, lock=nullcontext(), telemetry=telemetry)
    return Hand(
        client, source_of(TensorDataset(torch.arange(100)), seed=0), loading, AgentOptions(**options)
    ), telemetry


def cut(hand: Hand, asked: Train) -> list[tuple[list[tuple[int, int]], bool, bool]]:
    return [([(r.start, r.length) for r in part], last, over) for part, last, over in hand.micro_batches(asked)]


def test_a_step_of_the_job_is_cut_into_steps_of_the_optimizer_and_those_into_micro_batches() -> None:
    hand, _ = hand_of(Loading())
    ranges = [Range(1, 7, 0, 0, 5), Range(2, 7, 0, 50, 7)]
    assert cut(hand, Train(ranges, 1, 12)) == [([(0, 5), (50, 7)], True, True)]
    assert cut(hand, Train(ranges, 2, 12)) == [([(0, 5), (50, 1)], False, False), ([(51, 6)], True, True)]
    assert cut(hand, Train(ranges, 1, 4)) == [
        ([(0, 4)], True, False),
        ([(4, 1), (50, 3)], True, False),
        ([(53, 4)], True, True),
    ]
    assert cut(hand, Train(ranges[1:], 1, 4)) == [([(50, 4)], True, False), ([(54, 3)], True, True)], (
        "as even as can be"
    )


def test_a_limit_of_memory_is_that_of_micro_batches_within_each_step_of_the_optimizer() -> None:
    hand, _ = hand_of(Loading(), micro_batch_size_max=2)
    assert cut(hand, Train([Range(1, 7, 0, 0, 6)], 1, 3)) == [
        ([(0, 2)], False, False),
        ([(2, 1)], True, False),
        ([(3, 2)], False, False),
        ([(5, 1)], True, True),
    ]


def test_data_processes_are_told_of_each_step_of_the_optimizer_and_of_what_lies_behind() -> None:
    loading = Loading()
    hand, _ = hand_of(loading)
    taken = [Range(*r) for r in hand._client.session.leases.take(6, 8)]
    hand.expect(Part(taken, 0, 6), 2, hand._client.session.leases.ahead)
    assert len(cut(hand, Train(taken, 1, 2))) == 3
    told = [[p for _, start, length in spans for p in range(start, start + length)] for spans in loading.told]
    assert told == [list(range(first, 8)) for first in (0, 2, 4)]


def test_what_is_told_of_the_time_is_the_mean_of_the_steps_of_the_optimizer() -> None:
    hand, telemetry = hand_of(Loading())
    taken = [Range(1, 7, 0, 0, 30)]
    hand.expect(Part(taken, 0, 30), 8, lambda _: [])
    list(hand.micro_batches(Train(taken, 1, 8)))
    row: Any = SimpleNamespace(samples=30, plan=0)
    hand.measure(Outcome(30, [row], True, False, Timings(2.0, 4.0, 0.0)), 5)
    batch = telemetry.batch(0.0, everything=True)
    assert batch is not None
    assert (batch.step, batch.batch_size, batch.communication_s, batch.wait_s) == ((5,), (8,), (1.0,), (0.5,))


def test_micro_batches_that_have_passed_are_counted() -> None:
    hand, telemetry = hand_of(Loading(), micro_batch_size_max=4)
    taken = [Range(1, 7, 0, 0, 12)]
    hand.expect(Part(taken, 0, 12), 12, lambda _: [])
    for _ in hand.micro_batches(Train(taken, 1, 12)):
        hand.passed(None)
    row: Any = SimpleNamespace(samples=12, plan=0)
    hand.measure(Outcome(12, [row], True, False, Timings(0.0, 0.0, 0.0)), 5)
    batch = telemetry.batch(0.0, everything=True)
    assert batch is not None
    assert batch.micro_batches == (3,)


class Peeking(Loading):
    """What was loaded ahead up to a position. `fetched`: what it had to make when it was taken."""

    def __init__(self, loaded: int) -> None:
        super().__init__()
        self.loaded, self.fetched = loaded, list[int]()

    def peek(self, ranges: Any) -> Any:
        samples = [at for r in ranges for at in range(r.start, r.start + r.length)]
        return samples if samples[-1] < self.loaded else None

    def fetch(self, ranges: Any) -> Any:
        self.fetched += [r.start for r in ranges]
        return [at for r in ranges for at in range(r.start, r.start + r.length)]


def test_what_comes_next_is_looked_at_as_far_as_it_is_there_and_is_made_once() -> None:
    loading = Peeking(16)
    hand, _ = hand_of(loading, micro_batch_size_max=4)
    shown = list[list[int]]()
    hand.show = lambda batch, following: shown.append(batch)
    leases = hand._client.session.leases
    taken = [Range(*r) for r in leases.take(8, 8)]
    hand.expect(Part(taken, 0, 8), 8, leases.ahead)
    for part, _, _ in hand.micro_batches(Train(taken, 1, 8)):
        hand.load(part, 4)
    assert shown == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert hand.following() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    taken = [Range(*r) for r in leases.take(8, 8)]
    hand.expect(Part(taken, 0, 8), 8, leases.ahead)
    for part, _, _ in hand.micro_batches(Train(taken, 1, 8)):
        hand.load(part, 4)
    assert shown[2:] == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert loading.fetched == [0, 4], "what was looked at is what the script is given"
    assert hand.following() == [], "nothing is loaded so far"


def test_a_batch_that_cannot_be_looked_at_is_accused_where_it_is_loaded() -> None:
    class Failing(Peeking):
        def peek(self, ranges: Any) -> Any:
            raise ValueError("a sample that cannot be collated")

    hand, _ = hand_of(Failing(100))
    hand.expect(Part([], 0, 8), 8, hand._client.session.leases.ahead)
    assert hand.following() == []
