"""The lives of a worker of servers and of a server, driven by hand: sessions are real, what comes the test says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
from antdt.host.whereabouts import At
from antdt.strategies.base import GenerationClosed, Outcome, Part, Timings
from antdt.strategies.ps.contribution import Contribution
from antdt.worker import instructions as ask
from antdt.worker.attached import AttachedLife
from antdt.worker.instructions import Decided, Parts, Turned
from antdt.worker.life import Life
from antdt.worker.outside import LifeOptions, Outside
from antdt.worker.plans import Plans
from antdt.worker.serving import FILED_S, QUIET_S, ServingLife
from antdt.worker.session import Phase, Session
from antdt.worker.session.reading import Found, ReadLeases
from antdt_schemas import records
from antdt_schemas.batches import Cursor
from antdt_schemas.errors import ExitCode
from antdt_schemas.limits import INIT_FILE
from antdt_schemas.ranges import Range
from antdt_schemas.records import Status
from antdt_schemas.space import TOPIC

from tests.unit.test_session import SPEC, Where

GRACE_S = 30.0
PS = replace(SPEC, strategy="ps-bsp/servers=2", batches="", workers_min=2, batch_size=64)


def grant(generation: int = 1, committed: int = 0) -> records.Grant:
    members = tuple(records.Member(f"s{i}.0.x", f"s{i}", "h", 7000 + i) for i in range(2))
    return records.Grant("run", generation, members, None, None, committed, INIT_FILE, (0,))


def reply(session: Session, number: int, status: Status = Status.OK, **more: Any) -> records.Reply:
    said: dict[str, Any] = {"reason": "", "generation": max(1, session.generation), "committed": session.committed}
    said |= {"finished": False, "leases": (), **more}
    return records.Reply(session.worker, session.incarnation, number, status, **said)


class Model:
    """In place of the strategy, of either kind."""

    pending_max, ranges_max, form_patience_s, backup = 4, 8, 120.0, 0

    def __init__(self) -> None:
        self.step_number, self.lineage, self.plan, self.void, self.cursor = 0, bytes(16), 0, False, Cursor()
        self.pending: Sequence[Any] = ()
        self.active, self.saved_step, self.wanted, self.is_saving = 1, -1, False, False
        self.others_idle = False

    def drop_pending(self, up_to_step: int) -> None:
        pass


class Files:
    """In place of the files."""

    written_step, owes, may_try, owes_init = -1, False, True, False


class Lock(AbstractContextManager[None]):
    """Knows whether it is held."""

    held = 0

    def __enter__(self) -> None:
        self.held += 1

    def __exit__(self, *_: object) -> None:
        self.held -= 1


class Guarded(deque[Any]):
    """What the connection's thread changes, so that nobody may go through it without the lock."""

    lock: Lock

    def __iter__(self) -> Iterator[Any]:
        assert self.lock.held, "another thread may change it meanwhile"
        return super().__iter__()


class Driver:
    """Does what a life asks for. `asked`: all of it, by name. `happens`: what comes while it waits or serves, one at a
    time. `outcomes`: of the next contributions, whether each is included.
    """

    life_of: type[Life] = AttachedLife
    worker, role, spec = "w1", "worker", PS
    at = At.START

    def __init__(self, every: int = 0) -> None:
        self.session = Session(self.worker, f"{self.worker}.0.x", self.spec, Where("h", 1), role=self.role)
        self.now_s, self.said, self.asked = 100.0, list[str](), list[str]()
        self.happens: list[Callable[[], Any]] = []
        self.model, self.part, self.outcomes = Model(), Part((), 0, 1), list[bool]()
        self.orders: list[ask.Obey] = []
        self.lock = Lock()
        outside = Outside(lambda: self.now_s, self.lock, lambda level, what: self.said.append(what))
        options = LifeOptions("job", 2, 600.0, every, GRACE_S, rank=1)
        self.plans = Plans(PS.batch_size)
        self.life = self.life_of(self.session, self.plans, self.model, Files(), options, outside)  # type: ignore[arg-type]
        self.join()

    def join(self) -> None:
        """It is granted the first generation."""
        (asked,) = self.session.tick(self.now_s)
        self.session.on_reply(reply(self.session, asked.number))
        self.session.on_reply(reply(self.session, -1, grant=grant()))

    def run(self, course: ask.Course | None = None, until: Any = None) -> ask.Course:
        """Until it ends, or asks for that."""
        course = course or ask.Course(self.life.run())
        while course.asks is not None and (until is None or not isinstance(course.asks, until)):
            course.carry_out(self.perform)
        return course

    def perform(self, asked: ask.Instruction) -> Any:
        name = type(asked).__name__
        if isinstance(asked, ask.Enter):
            self.at = asked.at
        if name not in ("Enter", "Between", "Wait", "Serve"):
            self.asked.append(name)
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
            case ask.Serve(patience_s):
                self.now_s += patience_s
                return (self.happens.pop(0)() if self.happens else None) or Turned()
            case ask.Obey():
                self.orders.append(asked)
            case ask.Publish(parts):
                return records.Checkpoint(1, parts.version, parts.lineage, "all.pt")
            case ask.Bind():
                return 7777
        return None

    def finish(self) -> Outcome:
        included = self.outcomes.pop(0) if self.outcomes else True
        if included:
            self.model.step_number += 1
        row = Contribution(self.part.samples, 0, self.part.reference)
        return Outcome(self.part.samples, [row], included, False, Timings(0, 0, 0))

    def tick(self) -> list[records.Request]:
        self.now_s += 5.0
        return self.session.tick(self.now_s)

    def lease(self, *leases: int) -> None:
        (asked,) = [r for r in self.tick() if isinstance(r.body, records.Lease)]
        self.session.on_reply(reply(self.session, asked.number, leases=leases or (1, 7, 0, 0, 128)))

    def close(self) -> None:
        self.session.on_reply(reply(self.session, -1, Status.CLOSED, reason="s1 was lost"))

    def end(self) -> None:
        self.session.on_reply(reply(self.session, -1, Status.END, file="final.pt"))


FORMED = ["Form", "Align", "Stands"]
ROUND = ["Announce", "Train", "Finish", "Accounted"]


def test_a_worker_takes_an_even_share_of_what_it_is_leased_and_is_told_the_end() -> None:
    driver = Driver()
    driver.happens = [driver.lease, driver.end]
    assert driver.run().result is None
    assert driver.life.ended
    assert driver.asked == [*FORMED, *ROUND * 4, "Idle", "TakeFinal"]
    assert driver.part.samples == 32 and driver.part.reference == 32, "half of the batch, for each of two workers"
    assert driver.session.rank == -1


def entered(driver: Driver, course: ask.Course, looks: int) -> list[tuple[At, str]]:
    """What it says that it is at, until it has waited so often."""
    said: list[tuple[At, str]] = []
    while looks:
        assert course.asks is not None
        if isinstance(course.asks, ask.Enter):
            said.append((course.asks.at, course.asks.detail))
        looks -= isinstance(course.asks, ask.Wait)
        course.carry_out(driver.perform)
    return said


def test_a_worker_without_samples_says_so_anew_each_time_that_it_looks() -> None:
    """So one that says it for long does not look any more."""
    driver = Driver()
    course = driver.run(until=ask.Stands)
    assert entered(driver, course, 3) == [(At.IDLE, "waits for samples")] * 3
    course.end()


class OfTopic(Driver):
    """Samples are records of a topic."""

    spec = replace(PS, order=TOPIC, blocks=(0, 100, 600, 1, 7, 507), samples=1000)

    def lease_places(self) -> None:
        (asked,) = [r for r in self.tick() if isinstance(r.body, records.Lease)]
        places = (480, 0, 580, 20, 500, 1, 7, 20)
        self.session.on_reply(reply(self.session, asked.number, leases=(1, 7, 0, 480, 40), places=places))

    def read(self, found: Found) -> None:
        """What comes next is read, and the ledger knows what is vacant."""
        leases = self.session.leases
        assert isinstance(leases, ReadLeases)
        chunk = leases.to_read()
        assert chunk is not None and leases.was_read(chunk, found)
        for asked in [r for r in self.tick() if isinstance(r.body, records.Examined)]:
            self.session.on_reply(reply(self.session, asked.number))


def test_what_is_leased_of_a_topic_is_waited_for_until_it_is_read() -> None:
    driver = OfTopic()
    driver.happens = [driver.lease_places]
    course = driver.run(until=ask.Wait)
    for _ in range(4):  # leased, and not read
        course.carry_out(driver.perform)
        course = driver.run(course, until=(ask.Wait, ask.Announce))
        assert isinstance(course.asks, ask.Wait), "there is nothing to take"
    assert driver.session.leases.untaken == 40 and "Idle" not in driver.asked[len(FORMED) + 1 :]
    driver.read(Found(500))
    course = driver.run(course, until=ask.Train)
    assert isinstance(course.asks, ask.Train) and course.asks.ranges == [Range(1, 7, 0, 480, 20)]
    course.end()


def test_positions_without_a_record_are_handed_in_and_nothing_is_computed_for_them() -> None:
    driver = OfTopic()
    driver.happens = [
        driver.lease_places,
        lambda: driver.read(Found(500, ((480, 20),))),
        lambda: driver.read(Found(520, ((505, 10),))),
    ]
    course = driver.run(until=ask.Train)
    assert driver.asked == [*FORMED, "Announce", "Finish", "Accounted", "Announce"]
    assert isinstance(course.asks, ask.Train)
    assert (course.asks.ranges, course.asks.batch_size) == ([Range(1, 7, 0, 500, 20)], 10)
    assert driver.part.samples == 10, "which gradients are divided by"
    course.end()


def test_a_plan_says_what_this_worker_takes_at_once() -> None:
    driver = Driver()
    shares = (records.Assignment("w0", 48, 1), records.Assignment("w1", 16, 1))
    cause = records.Cause(0, 5, 0)
    driver.plans.add(
        records.Decision(cause, 1, records.Action.ADJUST_BS, shares, 1.0, 0, "", "p", 1, "w1 is slow", 0.1, 0, 4)
    )
    driver.happens = [driver.lease]
    course = driver.run(until=ask.Train)
    assert isinstance(course.asks, ask.Train)
    assert (course.asks.ranges, driver.part.plan_seen) == ([Range(1, 7, 0, 0, 16)], 1)
    course.end()


def test_what_was_late_is_computed_anew_from_the_same_samples() -> None:
    driver = Driver()
    driver.happens, driver.outcomes = [driver.lease], [False, True]
    course = driver.run(until=ask.Train)
    first = course.asks
    course.go_on()
    course = driver.run(course, until=ask.Train)
    assert course.asks == first
    course.go_on()
    course = driver.run(course, until=ask.Train)
    assert isinstance(course.asks, ask.Train) and course.asks.ranges == [Range(1, 7, 0, 32, 32)]
    course.end()


def test_what_was_given_up_here_is_computed_anew_and_nobody_is_left_for_it() -> None:
    """Memory was out in the loop's body."""
    driver = Driver()
    driver.happens = [driver.lease]
    course = driver.run(until=ask.Train)
    first = course.asks
    course.closed(GenerationClosed("it closed in the middle of a step"))
    course = driver.run(course, until=ask.Train)
    assert course.asks == first and "Leave" not in driver.asked
    course.end()


def test_a_generation_that_ends_takes_what_was_open_with_it() -> None:
    driver = Driver()
    driver.happens = [driver.lease]
    course = driver.run(until=ask.Train)
    driver.close()
    course.closed(GenerationClosed("s1 was lost"))
    course = driver.run(course, until=ask.Wait)
    assert driver.asked[-1] == "Leave"
    assert (driver.session.phase, driver.session.leases.untaken) == (Phase.REGROUPING, 0)
    driver.session.on_reply(reply(driver.session, -1, grant=grant(2, committed=3)))
    driver.happens = [lambda: driver.lease(9, 7, 0, 0, 64)]
    course = driver.run(course, until=ask.Train)
    assert isinstance(course.asks, ask.Train) and course.asks.ranges == [Range(9, 7, 0, 0, 32)]
    course.end()


def test_a_worker_that_is_told_to_leave_says_so_and_stays_until_its_last_is_committed() -> None:
    driver = Driver()
    driver.happens = [driver.lease]
    course = driver.run(until=ask.Finish)
    driver.life.told_at_s = driver.now_s
    driver.happens = [lambda: setattr(driver.session, "committed", 1)]
    assert driver.run(course).result == ExitCode.DRAINED
    assert driver.asked[-2:] == ["Accounted", "Idle"]


def test_a_script_that_leaves_its_loop_says_good_bye_at_once() -> None:
    driver = Driver()
    driver.happens = [driver.lease]
    course = driver.run(until=ask.Between)
    course.end()
    driver.happens = []
    early = ask.Course(driver.life.leave_early(driver.now_s + 20.0, regroup=True))
    while early.asks is not None:
        early.carry_out(driver.perform)
    assert driver.life.departed and driver.asked[-1] == "Idle"
    assert "Leave" not in driver.asked, "its generation goes on, and nothing of a step that was begun was handed in"


def test_where_another_worker_has_run_out_what_need_not_be_held_goes_back() -> None:
    driver = Driver()
    leases = [number for lease in range(1, 9) for number in (lease, 7, 0, 32 * (lease - 1), 32)]
    driver.happens = [lambda: driver.lease(*leases)]
    course = driver.run(until=ask.Train)
    driver.model.others_idle = True
    course.go_on()
    driver.run(course, until=ask.Train).end()
    (released,) = [r.body for r in driver.tick() if isinstance(r.body, records.Release)]
    assert driver.session.leases.untaken == 32 and len(released.more) == 2 * 4


# -- servers


class Primary(Driver):
    """s0."""

    life_of = ServingLife
    worker, role = "s0", "server"

    def decide(self, *versions: int) -> Callable[[], Turned]:
        def decided() -> Turned:
            self.model.step_number = versions[-1]
            return Turned([Decided(v, (v, 7, 0, v * 8, 8), bytes([v]) * 16, 0) for v in versions])

        return decided

    def commits(self) -> list[records.Commit]:
        return [r.body for r in self.tick() if isinstance(r.body, records.Commit)]

    def saved(self, version: int) -> Callable[[], Turned]:
        def found() -> Turned:
            self.model.saved_step = version
            return Turned((), [Parts(version, bytes([version]) * 16, 0, (("a.part", b"1"), ("b.part", b"2")))])

        return found


class Second(Primary):
    """s1."""

    worker = "s1"


def turns(driver: Driver, number: int, course: ask.Course | None = None) -> ask.Course:
    """Go on for so many turns of serving."""
    course = course or ask.Course(driver.life.run())
    for _ in range(number):
        course = driver.run(course, until=ask.Serve)
        assert course.asks is not None
        course.carry_out(driver.perform)
    return driver.run(course, until=(ask.Serve, ask.Wait))


def test_the_primary_reports_what_is_decided() -> None:
    driver = Primary()
    driver.happens = [driver.decide(1), driver.decide(2, 3)]
    course = turns(driver, 2)
    assert driver.asked == [*FORMED, "Obey"]
    (commit,) = driver.commits()
    assert (commit.first_step, commit.lineage) == (1, bytes([3]) * 16)
    assert commit.compositions == tuple((v, 7, 0, v * 8, 8) for v in (1, 2, 3))
    course.end()


def test_servers_that_no_worker_needs_say_so_now_and_then() -> None:
    driver = Primary()
    course = turns(driver, 2)
    driver.model.active = 0
    for _ in range(30):
        driver.now_s += 10.0
        course = turns(driver, 1, course)
    said = [text for text in driver.said if "no worker has been at anything" in text]
    assert [int(text.split(" s: ")[0].rsplit(" ", 1)[1]) // 60 for text in said] == [1, 2, 4], "ever more seldom"
    driver.model.active = 1
    turns(driver, 1, course).end()


def test_a_loss_is_answered_for_behind_all_that_was_decided_before() -> None:
    driver = Primary()
    driver.happens = [driver.decide(1)]
    course = turns(driver, 1)
    loss = records.Loss(1, "w1.0.x")
    driver.session.on_reply(reply(driver.session, -1, losses=(loss,)))
    driver.happens = [driver.decide(2)]
    course = turns(driver, 1, course)
    assert driver.orders[-1].lost == ("w1.0.x",)
    (commit,) = driver.commits()
    assert commit.log_seen == 1 and commit.first_step == 1
    course.end()


def test_the_newest_plan_is_obeyed_and_the_script_says_the_least_of_backup_workers() -> None:
    driver = Primary()
    driver.model.backup = 1
    course = turns(driver, 1)
    assert driver.orders == [ask.Obey((), 0, 1, 1.0)]
    decision = records.Decision(
        records.Cause(0, 5, 0), 1, records.Action.BACKUP_WORKERS, (), 0.5, 2, "", "p", 1, "why", 0.1, 0, 4
    )
    driver.plans.add(decision)
    course = turns(driver, 2, course)
    assert driver.orders[1:] == [ask.Obey((), 1, 2, 0.5)]
    course.end()


def test_parts_are_asked_for_every_so_many_versions_and_named_when_all_are_there() -> None:
    driver = Primary(every=2)
    driver.happens = [driver.decide(1), driver.decide(2), driver.decide(3), driver.saved(2)]
    course = turns(driver, 4)
    assert driver.asked == [*FORMED, "Obey", "Mark", "Publish", "Prune"]
    newest = driver.session.files.newest
    assert newest is not None and newest.step == 2
    course.end()


def test_when_all_is_committed_the_last_version_is_saved_and_the_end_ends_it() -> None:
    driver = Primary()
    driver.happens = [driver.decide(1)]
    course = turns(driver, 1)
    assert "Mark" not in driver.asked
    driver.session.on_reply(reply(driver.session, -1, committed=1, finished=True))
    course = turns(driver, 1, course)
    assert driver.asked[-1] == "Mark"
    driver.happens = [driver.saved(1)]
    course = turns(driver, 2, course)
    assert driver.asked[-2:] == ["Publish", "Prune"] and driver.asked.count("Mark") == 1
    driver.end()
    assert driver.run(course).result is None
    assert driver.life.ended


def test_where_the_ledger_is_away_a_server_serves_up_to_a_bound() -> None:
    driver = Primary()
    driver.happens = [driver.decide(1, 2, 3, 4)]
    course = turns(driver, 1)
    assert isinstance(course.asks, ask.Wait), "pending_max is 4"
    assert driver.at is At.IDLE, "it serves nobody, and that is nobody's fault"
    driver.session.committed = 2
    course = driver.run(course, until=ask.Serve)
    assert isinstance(course.asks, ask.Serve)
    course.end()


def test_what_awaits_its_commit_is_counted_under_the_lock() -> None:
    driver = Primary()
    turns(driver, 1).end()
    found = Guarded(driver.session._commits.compositions)
    found.lock = driver.lock
    driver.session._commits.compositions = found
    driver.happens = [driver.decide(1, 2, 3, 4)]
    course = driver.run(until=ask.Serve)
    course.carry_out(driver.perform)
    course = driver.run(course, until=ask.Wait)
    assert isinstance(course.asks, ask.Wait)
    assert course.asks.met() is False
    course.end()


@pytest.mark.parametrize("kind", [Primary, Second])
def test_a_generation_that_ends_is_left_for_another_port_and_no_step_is_claimed(kind: type[Primary]) -> None:
    driver = kind()
    course = turns(driver, 1)
    driver.close()
    course = driver.run(course, until=ask.Wait)
    assert driver.asked[-2:] == ["Leave", "Bind"]
    (request,) = [r.body for r in driver.tick() if isinstance(r.body, records.Regroup)]
    assert (request.port, request.claim) == (7777, None)
    course.end()


def test_a_primary_that_is_told_to_leave_serves_workers_a_moment_and_saves_all() -> None:
    driver = Primary()
    driver.happens = [driver.decide(1)]
    course = turns(driver, 1)
    driver.life.told_at_s = driver.now_s
    course = turns(driver, 3, course)
    assert "Mark" not in driver.asked, "a worker is at something"
    driver.now_s += QUIET_S
    driver.happens = [driver.decide(2)]
    course = turns(driver, 1, course)
    assert driver.asked[-1] == "Mark" and not driver.life.departed
    driver.happens = [driver.saved(2)]
    course = turns(driver, 1, course)
    driver.session.files.kept_steps.append(2)
    driver.session.files.newest = None
    assert driver.run(course).result == ExitCode.DRAINED


def test_another_server_that_is_told_to_leave_asks_for_files_and_goes_when_they_are_there() -> None:
    driver = Second()
    driver.model.active = 0
    course = turns(driver, 1)
    driver.model.step_number = 5
    driver.life.told_at_s = driver.now_s
    course = turns(driver, 1, course)
    assert driver.asked[-1] == "Mark"
    driver.model.saved_step = 6
    course = turns(driver, 1, course)
    assert not driver.life.departed
    driver.now_s += FILED_S
    assert driver.run(course).result == ExitCode.DRAINED


def test_whoever_asks_for_files_gets_them() -> None:
    driver = Primary()
    driver.happens = [driver.decide(1)]
    course = turns(driver, 1)
    driver.model.wanted = True
    course = turns(driver, 1, course)
    assert driver.asked[-1] == "Mark"
    course.end()
