"""The life of a worker, driven by hand: a real session, and what would be done or would come is said by the test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from antdt.host.whereabouts import At
from antdt.strategies.allreduce import Composition, Row
from antdt.strategies.base import GenerationClosed, Outcome, Part, Timings
from antdt.worker import instructions as ask
from antdt.worker.life import Life
from antdt.worker.outside import LifeOptions, Outside
from antdt.worker.plans import Plans
from antdt.worker.session import Phase, Session
from antdt_schemas import records
from antdt_schemas.batches import Cursor
from antdt_schemas.errors import ExitCode, Occupied, Refused, Unavailable
from antdt_schemas.ranges import Range
from antdt_schemas.records import Status

from tests.unit.test_session import GRANT, SPEC, Where, reply

GRACE_S = 30.0


class Model:
    """In place of the strategy: at step 6, of which 5 are committed."""

    pending_max, ranges_max, form_patience_s, undivided = 4, 8, 120.0, False

    def __init__(self) -> None:
        self.step_number, self.lineage, self.plan, self.void, self.cursor = 6, bytes(16), 0, False, Cursor()
        self.pending: Sequence[Composition] = []

    def drop_pending(self, up_to_step: int) -> None:
        self.pending = [c for c in self.pending if c.step > up_to_step]


class Files:
    """In place of the files."""

    written_step, owes, may_try, owes_init = -1, False, True, True


class Driver:
    """Does what a life asks for. `asked`: all of it, by name. `happens`: what comes while it waits, one at a time.
    `closes_at`: where the generation turns out to be over, once.
    """

    def __init__(self, closes_at: type[Any] | None = None, spec: records.JobSpec = SPEC) -> None:
        self.session = Session("w0", "w0.0", spec, Where("h", 1))
        self.now_s, self.said, self.asked = 100.0, list[tuple[int, str]](), list[str]()
        self.happens: list[Callable[[], object]] = []
        self.model, self.closes_at, self.part = Model(), closes_at, Part((), 0, 1)
        outside = Outside(lambda: self.now_s, nullcontext(), lambda level, what: self.said.append((level, what)))
        options = LifeOptions("job", 1, 600.0, 1, GRACE_S)
        self.life = Life(self.session, Plans(spec.batch_size), self.model, Files(), options, outside)
        self.session.on_reply(reply(-1, grant=GRANT))
        self.session.committed = 5

    def run(
        self, course: ask.Course | None = None, until: type[Any] | tuple[type[Any], ...] | None = None
    ) -> ask.Course:
        """Until it ends, or asks for that."""
        course = course or ask.Course(self.life.run())
        while course.asks is not None and (until is None or not isinstance(course.asks, until)):
            course.carry_out(self.perform)
        return course

    def perform(self, asked: ask.Instruction) -> Any:
        name = type(asked).__name__
        if name not in ("Enter", "Between"):
            self.asked.append(name)
        if self.closes_at is not None and isinstance(asked, self.closes_at):
            self.closes_at = None
            raise GenerationClosed("it is over")
        match asked:
            case ask.Wait(met, patience_s):
                while not met() and self.happens:
                    self.happens.pop(0)()
                if not met():
                    self.now_s += patience_s
                return met()
            case ask.Announce(part):
                self.part = part
            case ask.Finish():
                return self.finish()
            case ask.GatherRandom():
                return [b"random"]
            case ask.WriteFile():
                return records.Checkpoint(1, self.model.step_number, self.model.lineage, "a.pt")
            case ask.Renew():
                self.session = Session("w0", "w0.1", SPEC, Where("h", 1))
                return self.session
        return None

    def finish(self) -> Outcome:
        part, model = self.part, self.model
        row = Row(
            samples=part.samples, plan_seen=0, plan=0, lineage=model.lineage, step=model.step_number,
            reference=part.reference, leaving=part.leaving, checkpoint=part.checkpoint, ended=part.ended,
        )  # fmt: skip
        if part.samples:
            model.step_number += 1
            model.pending = [*model.pending, Composition(model.step_number, (), 0)]
        return Outcome(part.samples, [row], part.samples > 0, part.ended, Timings(0, 0, 0))

    def lease(self) -> None:
        (asked,) = [r for r in self.session.tick(self.now_s) if isinstance(r.body, records.Lease)]
        self.session.on_reply(reply(asked.number, leases=[1, 7, 0, 0, 128]))

    def commit(self) -> None:
        self.session.committed = self.model.step_number

    def know_file(self) -> None:
        self.session.files.newest = None
        self.session.files.kept_steps.append(self.model.step_number)

    def close(self) -> None:
        self.session.on_reply(reply(-1, Status.CLOSED, reason="w1 joins"))


@pytest.fixture
def leaving() -> Driver:
    """Told to leave a moment ago."""
    driver = Driver()
    driver.life.told_at_s = driver.now_s
    return driver


FORMED = ["Wait", "Form", "Align", "Wait", "Stands"]
WRITTEN = ["GatherRandom", "WriteFile", "Prune", "RetryInit"]


def test_a_step_goes_from_its_samples_to_its_file_in_this_order() -> None:
    driver = Driver()
    driver.happens = [driver.lease]
    course = driver.run(until=ask.Between)
    assert driver.asked == [*FORMED, "Wait", "Announce", "Train", "Finish", "Accounted", *WRITTEN]
    assert driver.part.checkpoint
    assert driver.session.files.newest is not None, "its event is said once the file is there"
    assert driver.session.unreported == 1
    assert not driver.life.ended
    course.end()


def test_a_round_of_members_that_average_is_a_period_of_steps_of_the_batch() -> None:
    driver = Driver(spec=replace(SPEC, batch_size=32, strategy="local-sgd/every=4"))
    driver.happens = [driver.lease]
    course = driver.run(until=ask.Train)
    assert course.asks == ask.Train([Range(1, 7, 0, 0, 128)], 1, 32), "all that four steps take, and how much each"
    assert (driver.part.samples, driver.part.reference) == (128, 128)
    course.end()


def test_the_end_that_one_member_was_told_is_the_end_of_all() -> None:
    driver = Driver()
    driver.happens = [lambda: driver.session.on_reply(reply(-1, Status.END, file="final.pt"))]
    assert driver.run().result is None
    assert driver.life.ended
    assert driver.part.ended


@pytest.mark.parametrize("where", [ask.Announce, ask.Train, ask.Finish, ask.GatherRandom])
def test_wherever_a_generation_ends_it_is_left_before_the_next_one_is_asked_for(where: type[Any]) -> None:
    driver = Driver(closes_at=where)
    driver.happens = [driver.lease]
    course = driver.run(until=ask.Leave)
    assert driver.asked[-1] == where.__name__
    assert driver.session.phase is Phase.MEMBER, "nothing is claimed while an exchange may still be completed"
    assert driver.life.closed
    course.carry_out(driver.perform)
    assert driver.session.phase is Phase.REGROUPING
    assert (driver.life.generation, driver.life.workers, driver.life.closed) == (None, [], False)


def test_who_has_not_read_the_plan_of_its_model_trains_with_nobody() -> None:
    """It would take another part of a step than the others leave to it."""
    driver = Driver()
    driver.model.plan = 7
    course = driver.run(until=(ask.Leave, ask.Stands))
    assert isinstance(course.asks, ask.Leave) and driver.asked == FORMED[:-1]
    course.carry_out(driver.perform)
    assert "Plan 7 was not read in 5 s" in driver.said[-1][1]
    assert isinstance(course.asks, ask.Wait)


@pytest.mark.parametrize("where", [ask.Form, ask.Align])
def test_a_generation_that_does_not_form_is_left_and_tried_again_after_a_pause(where: type[Any]) -> None:
    driver = Driver(closes_at=where)
    course = driver.run(until=ask.Leave)
    course.carry_out(driver.perform)
    assert isinstance(course.asks, ask.Wait)
    assert course.asks.patience_s == pytest.approx(0.2)
    assert driver.said[-1][0] == logging.WARNING
    assert "Tried 1 times" in driver.said[-1][1]
    course.carry_out(driver.perform)
    assert course.asks == ask.Enter(At.FORMING), "what it was at while it tried is over"


def test_who_is_declared_lost_comes_back_as_another_one_with_a_void_model() -> None:
    driver = Driver()
    driver.session.on_reply(reply(-1, Status.REJOIN, reason="silent for 10 s"))
    course = driver.run(until=ask.Renew)
    assert driver.model.void
    course.carry_out(driver.perform)
    driver.run(course, until=ask.Wait)
    assert driver.life.session.incarnation == "w0.1"
    assert driver.life.session.phase is Phase.JOINING


def test_who_is_refused_or_ousted_or_never_answered_is_told_why() -> None:
    driver = Driver()
    driver.session.on_reply(reply(-1, Status.REFUSED, reason="other data"))
    with pytest.raises(Refused, match="The ledger refused w0: other data"):
        driver.run()
    driver = Driver()
    driver.session.on_reply(reply(-1, Status.DISPLACED, reason="w0.7 is w0 now"))
    with pytest.raises(Occupied, match=r"w0\.7 is w0 now"):
        driver.run()
    driver = Driver()
    driver.session.phase = Phase.JOINING
    with pytest.raises(Unavailable, match="did not come within 600 s"):
        driver.run()
    driver = Driver()
    driver.session.phase = Phase.JOINING
    driver.session.on_reply(reply(3, Status.OK, reason="1 of 2 servers ask for it: s1 is not there"))
    with pytest.raises(Unavailable, match="s1 is not there: start what is missing"):
        driver.run()
    assert "1 of 2 servers ask for it: s1 is not there" in driver.said[-1][1]


def test_steps_that_await_their_commit_are_bounded() -> None:
    driver = Driver()
    driver.model.pending = [Composition(step, (), 0) for step in range(3, 7)]
    driver.session.committed = 2
    course = driver.run(until=ask.Stands)
    course.carry_out(driver.perform)
    driver.run(course, until=ask.Wait)
    driver.happens = [driver.commit]
    driver.run(course, until=ask.Between)
    assert "Announce" in driver.asked


# -- how it leaves


def test_who_is_told_to_leave_says_so_and_leaves_its_model_in_a_file(leaving: Driver) -> None:
    leaving.happens = [leaving.commit, leaving.know_file]
    assert leaving.run().result is ExitCode.DRAINED
    assert leaving.asked == [*FORMED, "Announce", "Finish", "Accounted", *WRITTEN, "Wait"]
    assert leaving.part.leaving
    assert leaving.life.departed and leaving.life.saved and leaving.life.all_leave


def test_a_generation_that_closes_before_the_last_step_is_committed_is_left_from_the_next_one(leaving: Driver) -> None:
    """Somebody joins just then: the step, and the file of it, would be lost, and done again by whoever has joined."""
    leaving.happens = [leaving.close]
    leaving.run(until=ask.Leave)
    assert leaving.session.phase is Phase.CLOSED
    assert not leaving.life.departed
    assert not leaving.session.leaving, "it asks for the next one at leisure"
    assert not leaving.life.may_go
    assert leaving.said[-1] == (logging.INFO, "generation is over: it closed before step 6 was committed")


def test_whoever_is_committed_leaves_although_the_generation_has_closed(leaving: Driver) -> None:
    leaving.happens = [leaving.commit, leaving.close, leaving.know_file]
    assert leaving.run().result is ExitCode.DRAINED
    assert leaving.life.departed and leaving.life.saved


def test_where_there_is_no_time_left_the_work_is_said_to_be_lost(leaving: Driver) -> None:
    leaving.life.told_at_s = leaving.now_s - GRACE_S
    course = ask.Course(leaving.life.run())
    leaving.happens = [leaving.close]
    assert leaving.run(course).result is ExitCode.KILLED
    assert not leaving.life.saved
    assert "could not be saved" in leaving.said[-1][1]


def test_whoever_has_written_the_file_of_the_last_step_stays_until_the_ledger_knows_it(leaving: Driver) -> None:
    """The other one has left behind this step, and this one is told to go as well, between two generations."""
    leaving.life.left_behind = 6
    assert leaving.life.may_go
    leaving.session.files.newest = records.Checkpoint(1, 6, b"", "step-6.pt")
    assert not leaving.life.may_go


def test_a_script_that_leaves_the_loop_leaves_from_the_next_generation_where_its_step_was_begun() -> None:
    driver = Driver()
    driver.happens = [driver.lease]
    driver.run(until=ask.Train).end()
    course = ask.Course(driver.life.leave_early(driver.now_s + 20.0, regroup=True))
    assert isinstance(course.asks, ask.Leave)
    with pytest.raises(Unavailable, match="the next generation did not come within 20 s"):
        driver.run(course)
