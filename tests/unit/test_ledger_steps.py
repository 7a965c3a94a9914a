"""A ledger of steps of a fixed size: what it commits, leaves out and appends. Alone, without workers or a broker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from antdt_schemas import lineage, records
from antdt_schemas.batches import Piece
from antdt_schemas.order import SAMPLED
from antdt_schemas.records import Status
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.decide import check_spec
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.core.turn import Answer
from antdt_streams.proof.audit import audit

from tests.helpers.ledger import SPEC, Bench

# As a sampler draws it: what is proven in one epoch says nothing of others. Of known orders see `test_ledger_later`.
STEPS = replace(SPEC, order=f"{SAMPLED}/0", samples=22, epochs=2, batch_size=8, max_attempts=2, batches="even")


class Steps(Bench):
    """Two workers that make steps together. Lives of w1 count up as it dies."""

    def __init__(self, spec: records.JobSpec = STEPS) -> None:
        super().__init__(spec)
        self.life = 0
        self.join("w0.0", "w1.0")

    @property
    def shards(self) -> Batches:
        found = self.state.shards
        assert isinstance(found, Batches)
        return found

    @property
    def generation(self) -> int:
        return int(self.state.members.generation)

    def made(self, *place: int, generation: int = 0) -> records.Reply:
        """The first member reports the step at (epoch, start, length)."""
        epoch, start, length = place
        return self.commit("w0.0", (generation or self.generation, 0, epoch, start, length))

    def due(self) -> records.Reply:
        """It reports the step that is due."""
        place = self.shards.place()
        assert place is not None
        reply = self.made(*place)
        assert reply.status is Status.OK, reply
        return reply

    def dies(self, *at: int, step: int = 0, code: int = -9) -> None:
        """w1 does, at (epoch, start, length) of the step that is due, and comes back."""
        body = records.Exited(code, "killed", at, "", step or self.step + 1)
        self.ledger.run([self.request(f"w1.{self.life}", body)])
        self.life += 1
        self.regroup(self.step)

    def regroup(self, claim: int) -> None:
        """w0 asks for the next generation, with a model of this step; w1 joins if it does not live."""
        ask = records.Regroup(self.generation, claim, self.lineage, "h", 1)
        self.ledger.run([self.request("w0.0", ask)])
        if f"w1.{self.life}" not in self.state.members.incarnations:
            self.join(f"w1.{self.life}")
        if not self.state.members.open:
            both = records.Regroup(self.generation, claim, self.lineage, "h", 1)
            self.ledger.run([self.request("w0.0", both), self.request(f"w1.{self.life}", both)])
        assert self.state.members.open
        self.state.check()
        kept = dict(rows.all_rows(self.state))
        assert dict(rows.all_rows(rows.load(State(self.spec), kept))) == kept

    def ends(self, of: dict[str, tuple[int, ...]], code: int = -11) -> None:
        """These die beside each other, each at (epoch, start, length) of the first step."""
        bodies = ((name, records.Exited(code, "killed", at, "", self.step + 1)) for name, at in of.items())
        self.ledger.run([self.request(name, body) for name, body in bodies])

    def anew(self, survivors: tuple[str, ...], *newcomers: str) -> None:
        """The next generation: who is left, and who joins. Where nobody is left, the first one is alone at first."""
        survivors = survivors or newcomers[:1]
        self.join(*newcomers)
        ask = records.Regroup(self.generation, self.step, self.lineage, "h", 1)
        self.ledger.run([self.request(name, ask) for name in survivors])
        self.state.check()
        newcomers = tuple(name for name in newcomers if name not in survivors)
        assert sorted(self.state.members.group) == sorted((*survivors, *newcomers))

    def audited(self) -> dict[str, object]:
        return audit(enumerate(self.broker.log))

    @property
    def grant(self) -> records.Grant:
        """The newest, as members hear of it."""
        found = self.ledger.office.reply(Answer("w0", "", -1, Status.OK, grant=True)).grant
        assert found is not None
        return found

    def finish(self) -> None:
        """All steps that are left, and the final file."""
        while self.shards.place() is not None:
            self.due()
        self.say("w0.0", records.Checkpoint(self.generation, self.step, self.lineage, f"step-{self.step}.pt"))


def test_a_step_is_its_place_and_nothing_is_leased() -> None:
    bench = Steps()
    for place in ((0, 0, 8), (0, 8, 7), (0, 15, 7), (1, 0, 8)):
        assert bench.made(*place).status is Status.OK
    assert bench.state.shards.committed_total == 30
    assert bench.say("w0.0", records.Lease(bench.generation, 8)).status is Status.REFUSED
    bench.finish()
    found = bench.audited()
    assert (found["exactly_once"], found["committed"], found["steps"]) == (True, 44, 6)
    assert not [e for e in bench.events() if isinstance(e, records.Leased | records.Returned)]


@pytest.mark.parametrize("place", [(0, 8, 8), (0, 0, 7), (1, 0, 8), (0, 8, 0)])
def test_any_other_step_is_refused(place: tuple[int, int, int]) -> None:
    bench = Steps()
    bench.made(0, 0, 8)
    assert "is not the next one" in bench.made(*place).reason
    assert bench.state.line.committed == 1


def test_a_step_names_the_generation_that_executed_it() -> None:
    bench = Steps()
    bench.due()
    before = bench.generation
    bench.dies()
    assert "generation" in bench.made(0, 8, 7, generation=bench.generation + 1).reason
    assert bench.made(0, 8, 7, generation=before).status is Status.OK, "carried from the generation before"
    bench.due()
    assert "generation" in bench.made(1, 0, 8, generation=before).reason


def test_a_roll_back_is_a_step_number() -> None:
    bench = Steps()
    for _ in range(3):
        bench.due()
    bench.say("w0.0", records.Checkpoint(bench.generation, 3, bench.lineage, "three.pt"))
    kept = bench.lineage
    bench.due()
    bench.say("operator", records.Rollback(3, "ann", "diverged"))
    assert (bench.state.line.committed, bench.state.shards.committed_total, bench.shards.cursor) == (3, 22, (1, 0))
    bench.step, bench.lineage = 3, kept
    bench.regroup(3)
    bench.finish()
    found = bench.audited()
    assert (found["exactly_once"], found["rolled_back_steps"]) == (True, 1)


def test_suspicion_narrows_down_to_the_sample_and_it_alone_is_left_out() -> None:
    bench = Steps()
    bench.due()
    pieces: Sequence[tuple[int, int, int]] = ((0, 11, 4), (0, 13, 2), (0, 13, 1), (0, 13, 1))
    seen = []
    for piece in pieces:
        bench.dies(*piece)
        seen.append(bench.grant.suspects)
    assert seen == [(0, 11, 4), (0, 13, 2), (0, 13, 1), ()]
    assert bench.grant.excluded == (0, 13, 1)
    assert bench.state.shards.faults == {(0, 13): (1, "", "exit status -9 killed")}
    bench.due()
    assert list(bench.state.shards.epoch(0).committed) == [(0, 13), (14, 15)], "its place is left out, nothing moves"
    bench.finish()
    found = bench.audited()
    assert (found["exactly_once"], found["committed"]) == (False, 43)
    assert found["quarantined"] == [[0, 13, 14]] or found["quarantined"] == [(0, 13, 14)]
    bench.say("operator", records.Readmit())
    assert bench.shards.place() == (2, 0, 1), "behind the last epoch"
    bench.regroup(bench.step)
    bench.finish()
    assert bench.audited()["exactly_once"]


def test_the_log_says_who_has_samples_tried_again() -> None:
    bench = Steps()
    for _ in range(2):
        bench.dies(0, 3, 1)
    bench.due()
    bench.say("operator", records.Readmit("Ada by root@host:7#1f"))
    closed, readmitted = [e for e in bench.events() if isinstance(e, records.Readmitted | records.Closed)][-1:-3:-1]
    assert readmitted == records.Readmitted(0, 3, 1, "Ada by root@host:7#1f")
    assert closed.reason == "Ada by root@host:7#1f readmits samples"


def test_a_sample_fails_in_the_tail_as_anywhere() -> None:
    bench = Steps()
    for _ in range(2):
        bench.dies(0, 3, 1)
    bench.finish()
    for _ in range(2):
        bench.say("operator", records.Readmit())
        bench.regroup(bench.step)
        for quarantined in (0, 1):
            bench.dies(0, 3, 1)
            assert bench.state.shards.quarantined_total == quarantined
        bench.finish()
    bench.say("operator", records.Readmit())
    bench.regroup(bench.step)
    bench.finish()
    assert bench.audited()["exactly_once"]


def test_two_poisons_of_one_step_are_told_apart() -> None:
    bench = Steps(replace(STEPS, max_attempts=1))
    bench.dies(0, 0, 4)
    bench.dies(0, 5, 2)
    assert bench.grant.suspects == (0, 0, 4, 0, 5, 2)
    bench.dies(0, 1, 1)
    bench.dies(0, 6, 1)
    assert [(e.start, e.length) for e in bench.events() if isinstance(e, records.Excluded)] == [(1, 1), (6, 1)]


def test_who_hears_of_the_end_just_before_samples_are_readmitted_gets_the_final_file() -> None:
    """Found by simulation: both in one cycle, and the answer named no file."""
    bench = Steps(replace(STEPS, max_attempts=1))
    bench.dies(0, 3, 1)
    bench.finish()
    done = bench.state.done
    replies = bench.ledger.run([bench.request("w2.0", bench.a_join()), bench.request("operator.0", records.Readmit())])
    told = next(reply for reply in replies if reply.incarnation == "w2.0")
    assert (told.status, told.file) == (Status.END, done)
    assert bench.state.done is None


def test_what_was_at_hand_together_is_suspected_together() -> None:
    """Found by simulation: one position beside others, a piece of its own, passed for one that was alone."""
    bench = Steps(replace(STEPS, max_attempts=1))
    bench.dies(0, 0, 1, 0, 3, 3)
    assert bench.grant.suspects == (0, 0, 1, 0, 3, 3)
    assert bench.grant.excluded == ()
    (suspicion,) = bench.shards.suspicions
    assert len(suspicion.pieces) == 2
    body = records.Failed(bench.generation, 0, 0, 1, "", "raised", 1, (0, 4, 1))
    bench.ledger.run([bench.request(f"w1.{bench.life}", body)])
    assert len(bench.shards.clues) == 2
    bench.dies(code=75)
    assert bench.grant.suspects == (0, 0, 1, 0, 4, 1)
    assert bench.grant.excluded == ()
    bench.dies(0, 4, 1)
    assert bench.grant.excluded == (0, 4, 1)


def test_what_the_survivors_have_in_their_model_is_above_suspicion() -> None:
    """The one who died had applied nothing of it yet; the others have."""
    bench = Steps()
    bench.due()
    body = records.Exited(-9, "killed", (0, 9, 1), "", 2)
    bench.ledger.run([bench.request("w1.0", body)])
    bench.life = 1
    bench.regroup(2)
    assert (bench.shards.suspicions, bench.shards.clues) == ((), ())


def test_nobody_is_guilty_where_all_die_or_nothing_was_at_hand() -> None:
    bench = Steps()
    bench.due()
    bench.dies()
    for life in range(4):  # more often than max_attempts
        bench.ends(dict.fromkeys((f"w0.{life}", f"w1.{life + 1}"), (0, 9, 1)))
        assert len(bench.shards.clues) == 2 and not any(clue.counts for clue in bench.shards.clues)
        bench.anew((), f"w0.{life + 1}", f"w1.{life + 2}")
        assert (bench.grant.suspects, bench.grant.excluded) == ((0, 9, 1), ())


def test_in_a_log_of_before_who_dies_with_others_is_pardoned() -> None:
    """Fold versions 1 and 2."""
    shards = State(STEPS).shards
    assert isinstance(shards, Batches)
    for name in ("w0.0", "w1.0"):
        shards.blame(records.Blamed(name, 0, 3, 1, "", "killed", 1), deadly=True)
    shards.pardon({"w1.0"})
    assert [clue.incarnation for clue in shards.clues] == ["w0.0"]


def test_who_dies_beside_others_speaks_against_its_samples_while_somebody_survives() -> None:
    """Two samples of one step end two members at once, every time."""
    bench = Steps(replace(STEPS, max_attempts=2))
    bench.join("w2.0")
    bench.anew(("w0.0", "w1.0", "w2.0"))
    for life, length in enumerate((2, 1, 1)):
        assert bench.grant.excluded == ()
        bench.ends({f"w1.{life}": (0, 3, length), f"w2.{life}": (0, 6, length)})
        bench.anew(("w0.0",), f"w1.{life + 1}", f"w2.{life + 1}")
    assert (bench.grant.suspects, bench.grant.excluded) == ((), (0, 3, 1, 0, 6, 1))
    bench.finish()
    assert bench.audited()["committed"] == 42


def test_two_samples_that_end_both_members_are_told_apart() -> None:
    """All die, so nothing counts; but it narrows down, and the next time one of them has all suspects at hand."""
    bench = Steps(replace(STEPS, max_attempts=1))
    bench.ends({"w0.0": (0, 0, 4), "w1.0": (0, 4, 4)})
    bench.anew((), "w0.1", "w1.1")
    assert bench.grant.suspects == (0, 0, 4, 0, 4, 4)
    bench.ends({"w0.1": (0, 2, 1), "w1.1": (0, 5, 1)})
    bench.anew((), "w0.2", "w1.2")
    assert (bench.grant.suspects, bench.grant.excluded) == ((0, 2, 1, 0, 5, 1), ())
    bench.ends({"w0.2": (0, 2, 1)})
    bench.anew(("w1.2",), "w0.3")
    assert (bench.grant.suspects, bench.grant.excluded) == ((0, 5, 1), (0, 2, 1))


def test_what_is_left_out_before_its_step_waits_for_the_step_to_be_readmitted() -> None:
    bench = Steps(replace(STEPS, max_attempts=1))
    bench.dies(0, 3, 1)
    reply = bench.say("operator", records.Readmit())
    assert "still ahead" in reply.reason
    assert bench.state.shards.quarantined_total == 1
    bench.due()
    assert "still" not in bench.say("operator", records.Readmit()).reason
    assert bench.state.shards.holes.tail == (Piece(0, 3, 1),)
    assert not bench.state.members.open, "members of the next generation know of it, all of them"


def test_jobs_that_cannot_be_are_refused() -> None:
    assert "sideways" in str(check_spec(replace(STEPS, batches="sideways")))
    assert "drop" in str(check_spec(replace(STEPS, batches="drop", samples=7, workers_min=1)))
    bench = Bench(STEPS)
    other = replace(bench.a_join(), spec=replace(STEPS, batches="small"))
    assert "batches" in bench.say("w0.0", other).reason


def test_lineage_is_of_what_a_step_is() -> None:
    bench = Steps()
    bench.due()
    assert bench.state.line.lineage == lineage.next_lineage(lineage.ROOT, 1, (bench.generation, 0, 0, 8))


def test_a_step_that_was_executed_before_an_exclusion_has_its_sample() -> None:
    """A survivor carries a step of before into the generation from which on a sample of it is left out: it was not to
    blame there, or its step would not have been completed. It is in the model, and nowhere else.
    """
    bench = Steps(replace(STEPS, max_attempts=1))
    before = bench.generation
    bench.state.shards.exclude(records.Excluded(before + 1, 0, 3, 1, "", ""))
    bench.dies()
    assert bench.state.shards.quarantined_total == 1
    bench.made(0, 0, 8, generation=before)
    assert (bench.state.shards.committed_total, bench.state.shards.quarantined_total) == (8, 0)
    bench.state.check()


def test_a_roll_back_into_an_epoch_undoes_the_tail_as_well() -> None:
    bench = Steps(replace(STEPS, max_attempts=1))
    bench.dies(0, 3, 1)
    bench.due()
    bench.say("w0.0", records.Checkpoint(bench.generation, 1, bench.lineage, "one.pt"))
    kept = bench.lineage
    bench.say("operator", records.Readmit())
    bench.regroup(1)
    while bench.shards.place() is not None:
        bench.due()
    assert bench.state.shards.committed_total == 44
    bench.say("operator", records.Rollback(1, "ann", ""))
    assert (bench.state.shards.committed_total, bench.state.shards.quarantined_total) == (7, 0)
    bench.state.check()
    bench.step, bench.lineage = 1, kept
    bench.regroup(1)
    bench.finish()
    assert bench.audited()["exactly_once"]


def test_what_is_committed_is_above_suspicion() -> None:
    bench = Steps()
    bench.due()
    bench.dies(0, 3, 1, step=1)
    assert not bench.shards.suspicions and not [e for e in bench.events() if isinstance(e, records.Blamed)]
