"""A sample that is proven bad in one epoch is left out of later ones, until it is readmitted. A ledger alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas import records
from antdt_schemas.batches import DROP, Piece
from antdt_schemas.order import FEISTEL, SAMPLED, SEQUENTIAL, Order
from antdt_schemas.records import Status
from antdt_streams.ledger.core import evidence, later
from antdt_streams.views.lineage import Lineage
from antdt_streams.views.projection import Feed

from tests.unit.test_ledger_changes import opinions, resize
from tests.unit.test_ledger_steps import STEPS, Steps
from tools.verify_standalone import Broken, Log

EPOCHS = 4
BAD = Piece(0, 3, 1)
KNOWN = replace(STEPS, order=FEISTEL, epochs=EPOCHS, seed=7, max_attempts=1)
ORDER = Order(FEISTEL, KNOWN.seed, KNOWN.samples)
OTHERS = tuple(Piece(e, ORDER.position(e, ORDER.sample(0, 3)), 1) for e in range(1, EPOCHS))


def excluded(bench: Steps) -> list[records.Excluded]:
    return [e for e in bench.events() if isinstance(e, records.Excluded)]


def lifted(bench: Steps) -> list[records.Lifted]:
    return [e for e in bench.events() if isinstance(e, records.Lifted)]


def in_quarantine(bench: Steps) -> list[Piece]:
    found = bench.shards.epochs.items()
    return [Piece(e, a, b - a) for e, epoch in sorted(found) for a, b in epoch.quarantined]


def to_epoch(bench: Steps, epoch: int) -> None:
    """All steps before it."""
    while (place := bench.shards.place()) is not None and place[0] < epoch:
        bench.due()


def agree(bench: Steps, tmp_path: Path) -> dict[str, Any]:
    """The audit's opinion, which is the checker's as well."""
    mine, theirs = opinions(bench, tmp_path)
    same = ("exactly_once", "committed", "missing", "repeated", "quarantined", "not_trained", "steps", "lineage")
    assert [mine[name] for name in same] == [theirs[name] for name in same], (mine, theirs)
    return mine


def test_what_is_proven_in_one_epoch_is_left_out_of_all_later_ones(tmp_path: Path) -> None:
    bench = Steps(KNOWN)
    bench.dies(*BAD)
    first, *others = excluded(bench)
    assert [Piece(e.epoch, e.start, e.length) for e in (first, *others)] == [BAD, *OTHERS]
    assert {e.generation for e in others} == {first.generation}, "at once, before anybody is given them"
    assert [e.reason for e in others] == ["as position 3 of epoch 0: exit status -9 killed"] * 3
    assert bench.grant.excluded == tuple(number for piece in (BAD, *OTHERS) for number in piece)
    bench.finish()
    assert len(excluded(bench)) == EPOCHS and not lifted(bench)
    found = agree(bench, tmp_path)
    assert (found["committed"], found["steps"]) == (EPOCHS * 21, EPOCHS * 3)
    assert found["quarantined"] == [[p.epoch, p.start, p.start + 1] for p in (BAD, *OTHERS)]
    assert [fault["reason"] for fault in found["faults"]] == [e.reason for e in (first, *others)]
    made = [e.ranges[1:] for e in bench.events() if isinstance(e, records.Committed)]
    assert made == [(e, *step) for e in range(EPOCHS) for step in ((0, 8), (8, 7), (15, 7))], "places stay as they were"


def test_a_sample_that_is_only_suspected_is_left_out_nowhere() -> None:
    bench = Steps(replace(KNOWN, max_attempts=2))
    bench.dies(0, 2, 4)
    bench.dies(0, 3, 1)
    assert (bench.grant.suspects, excluded(bench)) == (BAD, [])


def test_positions_of_an_order_that_a_sampler_draws_say_nothing_of_other_epochs() -> None:
    bench = Steps(replace(KNOWN, order=f"{SAMPLED}/0"))
    bench.dies(*BAD)
    bench.finish()
    assert in_quarantine(bench) == [BAD]
    assert bench.say("operator", records.Readmit()).reason == ""


def test_in_the_order_of_the_data_it_has_the_same_position() -> None:
    bench = Steps(replace(KNOWN, order=SEQUENTIAL))
    bench.dies(*BAD)
    assert in_quarantine(bench) == [Piece(e, 3, 1) for e in range(EPOCHS)]


def test_earlier_epochs_stay_as_they_are_after_a_roll_back_and_later_ones_too(tmp_path: Path) -> None:
    bench = Steps(KNOWN)
    to_epoch(bench, 2)
    bench.dies(*OTHERS[1])
    assert in_quarantine(bench) == [*OTHERS[1:]]
    bench.say("operator", records.Rollback(0, "ann", "again"))
    bench.step, bench.lineage = 0, bytes(16)
    bench.regroup(0)
    assert in_quarantine(bench) == [*OTHERS[1:]]
    bench.finish()
    assert agree(bench, tmp_path)["committed"] == EPOCHS * 22 - 2


def test_readmitted_it_is_trained_in_its_place_where_that_is_ahead(tmp_path: Path) -> None:
    bench = Steps(KNOWN)
    bench.dies(*BAD)
    to_epoch(bench, 1)
    assert bench.say("operator", records.Readmit()).reason == "", "nothing is to be asked for again"
    assert in_quarantine(bench) == [*OTHERS], "until the members meet again"
    bench.regroup(bench.step)
    assert [Piece(e.epoch, e.start, e.length) for e in lifted(bench)] == [*OTHERS]
    assert (in_quarantine(bench), bench.grant.excluded) == ([], ())
    assert bench.shards.holes.tail == (BAD,)
    bench.finish()
    found = agree(bench, tmp_path)
    assert found["exactly_once"] and (found["committed"], found["steps"]) == (EPOCHS * 22, EPOCHS * 3 + 1)
    view = Lineage()
    Feed(view).entries(enumerate(bench.broker.log))
    assert {n: sum(step.samples[""].count(n) for step in view.view().values()) for n in range(22)} == view.expected()


def test_what_the_model_of_the_source_may_have_left_out_is_not_lifted(tmp_path: Path) -> None:
    """The others go on from steps that are not committed yet: there, it was left out."""
    bench = Steps(KNOWN)
    bench.dies(*BAD)
    to_epoch(bench, 1)
    before = bench.generation
    bench.say("operator", records.Readmit())
    ask = records.Regroup(before, bench.step + 2, b"", "h", 1)
    bench.ledger.run([bench.request(name, ask) for name in ("w0.0", f"w1.{bench.life}")])
    # Two steps of 8 at most, and as many as are dropped behind each, reach 32 positions further.
    assert [Piece(e.epoch, e.start, e.length) for e in lifted(bench)] == [p for p in OTHERS if p[:2] >= (2, 10)]
    for place in ((1, 0, 8), (1, 8, 7)):
        assert bench.made(*place, generation=before).status is Status.OK
    bench.finish()
    rest = in_quarantine(bench)
    assert rest and rest == [p for p in OTHERS if p[:2] < (2, 10)]
    bench.say("operator", records.Readmit())
    bench.regroup(bench.step)
    bench.finish()
    found = agree(bench, tmp_path)
    assert found["exactly_once"] and found["committed"] == EPOCHS * 22


def test_who_fails_again_after_it_was_readmitted_is_out_again(tmp_path: Path) -> None:
    bench = Steps(KNOWN)
    bench.dies(*BAD)
    to_epoch(bench, 1)
    bench.say("operator", records.Readmit())
    bench.regroup(bench.step)
    bench.dies(*OTHERS[0])
    assert in_quarantine(bench) == [*OTHERS]
    assert excluded(bench)[-1].reason == f"as position {OTHERS[0].start} of epoch 1: exit status -9 killed"
    bench.finish()
    bench.say("operator", records.Readmit())
    bench.regroup(bench.step)
    bench.finish()
    assert agree(bench, tmp_path)["committed"] == EPOCHS * 22


def test_who_fails_again_behind_the_last_epoch_is_left_out_of_all_that_was_readmitted(tmp_path: Path) -> None:
    bench = Steps(KNOWN)
    bench.dies(*BAD)
    bench.dies(0, 4, 1)
    bench.finish()
    for _ in range(2):
        bench.say("operator", records.Readmit())
        bench.regroup(bench.step)
        before = len(excluded(bench))
        assert in_quarantine(bench) == []
        bench.dies(*BAD)
        assert [Piece(e.epoch, e.start, 1) for e in excluded(bench)[before:]] == [BAD, *OTHERS]
        bench.finish()
        assert agree(bench, tmp_path)["committed"] == EPOCHS * 21, "the other sample is trained"
    bench.say("operator", records.Readmit())
    bench.regroup(bench.step)
    bench.finish()
    assert agree(bench, tmp_path)["exactly_once"]


def test_a_roll_back_behind_a_readmission_takes_nothing_twice(tmp_path: Path) -> None:
    bench = Steps(KNOWN)
    bench.dies(*BAD)
    to_epoch(bench, 2)
    bench.say("operator", records.Readmit())
    bench.regroup(bench.step)
    assert bench.shards.holes.tail == (BAD, OTHERS[0])
    bench.due()
    bench.say("operator", records.Rollback(0, "ann", "again"))
    bench.step, bench.lineage = 0, bytes(16)
    bench.regroup(0)
    assert len(lifted(bench)) == 2 and in_quarantine(bench) == []
    bench.finish()
    assert agree(bench, tmp_path)["exactly_once"]


@pytest.mark.parametrize("steps", [4, 7, 12])
def test_epochs_that_the_steps_asked_for_do_not_reach_are_left_alone(steps: int, tmp_path: Path) -> None:
    bench = Steps(replace(KNOWN, steps=steps))
    bench.dies(*BAD)
    reach = (steps // 3, (0, 8, 15)[steps % 3])
    assert in_quarantine(bench) == [BAD, *(p for p in OTHERS if p[:2] < reach)]
    bench.finish()
    bench.say("operator", records.Readmit())
    bench.regroup(bench.step)
    bench.finish()
    assert agree(bench, tmp_path)["exactly_once"]


def test_what_an_epoch_drops_is_not_left_out_of_it(tmp_path: Path) -> None:
    bench = Steps(replace(KNOWN, order=SEQUENTIAL, batches=DROP))
    bench.dies(0, 15, 1)
    assert in_quarantine(bench) == [Piece(e, 15, 1) for e in range(EPOCHS)]
    resize(bench, 11)
    bench.regroup(bench.step)
    bench.dies(0, 20, 1)
    assert len(in_quarantine(bench)) == 2 * EPOCHS
    bench.finish()
    assert agree(bench, tmp_path)["committed"] == EPOCHS * 20
    small = Steps(replace(KNOWN, order=SEQUENTIAL, batches=DROP))
    small.dies(0, 20, 1)
    assert in_quarantine(small) == [Piece(0, 20, 1)], "the last six of each epoch are trained in none"


def test_what_was_proven_is_named_before_what_is_left_out_for_it() -> None:
    bench = Steps(KNOWN)
    bench.dies(*BAD)
    to_epoch(bench, 2)
    bench.dies(2, 20, 1)
    said = evidence.in_quarantine(bench.state)
    assert said.startswith(
        "6 samples are in quarantine: position 3 of epoch 0: exit status -9 killed; position 20 of ep"
    )
    assert said.endswith(": as position 3 of epoch 0: exit status -9 killed; and 3 more")


def test_a_stop_and_another_batch_size_stay_exact(tmp_path: Path) -> None:
    bench = Steps(KNOWN)
    bench.dies(*BAD)
    resize(bench, 5)
    bench.regroup(bench.step)
    to_epoch(bench, 1)
    bench.say("w0.0", records.Stop(bench.generation, bench.step + 1, "it is good enough"))
    bench.due()
    bench.say("w0.0", records.Checkpoint(bench.generation, bench.step, bench.lineage, "last.pt"))
    assert bench.state.done == "last.pt"
    mine = agree(bench, tmp_path)
    assert all(epoch <= 1 for epoch, _, _ in mine["quarantined"])


def test_they_are_left_out_in_parts_the_nearest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later, "LATER_MAX", 2)
    bench = Steps(KNOWN)
    bench.dies(*BAD)
    assert in_quarantine(bench) == [BAD, *OTHERS[:1]], "so many epochs from the one that they are in"
    for epoch in (1, 2):
        to_epoch(bench, epoch)
        bench.dies(code=75)
        assert in_quarantine(bench) == [BAD, *OTHERS[: epoch + 1]], "any grant does"


def test_a_sample_that_a_model_has_after_all_is_not_out() -> None:
    """A step that was executed before has it: it was not to blame there."""
    bench = Steps(KNOWN)
    before = bench.generation
    bench.state.shards.exclude(records.Excluded(before + 1, *BAD, "", ""))
    bench.dies()
    assert in_quarantine(bench) == [BAD, *OTHERS]
    bench.made(0, 0, 8, generation=before)
    bench.dies()
    assert in_quarantine(bench) == []


def test_the_checker_refuses_to_lift_what_is_passed() -> None:
    log = Log({})
    log.places, log.excluded = [(1, 8, 8)], [(1, 1, 7, 8), (1, 2, 7, 8), (1, 2, 9, 10)]
    log.tail = [(2, 8, 11, 2, 0)]
    for epoch, start in ((1, 7), (2, 8), (2, 9)):
        with pytest.raises(Broken, match="is lifted"):
            log.on_lifted({"epoch": epoch, "start": start, "length": 1})
    log.on_lifted({"epoch": 2, "start": 7, "length": 1})
    assert (log.excluded, log.tail) == ([(1, 1, 7, 8), (1, 2, 9, 10)], [(2, 8, 11, 1, 0)])
