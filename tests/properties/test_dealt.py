"""Samples that are dealt out ahead: under any leases, moves, deaths and arrivals each is trained exactly once;
the audit, and the checker that shares no code with it, say so.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.dealing import evenly
from antdt_streams.ledger.core.dealt import NOBODY, DealtShards
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.intervals import IntervalSet
from antdt_streams.proof.audit import audit
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.servers import PS, Servers
from tests.simulation.judge import checked

STEPS = 60


class Colony(Servers):
    """Workers that do whatever they may, as chance has it."""

    def __init__(self, seed: int, sharding: str) -> None:
        rng = self.rng = random.Random(seed)
        epochs, size = rng.choice((1, 2, 3)), rng.choice((1, 4, 10))
        super().__init__(
            replace(
                PS, strategy=f"ps-asp/{sharding}/servers=2", samples=rng.randint(2, 90), epochs=epochs, shard_size=size
            )
        )
        self.formed()
        self.lives = 1
        self.counts: dict[str, int] = {}

    @property
    def dealt(self) -> DealtShards:
        shards = self.state.shards
        assert isinstance(shards, DealtShards)
        return shards

    @property
    def generation(self) -> int:
        return int(self.state.members.generation)

    def do(self) -> None:
        """One of all that can happen."""
        rng, who = self.rng, self.rng.choice([*self.state.members.attached])
        what = rng.choices(
            (self.ask, self.train, self.take_over, self.give_back, self.die, self.come, self.lose_a_server),
            (6, 6, 5, 1, 1, 1, 0.3),
        )[0]
        what(who)
        self.counts[what.__name__] = self.counts.get(what.__name__, 0) + 1
        self.state.check()

    def ask(self, who: str) -> None:
        self.lease(who, self.rng.randint(1, 60))

    def train(self, who: str) -> None:
        """From the front of what it holds."""
        held = self.say(who, records.Lease(self.generation, 0)).leases
        if held:
            length = self.rng.randint(1, held[4])
            assert (
                self.commit("s0.0" if self.generation == 1 else self.state.members.group[0], (*held[:4], length)).status
                is Status.OK
            )

    def take_over(self, who: str) -> None:
        """Of what somebody has not begun; or of what it may have begun meanwhile."""
        parts = [(n, e, run) for n, p in self.dealt.parts.items() for e, inside in p.todo.items() for run in inside]
        if parts:
            source, epoch, (start, end) = self.rng.choice(parts)
            low = self.rng.randint(start, end - 1)
            move = records.Move(self.generation, source, epoch, low, self.rng.randint(1, end - low))
            before = self.dealt.committed_total
            valid = self.dealt.sharding == "colony" and source not in (NOBODY, who)
            assert (self.say(who, move).status is Status.OK) == valid
            assert self.dealt.committed_total == before

    def give_back(self, who: str) -> None:
        held = self.say(who, records.Lease(self.generation, 0)).leases
        whole = [
            i for i in range(0, len(held), 5) if self.dealt.leases[held[i]].front == self.dealt.leases[held[i]].start
        ]
        if whole:
            at = self.rng.choice(whole)
            self.say(who, records.Release(self.generation, held[at], held[at + 1]))

    def die(self, who: str) -> None:
        if len(self.state.members.attached) > 1:
            self.exited(who)
            if self.rng.random() < 0.7:
                self.obey(len(self.state.members.losses), self.state.members.group[0])

    def come(self, _: str) -> None:
        self.lives += 1
        self.join(f"w{self.rng.randint(0, 3)}.{self.lives}")

    def lose_a_server(self, _: str) -> None:
        first, second = self.state.members.group
        self.lives += 1
        self.exited(second)
        self.join(f"s1.{self.lives}")
        self.again(first)
        self.begun_anew()
        self.obey(len(self.state.members.losses), first)

    def finish(self) -> None:
        """Everybody works until nothing is left."""
        first = self.state.members.group[0]
        self.obey(len(self.state.members.losses), first)
        for _ in range(3_000):
            if self.dealt.finished:
                break
            who = self.rng.choice([*self.state.members.attached])
            self.lease(who, 60)
            self.train(who)
            if self.dealt.sharding == "colony":
                self.take_over(who)
        assert self.dealt.finished, [(n, p.todo) for n, p in self.dealt.parts.items()]
        self.say(first, records.Checkpoint(self.generation, self.step, self.lineage, "end"))


@pytest.mark.parametrize("sharding", ["even", "colony"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 40))
def test_every_sample_of_every_epoch_is_trained_exactly_once(sharding: str, seed: int) -> None:
    bench = Colony(seed, sharding)
    for _ in range(STEPS):
        bench.do()
    bench.finish()
    report, theirs = audit(enumerate(bench.broker.log)), checked(bench.broker.log)
    assert report["exactly_once"] and theirs["exactly_once"], (report["verdict"], theirs["verdict"])
    assert report["committed"] == theirs["committed"] == bench.spec.samples * bench.spec.epochs
    stored = as_stored(bench.broker.log)
    assert stored == dict(rows.all_rows(bench.state))
    assert dict(rows.all_rows(rows.load(type(bench.state)(bench.spec), stored))) == stored


def as_stored(log: Sequence[bytes]) -> dict[bytes, bytes]:
    """The rows of one that writes those that have changed after each entry."""
    fold, out = Fold(), dict[bytes, bytes]()
    for offset, payload in enumerate(log):
        fold.read(offset, payload)
        for key, row in rows.changes(fold.state).items() if fold.state is not None else ():
            if row is None:
                out.pop(key, None)
            else:
                out[key] = row
    return out


def test_rows_of_who_gives_and_who_takes_are_written() -> None:
    bench = Servers(replace(PS, strategy="ps-asp/colony/servers=2")).formed()
    bench.lease("w0.0", 10)
    assert bench.say("w0.0", records.Move(1, "w1.0", 0, 80, 20)).status is Status.OK
    assert as_stored(bench.broker.log) == dict(rows.all_rows(bench.state))


@settings(max_examples=100, deadline=None)
@given(cuts=st.sets(st.integers(0, 300), min_size=2, max_size=12), parts=st.integers(1, 9), size=st.integers(1, 20))
def test_what_is_dealt_is_all_of_it_and_even(cuts: set[int], parts: int, size: int) -> None:
    at = sorted(cuts)
    pieces = list(zip(at[::2], at[1::2], strict=False))
    dealt, shards = IntervalSet(), [0] * parts
    for part, start, length in evenly(pieces, parts, size):
        dealt.add(start, start + length)
        shards[part] += -(-(start + length) // size) - start // size
    assert dealt == IntervalSet(pieces)
    assert max(shards) - min(shards) <= 1 and shards == sorted(shards, reverse=True)
