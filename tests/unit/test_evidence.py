"""What counts as evidence against samples, and what becomes of them. The ledger alone, without workers or a broker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from antdt_schemas import lineage, records
from antdt_schemas.records import Status
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.state import State
from antdt_streams.proof.audit import audit

from tests.helpers.ledger import SPEC, Bench
from tests.helpers.memory_ledger import MemoryLedger

TWICE = replace(SPEC, max_attempts=2)


class Lives(Bench):
    """Two workers, one of which fails at the same samples again and again."""

    def __init__(self, spec: records.JobSpec = TWICE) -> None:
        super().__init__(spec)
        self.life = 0
        self.join("w0.0", "w1.0")
        mine = self.lease("w0.0", 10)
        self.commit("w0.0", (*mine[:4], 4))  # a step has succeeded: it is not the script

    @property
    def who(self) -> str:
        return f"w1.{self.life}"

    def held(self) -> tuple[int, ...]:
        """Leases of w1."""
        return self.lease(self.who, 20)

    def failed(self, start: int, length: int = 1, key: str = "") -> None:
        """w1 says so itself, and ends."""
        body = records.Failed(self.state.members.generation, 0, start, length, key, "ValueError: bad")
        assert self.say(self.who, body).status is Status.OK

    def exited(self, code: int, at: Sequence[int] = (), who: str = "") -> None:
        self.ledger.run([self.request(who or self.who, records.Exited(code, "", tuple(at)))])

    def again(self) -> None:
        """w1 is gone; it comes back, the next generation begins and settles."""
        self.life += 1
        self.ledger.run(
            [self.request("w0.0", records.Regroup(self.state.members.generation, self.step, self.lineage, "h", 1))]
        )
        self.join(self.who)
        if not self.state.members.open:
            self.regroup()
        settle = records.Commit(self.state.members.generation, self.step + 1, (), (), self.lineage, -1)
        assert self.say("w0.0", settle).status is Status.OK
        self.state.check()
        kept = dict(rows.all_rows(self.state))
        assert dict(rows.all_rows(rows.load(State(self.spec), kept))) == kept

    def regroup(self) -> None:
        body = records.Regroup(self.state.members.generation, self.step, self.lineage, "h", 1)
        self.ledger.run([self.request("w0.0", body), self.request(self.who, body)])

    def attempts(self) -> dict[int, int]:
        found: dict[int, int] = self.state.shards.epoch(0).attempts
        return found


def test_a_sample_that_raises_is_tried_as_often_as_it_may_and_then_it_alone_is_missing() -> None:
    bench = Lives()
    for attempt in (1, 2):
        bench.held()
        bench.failed(13, key="cat.png")
        bench.exited(75)
        bench.again()
        assert bench.attempts() == {1: attempt}
    assert list(bench.state.shards.epoch(0).quarantined) == [(13, 14)]
    reply = bench.say("w0.0", records.Heartbeat(bench.state.members.generation, bench.step))
    assert reply.quarantined == 1
    blamed = [e for e in bench.events() if isinstance(e, records.Blamed)]
    assert [(e.start, e.length, e.key) for e in blamed] == [(13, 1, "cat.png")] * 2
    assert bench.state.shards.faults == {(0, 13): (1, "cat.png", "ValueError: bad")}
    bench.say("operator", records.Readmit())
    assert (bench.state.shards.quarantined_total, bench.attempts(), bench.state.shards.faults) == (0, {}, {})


def test_evidence_is_told_once_and_only_by_who_holds_the_samples() -> None:
    bench = Lives()
    bench.held()
    bench.failed(13)
    bench.failed(13)  # the same request, read again
    bench.failed(3)  # w0's
    bench.failed(50)  # nobody's
    assert len([e for e in bench.events() if isinstance(e, records.Blamed)]) == 1
    bench.exited(75)
    assert bench.say("w1.0", records.Failed(1, 0, 14, 1, "", "")).status is Status.LOST


def test_what_is_in_the_model_is_above_suspicion() -> None:
    """The survivors have the step that its author did not live to see."""
    bench = Lives()
    lost = bench.held()
    bench.failed(lost[3] + 1)
    bench.exited(75)
    bench.ledger.run([bench.request("w0.0", records.Regroup(1, 2, b"", "h", 1))])
    assert bench.commit("w0.0", (*lost[:4], 4)).status is Status.OK
    assert (bench.attempts(), bench.state.shards.blamed) == ({}, {})


def test_of_a_batch_that_is_in_the_model_by_half_the_rest_is_suspected() -> None:
    bench = Lives()
    flat = bench.held()
    bench.failed(flat[3], 6)
    bench.exited(75)
    bench.ledger.run([bench.request("w0.0", records.Regroup(1, 2, b"", "h", 1))])
    assert bench.commit("w0.0", (*flat[:4], 4)).status is Status.OK
    counted = [(e.start, e.length) for e in bench.events() if isinstance(e, records.Returned) and e.counted]
    assert counted == [(flat[3] + 4, 2)]


def test_who_dies_alone_speaks_against_the_samples_it_had() -> None:
    bench = Lives()
    bench.held()
    bench.exited(-11, (0, 12, 3))
    bench.again()
    assert bench.attempts() == {1: 1}


@pytest.mark.parametrize("code", [0, 2, 3, 42, 75, 76, 143, -1, -2, -15])
def test_an_end_that_somebody_asked_for_or_that_says_something_else_is_no_evidence(code: int) -> None:
    bench = Lives()
    bench.held()
    bench.exited(code, (0, 12, 3))
    bench.again()
    assert bench.attempts() == {}


def test_a_death_without_samples_at_hand_is_no_evidence() -> None:
    bench = Lives()
    bench.held()
    bench.exited(-9)
    bench.again()
    assert bench.attempts() == {}


@pytest.mark.parametrize("first", ["w0.0", "w1.0"])
@pytest.mark.parametrize("how", ["reported", "silent", "left"])
def test_who_dies_together_with_others_speaks_against_nothing(first: str, how: str) -> None:
    """Whichever of them is heard of first, and however the other one goes."""
    bench = Lives()
    bench.held()
    at = {"w0.0": (0, 4, 4), "w1.0": (0, 12, 3)}
    other = "w1.0" if first == "w0.0" else "w0.0"
    bench.exited(-9, at[first], who=first)
    assert len(bench.state.shards.blamed) == 1, "so far it is alone"
    if how == "reported":
        bench.exited(-9, at[other], who=other)
    elif how == "left":
        bench.say(other, records.Leave(1))
    else:
        for _ in range(9):
            bench.broker.now_ms += 900
            bench.ledger.run([bench.request("w9.0", records.Heartbeat(1, 0))])
        assert bench.state.members.incarnations[other].status == "lost"
    assert not bench.state.shards.blamed
    bench.join("w0.1", "w1.1")
    bench.say("w0.1", records.Commit(bench.state.members.generation, bench.state.line.committed + 1, (), (), b"", -1))
    bench.state.check()
    assert bench.attempts() == {}


def test_silence_and_being_displaced_are_no_evidence() -> None:
    bench = Lives(replace(SPEC, max_attempts=1))
    for _ in range(3):
        bench.held()
        bench.again()  # a newer one takes its place
    assert bench.attempts() == {}
    assert bench.state.shards.quarantined_total == 0


def test_an_exception_counts_also_where_everybody_dies() -> None:
    bench = Lives()
    bench.held()
    bench.failed(13)
    bench.exited(75)
    bench.exited(-9, who="w0.0")
    bench.join("w0.1", "w1.1")
    bench.say("w0.1", records.Commit(bench.state.members.generation, 1, (), (), b"", -1))
    assert bench.attempts() == {}, "no step is left that has succeeded, but this one is of one sample"


def test_a_step_that_nobody_ever_completed_speaks_against_the_script() -> None:
    bench = Bench(replace(SPEC, max_attempts=1, shard_size=5))
    bench.join("w0.0", "w1.0")
    start = bench.lease("w1.0", 10)[3]
    bench.say("w1.0", records.Failed(1, 0, start, 8, "", "NameError: net"))
    bench.say("w1.0", records.Leave(1))
    bench.say("w0.0", records.Regroup(1, 0, lineage.ROOT, "h", 1))
    bench.say("w0.0", records.Commit(2, 1, (), (), b"", -1))
    assert list(bench.state.shards.epoch(0).returned) == [(start, start + 10)]
    assert bench.state.shards.quarantined_total == 0


def test_halves_of_a_batch_that_failed_go_to_different_workers() -> None:
    """So that the next failure tells in which half the one sample lies; in the end its shard alone is missing."""
    bench = Lives(replace(SPEC, samples=400, batch_size=40, shard_size=2, max_attempts=4))
    poison = 55
    while not bench.state.shards.quarantined_total:
        assert bench.life < 6
        flat = bench.lease(bench.who, 40)
        ranges = [tuple(flat[i : i + 5]) for i in range(0, len(flat), 5)]
        hit = next((r for r in ranges if r[3] <= poison < r[3] + r[4]), None)
        if hit is None:  # the other half: it goes well
            bench.commit("w0.0", *ranges)
            continue
        bench.failed(hit[3], hit[4])
        bench.exited(75)
        bench.again()
    ((start, end),) = bench.state.shards.epoch(0).quarantined
    assert start <= poison < end
    assert end - start <= 12, "of 40"


@pytest.mark.parametrize("poison", [2, 13, 27])
def test_a_period_of_several_batches_that_always_fails_at_one_of_them_comes_down_to_it(poison: int) -> None:
    """Before anything was ever committed, and by one worker alone: what it takes at once is all that it is given."""
    spec = replace(SPEC, shard_size=2, workers_min=1, max_attempts=2, strategy="local-sgd/every=4")
    bench = Lives.__new__(Lives)
    Bench.__init__(bench, spec)
    bench.life = 0
    bench.join(bench.who)
    while not bench.state.shards.quarantined_total:
        assert bench.life < 12, "it never comes down to anything"
        flat = bench.lease(bench.who, 32)
        taken = [tuple(flat[i : i + 5]) for i in range(0, len(flat), 5)]
        positions = [p for _, _, _, start, length in taken for p in range(start, start + length)]
        batches = [positions[i : i + spec.batch_size] for i in range(0, len(positions), spec.batch_size)]
        hit = next((batch for batch in batches if poison in batch), None)
        if hit is None:
            assert taken, "there is nothing to take"
            bench.commit(bench.who, *taken)
            continue
        bench.failed(hit[0], hit[-1] + 1 - hit[0])
        bench.exited(75)
        bench.life += 1
        bench.join(bench.who)
        bench.step, bench.lineage = 0, lineage.ROOT  # what it had committed is in no file
        bench.say(bench.who, records.Commit(bench.state.members.generation, 1, (), (), bench.lineage, -1))
        bench.state.check()
    ((start, end),) = bench.state.shards.epoch(0).quarantined
    assert start <= poison < end
    assert end - start <= spec.batch_size


def done_with_one_in_quarantine() -> Lives:
    bench = Lives(replace(SPEC, samples=20, max_attempts=1))
    bench.held()
    bench.failed(13, key="cat.png")
    bench.exited(75)
    bench.again()
    while not bench.state.finished:
        flat = bench.lease("w0.0", 100) or bench.lease(bench.who, 100)
        bench.commit("w0.0", *(tuple(flat[i : i + 5]) for i in range(0, len(flat), 5)))
    bench.say("w0.0", records.Checkpoint(bench.state.members.generation, bench.step, bench.lineage, "final.pt"))
    assert bench.state.done == "final.pt"
    return bench


def test_the_end_says_what_is_missing_and_why() -> None:
    bench = done_with_one_in_quarantine()
    reply = bench.say("w0.0", records.Lease(bench.state.members.generation, 1))
    assert (reply.status, reply.quarantined) == (Status.END, 1)
    assert reply.reason == "1 sample is in quarantine: position 13 of epoch 0 (cat.png): ValueError: bad"


def test_a_job_that_is_done_takes_back_what_is_in_quarantine_and_ends_again() -> None:
    bench = done_with_one_in_quarantine()
    refused = bench.say("operator", records.Rollback(0, "somebody", "why not"))
    assert refused.status is Status.REFUSED
    assert audit(list(enumerate(bench.broker.log)))["file"] == "final.pt"
    bench.say("w0.0", records.Leave(bench.state.members.generation))
    bench.say(bench.who, records.Leave(bench.state.members.generation))
    bench.ledger = MemoryLedger(bench.broker)
    assert bench.say("operator", records.Readmit()).status is Status.OK
    assert bench.state.done is None
    assert audit(list(enumerate(bench.broker.log)))["file"] is None
    bench.join("w0.9")
    grant = bench.state.members.grant
    assert grant is not None and grant.restore_file == "final.pt"
    ranges = bench.lease("w0.9", 100)
    assert ranges[2:] == (0, 13, 1)
    bench.commit("w0.9", ranges)
    bench.say("w0.9", records.Checkpoint(bench.state.members.generation, bench.step, bench.lineage, "again.pt"))
    assert bench.state.done == "again.pt"
    report = audit(list(enumerate(bench.broker.log)))
    assert (report["exactly_once"], report["file"]) == (True, "again.pt")


def test_who_was_given_up_is_told_so_also_when_all_is_done_without_it() -> None:
    bench = done_with_one_in_quarantine()
    assert bench.say("w1.0", records.Heartbeat(1, 0)).status is Status.LOST
    assert bench.say("w0.0", records.Heartbeat(1, 0)).status is Status.END


def test_nothing_in_quarantine_leaves_a_job_that_is_done_as_it_is() -> None:
    bench = done_with_one_in_quarantine()
    bench.say("operator", records.Readmit())
    ranges = bench.lease("w0.0", 100)
    bench.commit("w0.0", ranges)
    bench.say("w0.0", records.Checkpoint(bench.state.members.generation, bench.step, bench.lineage, "again.pt"))
    assert bench.say("operator", records.Readmit()).status is Status.OK
    assert bench.state.done == "again.pt"
