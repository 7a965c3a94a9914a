"""What changes while a job runs: its global batch, at a step; and its end. A ledger without workers or a broker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_streams.proof.audit import audit
from antdt_streams.views.job import standing_of

from tests.helpers.ledger import SPEC
from tests.helpers.logs import export
from tests.unit.test_ledger_steps import STEPS, Steps
from tools import verify_standalone

OPERATOR = "operator"


def resize(bench: Steps, batch_size: int, author: str = "ann", plan: int = 0) -> records.Reply:
    """An operator's wish; or a plan's, which the first member passes on."""
    who = "w0.0" if plan else OPERATOR
    return bench.say(who, records.Resize(batch_size, author, "there is room", plan))


def back_to_the_begin(bench: Steps) -> None:
    """An operator rolls back, and both members go on from there."""
    bench.say(OPERATOR, records.Rollback(0, "ann", "again"))
    bench.step, bench.lineage = 0, bytes(16)
    bench.regroup(0)


def places(bench: Steps) -> list[tuple[int, ...]]:
    return [e.ranges for e in bench.events() if isinstance(e, records.Committed)]


def launched(bench: Steps, who: str, batch_size: int, launch: str = "again", place: str = "") -> records.Reply:
    """A worker of another launch, whose script states this batch size."""
    return bench.say(who, replace(bench.a_join(launch, place), spec=replace(bench.spec, batch_size=batch_size)))


def opinions(bench: Steps, tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The audit's, and that of the checker which shares no code with it."""
    path = tmp_path / "log.avro"
    export(path, bench.broker.log)
    return audit(enumerate(bench.broker.log)), verify_standalone.verify(str(path))


@pytest.mark.parametrize("plan", [0, 3])
def test_another_batch_size_counts_from_the_next_generation_on(plan: int, tmp_path: Path) -> None:
    bench = Steps()
    bench.due()
    assert resize(bench, 4, "plan 3" if plan else "ann", plan).status is Status.OK
    assert not bench.state.members.open
    bench.regroup(1)
    assert (bench.grant.batch_size, bench.grant.batch_size_first) == (4, 8)
    bench.finish()
    # 14 are left of the first epoch: 4 steps of 4 at most; the second has 6 steps of 22 samples.
    assert [r[1:] for r in places(bench)][:6] == [(0, 0, 8), (0, 8, 4), (0, 12, 4), (0, 16, 3), (0, 19, 3), (1, 0, 4)]
    (change,) = bench.shards.changes
    assert (change.step, change.batch_size) == (2, 4)
    for report in opinions(bench, tmp_path):
        assert (report["exactly_once"], report["committed"], report["steps"]) == (True, 44, 11)
    assert bench.audited()["batch_sizes"] == [
        {"step": 2, "batch_size": 4, "author": change.author, "reason": "there is room"}
    ]


def test_what_was_executed_before_has_the_size_of_then() -> None:
    bench = Steps()
    bench.due()
    before = bench.generation
    resize(bench, 4)
    ask = records.Regroup(before, 2, b"", "h", 1)  # its model has a second step, which is not committed
    bench.ledger.run([bench.request(who, ask) for who in ("w0.0", "w1.0")])
    assert bench.shards.changes[0].step == 3
    assert "is not the next one" in bench.made(0, 8, 4, generation=before).reason
    assert bench.made(0, 8, 7, generation=before).status is Status.OK
    assert "is not the next one" in bench.made(0, 15, 7).reason
    assert bench.made(0, 15, 4).status is Status.OK


def test_a_roll_back_does_not_undo_it() -> None:
    bench = Steps()
    bench.due()
    resize(bench, 4)
    bench.regroup(1)
    bench.due()
    back_to_the_begin(bench)
    bench.finish()
    assert {r[3] for r in places(bench)[2:]} <= {3, 4}
    assert bench.audited()["exactly_once"]


def test_the_same_wish_changes_nothing_twice_and_an_older_plan_nothing_at_all() -> None:
    bench = Steps()
    resize(bench, 4, "plan 5", plan=5)
    bench.regroup(0)
    for author, plan in (("plan 5", 5), ("plan 4", 4)):
        assert resize(bench, 6, author, plan).status is Status.OK
    assert len(bench.shards.changes) == 1 and bench.state.members.open
    assert resize(bench, 4, "bob").status is Status.OK, "it is so already"
    assert len(bench.shards.changes) == 1


@pytest.mark.parametrize(
    ("spec", "batch_size", "why"),
    [
        (STEPS, 0, "at least one sample"),
        (STEPS, 1, "too small for 2 workers"),
        (replace(STEPS, local_batch_min=3), 5, "at least 3 samples each"),
        (replace(STEPS, batches="drop"), 23, "leaves nothing"),
        (
            replace(STEPS, strategy="allreduce/unit=4"),
            6,
            "units of 4 samples do not fit into a global batch of 6: take 4",
        ),
    ],
)
def test_what_cannot_be_is_refused(spec: records.JobSpec, batch_size: int, why: str) -> None:
    bench = Steps(spec)
    assert why in resize(bench, batch_size).reason
    reply = resize(bench, batch_size, "plan 1", plan=1)
    assert (reply.status, why in reply.reason) == (Status.OK, True), "who passes on a plan has done nothing wrong"
    assert bench.state.members.open and not bench.shards.changes
    assert [e.kind for e in bench.refused()] == ["Resize", "Resize"]


def test_a_launch_with_another_batch_size_goes_on_with_it() -> None:
    bench = Steps()
    bench.due()
    bench.say("w0.0", records.Checkpoint(bench.generation, 1, bench.lineage, "one.pt"))
    for who in ("w0.0", "w1.0"):
        bench.ledger.run([bench.request(who, records.Exited(-9, "killed"))])
    launched(bench, "w0.1", 12)
    assert (bench.shards.stated, bench.grant.batch_size, bench.grant.restore_file) == (12, 12, "one.pt")
    assert bench.shards.changes[0].step == 2
    assert "states" not in launched(bench, "w1.1", 12).reason
    resize(bench, 6)
    assert launched(bench, "w2.0", 12).status is not Status.REFUSED, (
        "what is stated, not what an operator has made of it"
    )
    refused = launched(bench, "w3.0", 8)
    assert refused.status in (Status.WAIT, Status.REFUSED)
    assert standing_of(bench.ledger.office.fold)["batch_sizes"][0]["step"] == 2


def test_while_somebody_works_a_single_worker_waits_and_is_refused() -> None:
    bench = Steps()
    assert launched(bench, "w5.0", 12).status is Status.WAIT, "are the others still there?"
    bench.say("w0.0", records.Heartbeat(bench.generation, 0))
    refused = launched(bench, "w5.0", 12)
    assert (
        refused.status is Status.REFUSED and "launch them with one batch_size, or change it for all" in refused.reason
    )
    assert not bench.shards.changes


def test_a_launch_that_was_ended_with_its_place_holds_up_nobody() -> None:
    bench = Steps.__new__(Steps)
    super(Steps, bench).__init__(STEPS)
    bench.life = 0
    for who in ("w0.0", "w1.0"):
        bench.say(who, bench.a_join("first", "here"))
    launched(bench, "w0.1", 12, "second", "here")
    assert bench.shards.layouts.newest.batch_size == 12
    assert bench.state.members.incarnations["w1.0"].gone


# -- where it ends


def test_so_many_steps_are_made_and_then_it_is_the_end(tmp_path: Path) -> None:
    bench = Steps(replace(STEPS, epochs=4, steps=4))
    bench.finish()
    assert [r[1:] for r in places(bench)] == [(0, 0, 8), (0, 8, 7), (0, 15, 7), (1, 0, 8)]
    assert bench.state.done == "step-4.pt"
    mine, theirs = opinions(bench, tmp_path)
    assert mine["exactly_once"] and theirs["exactly_once"]
    assert mine["not_trained"] == theirs["not_trained"] == [[1, 8, 22]]
    said = "So many steps were asked for. The rest of the last epoch, 14 samples, is not meant to be trained."
    assert mine["verdict"] == f"EXACTLY ONCE, what was trained: 30 samples in 4 steps. {said}"
    assert bench.state.samples_total == 30


def test_before_its_last_step_the_rest_is_missing(tmp_path: Path) -> None:
    bench = Steps(replace(STEPS, epochs=4, steps=4))
    bench.due()
    for report in opinions(bench, tmp_path):
        assert (report["exactly_once"], report["missing"]) == (False, [[0, 8, 22], [1, 0, 8]])


def test_a_sample_that_is_readmitted_comes_behind_the_steps_that_were_asked_for() -> None:
    bench = Steps(replace(STEPS, epochs=4, steps=4))
    for _ in range(6):
        bench.dies(0, 3, 1)
    for _ in range(4):
        bench.due()
    assert bench.shards.quarantined_total == 1
    bench.say(OPERATOR, records.Readmit())
    bench.regroup(4)
    assert bench.shards.place() == (4, 0, 1)
    bench.finish()
    assert bench.audited()["exactly_once"]


def test_a_stop_ends_the_job_behind_its_step(tmp_path: Path) -> None:
    bench = Steps()
    bench.due()
    assert bench.say("w1.0", records.Stop(bench.generation, 2, "it is good enough")).status is Status.OK
    assert bench.say("w0.0", records.Stop(bench.generation, 2, "")).status is Status.OK
    assert "is finished early, behind step 2: it is good enough" in bench.say("w0.0", records.Heartbeat(1, 1)).stopped
    assert bench.state.done is None
    bench.due()
    assert "is behind the end" in bench.made(0, 15, 7).reason
    bench.say("w0.0", records.Checkpoint(bench.generation, 2, bench.lineage, "two.pt"))
    assert bench.state.done == "two.pt"
    late = bench.say("w7.0", bench.a_join())
    assert (late.status, late.file) == (Status.END, "two.pt") and "it is good enough" in late.stopped
    assert "not trained any more" in bench.say(OPERATOR, records.Readmit()).reason
    mine, theirs = opinions(bench, tmp_path)
    assert mine["exactly_once"] and theirs["exactly_once"]
    assert mine["not_trained"] == theirs["not_trained"] == [[0, 15, 22], [1, 0, 22]]
    assert mine["verdict"] == (
        "EXACTLY ONCE, what was trained: 15 samples in 2 steps. The job was finished early, behind step 2, by w1: "
        "it is good enough. 29 samples were not trained."
    )
    assert theirs["stopped"] == {"step": 2, "reason": "it is good enough"}


@pytest.mark.parametrize("trained", [0, 1])
def test_what_was_readmitted_and_lies_behind_a_stop_is_not_trained(trained: int, tmp_path: Path) -> None:
    """Found by simulation: the audit said of a job that was finished early that it is not exactly once."""
    bench = Steps(replace(STEPS, max_attempts=1, batch_size=1, samples=6, epochs=1))
    bench.dies(0, 0, 1)
    bench.due()
    bench.dies(0, 1, 1)
    bench.finish()
    bench.say(OPERATOR, records.Readmit())
    bench.regroup(bench.step)
    for _ in range(trained):
        bench.due()
    bench.say("w0.0", records.Stop(bench.generation, bench.step, "enough"))
    bench.say("w0.0", records.Checkpoint(bench.generation, bench.step, bench.lineage, f"step-{bench.step}.pt"))
    assert bench.state.done == f"step-{bench.step}.pt"
    for report in opinions(bench, tmp_path):
        assert report["exactly_once"] and not report["missing"], report
        assert (report["committed"], report["not_trained"]) == (4 + trained, [[0, trained, 2]])
    assert f"{2 - trained} samples were not trained" in str(bench.audited()["verdict"])


def test_a_job_that_has_no_such_step_any_more_ends_behind_its_epochs(tmp_path: Path) -> None:
    """Found by simulation: rolled back, and made again in larger steps, it waited for ever for the step it stops at."""
    bench = Steps(replace(STEPS, epochs=1, samples=16, batch_size=4))
    for _ in range(4):
        bench.due()
    bench.say("w0.0", records.Stop(bench.generation, 4, "enough"))
    back_to_the_begin(bench)
    resize(bench, 8)
    bench.regroup(0)
    bench.finish()
    assert (bench.state.done, bench.step) == ("step-2.pt", 2)
    assert bench.say("w7.0", bench.a_join()).stopped == ""
    for report in opinions(bench, tmp_path):
        assert (report["exactly_once"], report["committed"], report["not_trained"]) == (True, 16, [])
        assert "early" not in report["verdict"]


def test_a_plan_that_comes_when_all_is_done_harms_nobody() -> None:
    """Found by simulation: the member that passes it on was refused, and ended with an error."""
    bench = Steps()
    bench.finish()
    assert resize(bench, 4, "plan 3", plan=3).status is Status.END
    assert "no step is left to be resized" in resize(bench, 4).reason


def test_no_step_is_behind_a_stop() -> None:
    bench = Steps()
    bench.say("w0.0", records.Stop(bench.generation, 1, "enough"))
    bench.due()
    assert bench.made(0, 8, 7).status is Status.REFUSED


def test_a_stop_of_another_generation_or_behind_what_is_committed_is_none() -> None:
    bench = Steps()
    bench.due()
    bench.due()
    assert bench.say("w0.0", records.Stop(bench.generation, 1, "late")).status is Status.OK
    assert bench.say("w0.0", records.Stop(bench.generation + 1, 2, "early")).reason
    assert bench.state.stop is None


def test_what_was_stopped_and_lost_is_made_again_up_to_there() -> None:
    bench = Steps()
    for _ in range(3):
        bench.due()
    bench.say("w0.0", records.Stop(bench.generation, 3, "enough"))
    for who in ("w0.0", "w1.0"):
        bench.ledger.run([bench.request(who, records.Exited(-9, "killed"))])
    bench.say("w0.1", bench.a_join("again"))
    assert (bench.grant.stop_step, bench.grant.committed, bench.state.finished) == (3, 0, False)


def test_what_is_dropped_beside_a_sample_in_quarantine_is_no_miss(tmp_path: Path) -> None:
    """Found by simulation: the checker took what lies between two of them for a sample that is missing."""
    bench = Steps(replace(STEPS, samples=16, epochs=1, batch_size=6, max_attempts=1, batches="drop"))
    bench.due()
    bench.due()
    back_to_the_begin(bench)
    bench.dies(0, 13, 1)
    resize(bench, 12)
    bench.regroup(0)
    bench.finish()
    for report in opinions(bench, tmp_path):
        assert (report["missing"], report["quarantined"], report["committed"]) == ([], [[0, 13, 14]], 12)


def test_what_is_in_quarantine_in_an_epoch_that_is_not_reached_any_more_is_not_meant(tmp_path: Path) -> None:
    """Found by simulation: left out of a second epoch that smaller steps, made after a roll-back, do not reach."""
    bench = Steps(replace(STEPS, samples=8, epochs=6, batch_size=8, max_attempts=1, steps=2))
    bench.due()
    bench.dies(1, 3, 1)
    back_to_the_begin(bench)
    resize(bench, 4)
    bench.regroup(0)
    bench.finish()
    for report in opinions(bench, tmp_path):
        assert (report["exactly_once"], report["quarantined"], report["committed"]) == (True, [], 8)


def test_a_stop_ends_a_job_that_leases_its_samples_as_well(tmp_path: Path) -> None:
    bench = Steps.__new__(Steps)
    super(Steps, bench).__init__(SPEC)
    bench.join("w0.0", "w1.0")
    held, beyond = bench.lease("w0.0", 20), bench.lease("w1.0", 20)
    bench.commit("w0.0", (*held[:4], 4), (*beyond[:4], 4))
    bench.say("w1.0", records.Stop(1, 1, "enough"))
    assert bench.say("w1.0", records.Lease(1, 50)).leases[::5] == beyond[:1], "what it holds, and no more"
    bench.say("w0.0", records.Checkpoint(1, 1, bench.lineage, "one.pt"))
    assert bench.state.done == "one.pt"
    mine, theirs = opinions(bench, tmp_path)
    assert (mine["exactly_once"], theirs["exactly_once"], mine["not_trained_samples"]) == (True, True, 92)


@pytest.mark.parametrize("resized", [False, True])
def test_a_step_behind_the_last_epoch_is_as_long_as_the_tail_was_when_it_was_executed(
    resized: bool, tmp_path: Path
) -> None:
    """Found by simulation: executed, not yet committed, and more was readmitted meanwhile."""
    bench = Steps(replace(STEPS, max_attempts=1))
    for bad in ((0, 3, 1), (0, 12, 1)):
        bench.dies(*bad)
        bench.due()
    if resized:
        resize(bench, 4)
        bench.regroup(bench.step)
    while bench.shards.cursor.epoch < STEPS.epochs - 1:
        bench.due()
    bench.dies(1, 1, 1)
    bench.say("operator", records.Readmit())
    bench.regroup(bench.step)
    while bench.shards.cursor.epoch < STEPS.epochs:
        bench.due()
    before = bench.generation
    assert "still" not in bench.say("operator", records.Readmit()).reason
    bench.regroup(bench.step + 1)
    assert bench.made(2, 0, 3, generation=before).status is Status.REFUSED, "it knew of two"
    assert bench.made(2, 0, 2, generation=before).status is Status.OK
    bench.finish()
    assert bench.state.done is not None
    mine, theirs = opinions(bench, tmp_path)
    assert (mine["exactly_once"], mine["committed"]) == (True, 44)
    assert theirs["exactly_once"]
