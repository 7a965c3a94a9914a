"""Workers that read a topic, with a real ledger: whatever is lost on the way and whoever dies, each record is in the
model once, what cannot be decoded is in quarantine, and the audit knows which offsets had no record.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from antdt.worker.session import Composition, Phase, Session, SessionOptions, Where
from antdt.worker.session.reading import Chunk, Faulty, Found, ReadLeases
from antdt_schemas import lineage, records
from antdt_schemas.space import TOPIC, Space, striped
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.proof.audit import audit

from tests.helpers.ledger import SPEC
from tests.helpers.logs import export
from tests.helpers.memory_ledger import MemoryBroker, MemoryLedger
from tools import verify_standalone

RECORD, HOLE, BAD = "r", "h", "b"
TICK_S, TICKS_MAX = 0.05, 4_000


class World:
    """Two or three workers, who make a step together whenever anybody has something to take."""

    def __init__(self, seed: int, *, growing: bool) -> None:
        self.rng = rng = random.Random(seed)
        share = rng.choice((0.0, 0.05, 0.5, 0.95))
        kinds = [RECORD] * 100 + [HOLE] * round(100 * share / (1.01 - share)) + [BAD] * rng.choice((0, 0, 2))
        self.topic = {p: [rng.choice(kinds) for _ in range(rng.randrange(200))] for p in range(rng.randrange(1, 4))}
        self.topic[0].append(RECORD)
        ends = {p: rng.randrange(len(all_) + 1) if growing else len(all_) for p, all_ in self.topic.items()}
        flat = [number for p in self.topic for number in (p, 0, 0)]
        blocks = (*flat, *Space(striped({p: (0, end) for p, end in ends.items()})).flat)
        of_topic = {"order": TOPIC, "blocks": blocks, "growing": growing, "samples": sum(ends.values())}
        self.spec = replace(SPEC, shard_size=rng.choice((1, 7, 30)), workers_min=2, epochs=1, **of_topic)
        self.space = Space.of(blocks, closed=not growing)
        self.broker = MemoryBroker.founded(self.spec, patience_ms=10**9)
        self.ledger = MemoryLedger(self.broker)
        self.fold = Fold(cached=False)
        self.lives, self.now_s = 0, 1.0
        self.sessions = [self.born(i) for i in range(rng.randrange(2, 4))]
        self.chunks: list[tuple[Session, Chunk]] = []
        self.step, self.lineage = 0, lineage.ROOT
        self.made: list[Composition] = []
        self.trained: Counter[int] = Counter()
        self.began = dict.fromkeys(map(id, self.sessions), 0)

    def born(self, number: int) -> Session:
        self.lives += 1
        where, options = Where("h", 1, launch="one"), SessionOptions(prefetch_steps=self.rng.choice((1, 4)))
        return Session(f"w{number}", f"w{number}.{self.lives}", self.spec, where, options)

    def kind(self, position: int) -> str:
        partition, offset = self.space.at(position)
        return self.topic[partition][offset]

    # -- one moment

    def tick(self) -> None:
        self.now_s += TICK_S
        self.broker.now_ms = int(self.now_s * 1000)
        rng = self.rng
        for session in self.sessions:
            for request in session.tick(self.now_s):
                if rng.random() > 0.1:
                    self.broker.send(request)
        if rng.random() > 0.1:
            self.hear()
        for session in self.sessions:
            self.move(session)
        if rng.random() < 0.7:
            self.read(rng.choice(self.sessions))
        together = {session.generation for session in self.sessions}
        if len(together) == 1 and all(self.began.get(id(s)) == s.generation > 0 for s in self.sessions):
            self.train()

    def hear(self) -> None:
        for reply in self.ledger.run():
            for session in self.sessions:
                if self.rng.random() > 0.05:
                    session.on_reply(reply)
        for offset in range(self.fold.position.next_offset, len(self.broker.log)):
            self.fold.read(offset, self.broker.log[offset])
        if self.fold.state is not None:
            self.space = self.fold.state.shards.space
            self.fold.state.check()

    def move(self, session: Session) -> None:
        """As a life does: into a generation that was granted, out of one that is over."""
        if session.phase is Phase.CLOSED:
            session.regroup(self.step if self.began.get(id(session)) else None, self.lineage)
        elif session.phase is Phase.MEMBER and self.began.get(id(session)) != session.generation:
            self.began[id(session)] = session.generation
            session.begin([made for made in self.made if made.step > session.committed], self.lineage)
        assert session.phase not in (Phase.FAILED, Phase.LOST), session.reason

    def read(self, session: Session) -> None:
        """A reader asks for a chunk, and says later what was there: perhaps when nobody wants it any more."""
        rng, leases = self.rng, cast(ReadLeases, session.leases)
        if not self.chunks and session.phase is Phase.MEMBER:
            chunk = leases.to_read(rng.choice((1, 5, 64)))
            if chunk is not None:
                assert self.space.at(chunk.start) == (chunk.partition, chunk.offset)
                self.chunks.append((session, chunk))
        elif self.chunks:
            session, chunk = self.chunks.pop()
            cast(ReadLeases, session.leases).was_read(chunk, self.found(chunk))
        if self.spec.growing and session.rank == 0:
            leases.ends = {p: min(len(all_), int(self.now_s * 3)) for p, all_ in self.topic.items()}

    def found(self, chunk: Chunk) -> Found:
        end = chunk.start + self.rng.randrange(1, chunk.length + 1)
        kinds = {at: self.kind(at) for at in range(chunk.start, end)}
        vacant = [(at, 1) for at, kind in kinds.items() if kind == HOLE]
        return Found(end, vacant, [Faulty(at, f"t@{at}", "no") for at, kind in kinds.items() if kind == BAD])

    def train(self) -> None:
        """A step of all; the first one reports the one before."""
        taken: list[int] = []
        for session in self.sessions:
            most = self.rng.randrange(1, 9)
            ranges = session.leases.take(most, 8)
            places = [at for r in ranges for at in range(r[3], r[3] + r[4])]
            kinds = Counter(map(self.kind, places))
            assert not kinds[BAD] and kinds[RECORD] <= most and kinds[HOLE] == session.leases.empty
            self.trained.update(at for at in places if self.kind(at) == RECORD)
            taken += [number for r in ranges for number in r]
        if not taken:
            for session in self.sessions:
                session.proven(self.step)
            return
        self.step += 1
        quads = [v for i in range(0, len(taken), 5) for v in (taken[i], *taken[i + 2 : i + 5])]
        self.lineage = lineage.next_lineage(self.lineage, self.step, quads)
        self.made.append(Composition(self.step, tuple(taken), self.lineage, 0))
        for session in self.sessions:
            session.applied(self.made[-1])
            session.proven(self.step)

    def kill(self) -> None:
        """One dies, and is started again. What it had taken is in the model of the others."""
        number = self.rng.randrange(len(self.sessions))
        if all(self.began.get(id(s)) == s.generation > 0 and s.phase is Phase.MEMBER for s in self.sessions):
            self.sessions[number] = self.born(number)


@pytest.mark.parametrize("growing", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_each_record_is_in_the_model_once_and_the_audit_knows_what_is_none(
    seed: int, growing: bool, tmp_path: Path
) -> None:
    world = World(seed, growing=growing)
    for tick in range(TICKS_MAX):
        world.tick()
        if tick % 150 == 100 and tick < 1000:
            world.kill()
        full = world.space.length == sum(map(len, world.topic.values()))
        if growing and full and tick % 20 == 0:
            world.broker.send(records.Request("operator", "operator.1", 1, records.End("me", "enough"), b""))
        if world.fold.state is not None and world.fold.state.finished:
            break
    places = range(world.space.length)
    bad = {at for at in places if world.kind(at) == BAD}
    report = audit(enumerate(world.broker.log))
    assert not report["missing"] and not report["repeated"] and not report["broken"], (seed, report["verdict"])
    assert {at for _, start, end in report["quarantined"] for at in range(start, end)} == bad
    assert report["vacant"] == sum(world.kind(at) == HOLE for at in places)
    assert report["records"] == sum(world.kind(at) == RECORD for at in places)
    export(tmp_path / "log.avro", world.broker.log)
    second = verify_standalone.verify(str(tmp_path / "log.avro"))
    for name in ("committed", "vacant", "missing", "repeated", "quarantined", "exactly_once"):
        assert second[name] == report[name], name
    assert world.trained == Counter(at for at in places if world.kind(at) == RECORD)
