"""Void entries are counted and mislead nobody: a zombie's cycles change no view of a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from antdt_schemas import codec, records
from antdt_schemas.topics import DECISIONS, SHARD_LOG, STEPS, Topic
from antdt_streams.chaos.judge import judge_log, judge_quarantine, lineage_of
from antdt_streams.chaos.waits import sentences
from antdt_streams.demo.options import DemoOptions
from antdt_streams.demo.run import Watch
from antdt_streams.demo.view import frame
from antdt_streams.kafka.reader import Raw
from antdt_streams.ledger.core.fold import Fold, Verdict
from antdt_streams.proof.audit import audit
from antdt_streams.proof.replay import document, replay
from antdt_streams.proof.walker import Read, Walker
from antdt_streams.views import glance
from antdt_streams.views.control import Control
from antdt_streams.views.job import standing_of
from antdt_streams.views.progress import Progress
from antdt_streams.views.projection import Feed, Projection
from rich.console import Console

from tests.helpers import zombie

Entries = list[tuple[int, bytes]]
# Hashes differ with what lies in the log, and the digest with the hash that a lease has for a token.
HASHES = {"head_hash", "digest", "void_offsets"}
HAUNTED, VOID = zombie.log(haunted=True)
CALM, _ = zombie.log(haunted=False)


def told(entries: Entries) -> dict[str, Any]:
    return document(replay(entries))


def status(entries: Entries) -> dict[str, Any]:
    fold = Fold()
    Walker(fold).read(entries)
    return standing_of(fold)


def progress(entries: Entries) -> Progress:
    found = Progress()
    Feed(found).entries(entries)
    return found.view()


@pytest.mark.parametrize("view", [audit, status, told])
def test_audit_status_and_replay_count_what_a_zombie_writes_and_believe_none_of_it(
    view: Callable[[Entries], dict[str, Any]],
) -> None:
    haunted, calm = view(HAUNTED), view(CALM)
    changed = {key for key in calm if haunted[key] != calm[key]} - HASHES
    positions = {
        "audit": {"entries", "last_proven"},
        "status": {"entries"},
        "told": {"offset", "last_proven", "leader"},
    }
    assert changed - positions[view.__name__] == {"void_entries"}
    assert (haunted["void_entries"], calm["void_entries"]) == (len(VOID), 0)


def test_the_audit_says_where_the_void_entries_are() -> None:
    report = audit(HAUNTED)
    assert report["exactly_once"] and report["void_offsets"] == VOID and report["file"] is None


def test_the_progress_of_a_chaos_run_is_that_of_the_leader_in_office() -> None:
    found = progress(HAUNTED)
    assert found == progress(CALM)
    assert (found.step, found.commits, found.generation, found.members, found.leaders) == (2, 2, 1, 2, 2)
    assert (found.committed, found.total, found.train_s, found.speeds) == (20, 20, 0.0, [20])


def test_who_waits_for_whom_is_said_of_the_members_in_office() -> None:
    more = {"services": {}, "standings": {}}
    assert sentences(status(HAUNTED) | more) == sentences(status(CALM) | more) == ["w0 says nothing", "w1 says nothing"]


def test_the_judge_of_a_chaos_run_has_the_steps_and_the_quarantine_that_count() -> None:
    assert lineage_of(HAUNTED) == lineage_of(CALM)
    assert sorted(lineage_of(HAUNTED).view()) == [1, 2]
    assert lineage_of(HAUNTED).view()[2].samples == {"w0": [5, 6, 7, 8, 9], "w1": [15, 16, 17, 18, 19]}
    assert judge_quarantine(HAUNTED, []) == []
    assert judge_log(HAUNTED)[1] == judge_log(CALM)[1] == ["The log has no end: no final checkpoint."]


def test_a_frame_of_the_demo_is_the_same_with_a_zombie() -> None:
    def shown(entries: Entries) -> str:
        watch = Watch(None, "job")  # type: ignore[arg-type]  it is not started
        Feed(watch.progress, watch.control).entries(entries)
        console = Console(width=80)
        with console.capture() as text:
            console.print(frame(watch, "title", DemoOptions(workers=3), [], console))
        return text.get()

    assert shown(HAUNTED) == shown(CALM)
    assert "step 2   20 of 20 samples" in shown(HAUNTED)


def test_a_projection_never_sees_what_a_void_entry_says() -> None:
    class Everything(Projection["list[Read]"]):
        def __init__(self) -> None:
            self.reads: list[Read] = []

        def on_entry(self, read: Read) -> None:
            self.reads.append(read)

        def view(self) -> list[Read]:
            return self.reads

    one, other = Everything(), Everything()
    Feed(one, other).entries(HAUNTED)
    assert one.view() == other.view() and len(one.view()) == len(HAUNTED)
    assert [r.offset for r in one.view() if r.verdict is Verdict.VOID] == VOID
    assert all(r.body is None and r.events == () for r in one.view() if r.verdict is Verdict.VOID)
    assert not set(zombie.LIES) & {event for r in one.view() for event in r.events}


def test_an_entry_comes_with_its_time() -> None:
    seen: list[tuple[int, int]] = []

    class Times(Projection[None]):
        def on_entry(self, read: Read) -> None:
            seen.append((read.offset, read.time_ms))

        def view(self) -> None:
            return None

    Feed(Times()).take(SHARD_LOG, [Raw(0, n, 5_000 + n, None, payload) for n, payload in CALM])
    assert seen == [(n, 5_000 + n) for n, _ in CALM]


# -- what is not in the log


def decided(plan: int, reason: str) -> records.Decision:
    cause = records.Cause(0, plan, 0)
    return records.Decision(cause, plan, records.Action.ADJUST_BS, (), 1.0, 0, "", "p", 1, reason, 0.0, 0, 0)


def fed(topic: Topic, *bodies: Any) -> Control:
    control = Control()
    Feed(control).take(topic, [Raw(0, n, 0, None, codec.encode(body)) for n, body in enumerate(bodies)])
    return control


def test_a_decision_counts_once_and_one_of_an_older_plan_not_at_all() -> None:
    first, second = decided(1, "slow"), decided(2, "slower")
    control = fed(DECISIONS, first, first, second, first, decided(1, "of a Controller that was superseded"))
    assert control.view() == [first, second]


def test_a_restart_counts_once_beside_the_plans_and_what_came_of_it_is_no_decision() -> None:
    plan = decided(1, "slow")
    restart = replace(plan, cause=records.Cause(0, 2, 0), action=records.Action.KILL_RESTART, target="w1.0.l")
    effect = replace(plan, cause=records.Cause(0, 3, 0), action=records.Action.NONE)
    control = fed(DECISIONS, plan, restart, effect, replace(restart, cause=records.Cause(0, 4, 0)))
    assert control.view() == [plan, restart]


def test_another_policy_that_decides_is_shown_once_and_what_is_only_answered_is_not() -> None:
    plan, none = decided(1, "slow"), records.Action.NONE
    answer = replace(plan, cause=records.Cause(0, 2, 0), action=none)
    promoted = replace(answer, cause=records.Cause(0, 3, 0), author="Ada", policy="dd", reason="dd decides")
    control = fed(DECISIONS, plan, answer, promoted, promoted)
    assert control.view() == [plan, promoted] and control.policy == "dd"
    assert [one["changes"] for one in glance.decided(control)] == [[], []]


def test_the_pace_of_a_worker_is_that_of_its_newest_steps_under_its_newest_plan() -> None:
    columns = {"step": (1, 2, 3), "plan": (0, 0, 1), "batch_size": (8, 12, 4)}
    times = dict.fromkeys(("data_s", "compute_s", "communication_s", "wait_s"), (0.5, 0.5, 0.5))
    control = fed(STEPS, records.StepBatch("w0", "w0.0", 1, "n", "", 1, 0, **columns, **times))
    worker = control.workers["w0"]
    assert (worker.plan, worker.batch_size, worker.samples_per_s, worker.wait_s) == (1, 4, 8.0, 0.5)
