"""Samples that are left out of later epochs, lifted and appended, in any order of deaths, readmissions, roll-backs and
sizes: what members take by their grants, and report late, is in the model exactly once, or in quarantine.
"""

from __future__ import annotations

import random
from collections import Counter
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
from antdt_schemas import batches, records
from antdt_schemas.batches import DROP, EVEN, SMALL, Piece
from antdt_schemas.order import FEISTEL, SEQUENTIAL

from tests.helpers.logs import export
from tests.unit.test_ledger_steps import STEPS, Steps
from tools import verify_standalone

ROUNDS = 25


class Members(Steps):
    """Two workers that run ahead of what is committed. `trained`: what is in their model, step by step."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        spec = replace(STEPS, order=rng.choice((FEISTEL, SEQUENTIAL)), epochs=rng.randint(2, 5), seed=seed)
        spec = replace(spec, batches=rng.choice((EVEN, SMALL, DROP)), samples=rng.randint(8, 30))
        super().__init__(replace(spec, max_attempts=1, steps=rng.choice((0, 0, rng.randint(3, 8)))))
        self.trained: list[Counter[tuple[int, int]]] = []
        self.ahead: list[tuple[int, int, int]] = []

    def live(self, place: tuple[int, int, int]) -> list[tuple[int, int]]:
        """What members take in the step at this place, by the newest grant."""
        grant, found = self.grant, list[Piece]()
        for part in batches.without((Piece(*place),), batches.pieces_of(grant.excluded)):
            in_tail = part.epoch == self.spec.epochs
            tail = batches.pieces_of(grant.tail)
            found += batches.cut(tail, part.start, part.length) if in_tail else (part,)
        return [(piece.epoch, piece.start + number) for piece in found for number in range(piece.length)]

    def runs_ahead(self, steps: int) -> None:
        """Some steps that are not reported; behind the epochs one at most, which `round` reports at once."""
        trial = copy(self.shards)
        for number in range(steps):
            place = trial.place(self.generation)
            if place is None or (place[0] == self.spec.epochs and number):
                break
            self.ahead.append(place)
            self.trained.append(Counter(self.live(place)))
            trial.pass_over((self.generation, *place))

    def reports(self, executed: int) -> None:
        """All that is ahead."""
        for place in self.ahead:
            reply = self.made(*place, generation=executed)
            assert reply.status is records.Status.OK, reply
        self.ahead.clear()

    def meets(self) -> None:
        """The next generation goes on from what they have, which is reported there, or in the one behind."""
        executed = self.generation
        self.regroup(self.step + len(self.ahead))
        if self.rng.random() < 0.3:
            self.say("operator", records.Resize(self.rng.randint(2, 8), f"bob-{self.generation}", ""))
            if not self.state.members.open:
                self.regroup(self.step + len(self.ahead))
        self.reports(executed)

    def fails(self) -> None:
        """w1 dies of one sample of the step behind those that are ahead."""
        trial = copy(self.shards)
        for place in self.ahead:
            trial.pass_over((self.generation, *place))
        due = trial.place(self.generation)
        live = self.live(due) if due is not None else []
        where = (*self.rng.choice(live), 1) if live else ()
        body = records.Exited(-9, "killed", where, "", self.step + len(self.ahead) + 1)
        self.ledger.run([self.request(f"w1.{self.life}", body)])
        self.life += 1

    def goes_back(self) -> None:
        steps = [c.step for c in self.state.line.checkpoints]
        step = self.rng.choice(steps)
        lineage = next(c.lineage for c in self.state.line.checkpoints if c.step == step)
        self.say("operator", records.Rollback(step, f"ann-{self.generation}-{self.step}", "again"))
        self.step, self.lineage = step, lineage
        del self.trained[step:]
        self.ahead.clear()

    def strikes(self) -> None:
        """Something that ends the generation, or not."""
        what = self.rng.choice(("fails", "fails", "readmit", "readmit", "resize", "back", "nothing", "nothing"))
        if what == "fails":
            self.fails()
        elif what == "readmit":
            self.say("operator", records.Readmit())
        elif what == "resize":
            self.say("operator", records.Resize(self.rng.randint(2, 8), f"ann-{self.generation}", ""))
        elif what == "back":
            self.goes_back()

    def round(self) -> None:
        self.runs_ahead(self.rng.randint(0, 4))
        if any(epoch == self.spec.epochs for epoch, _, _ in self.ahead):
            self.reports(self.generation)
        self.strikes()
        if self.state.members.open:
            self.reports(self.generation)
            body = records.Checkpoint(self.generation, self.step, self.lineage, f"{self.generation}-{self.step}.pt")
            self.say("w0.0", body)
        else:
            self.meets()

    def ends(self) -> None:
        while self.state.done is None:
            self.runs_ahead(1)
            self.reports(self.generation)
            body = records.Checkpoint(self.generation, self.step, self.lineage, f"{self.generation}-{self.step}.pt")
            self.say("w0.0", body)


@pytest.mark.parametrize("seed", range(40))
def test_every_sample_is_in_the_model_once_or_in_quarantine(seed: int, tmp_path: Path) -> None:
    bench = Members(seed)
    for _ in range(ROUNDS):
        if bench.state.done is not None:
            break
        bench.round()
    bench.ends()
    export(tmp_path / "log.avro", bench.broker.log)
    mine, theirs = bench.audited(), verify_standalone.verify(str(tmp_path / "log.avro"))
    same = ("exactly_once", "committed", "missing", "repeated", "quarantined", "not_trained", "steps", "lineage")
    assert [mine[name] for name in same] == [theirs[name] for name in same], (mine, theirs)
    assert not (mine["missing"] or mine["repeated"] or mine["broken"]), mine["verdict"]
    seen = Counter[tuple[int, int]]()
    for step in bench.trained:
        seen.update(step)
    assert set(seen.values()) == {1}
    inside = {(e, at) for e, epoch in bench.shards.epochs.items() for a, b in epoch.committed for at in range(a, b)}
    assert set(seen) == inside
