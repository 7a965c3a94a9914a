"""A plan that is not about batch sizes, from a policy in a user's file to the steps of real workers."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import defaultdict
from pathlib import Path

import pytest
from antdt_schemas import codec, records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_schemas.topics import DECISIONS
from antdt_streams.kafka.reader import TopicReader
from antdt_streams.proof.audit import audit

from tests.helpers.job_processes import WITHIN_S, job_processes
from tests.helpers.watched_rate import rates

pytestmark = pytest.mark.kafka
SCRIPT = ("-m", "tests.helpers.watched_rate")
POLICY = """
from antdt_streams.policies import Proposal
from antdt_schemas.records import Action

class Twice:
    name, version = "twice", 1

    def decide(self, view, memory):
        "A quarter of the rate; when the members have changed since, and that plan is in effect, half of it."
        if view.pending or memory.get("proposed", 0) == 2 or view.generation == memory.get("generation"):
            return (), memory
        proposed = memory.get("proposed", 0) + 1
        proposal = Proposal(Action.ADJUST_LR, "to see it", learning_rate_factor=0.25 * proposed)
        return (proposal,), {"proposed": proposed, "generation": view.generation}
"""
OPTIONS = ("--samples", "480", "--epochs", "12", "--delay-ms")


def test_every_step_under_a_plan_has_its_learning_rate_on_all_members_whoever_is_killed(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    policy = tmp_path / "mine.py"
    policy.write_text(POLICY)
    services = ("ledger", "monitor", "controller")
    with job_processes(connection, job, tmp_path, services=services, policy=f"{policy}:Twice") as run:
        assert all(one.await_ready(WITHIN_S, threading.Event()) for one in run.supervisors)
        first = run.launch(3, *OPTIONS, "3", script=SCRIPT)
        run.until(
            lambda: (state := run.state()) is not None and state.line.plan >= 1, "the first plan is not in effect"
        )
        os.kill(run.workers_of(first)[1], signal.SIGKILL)
        # It would be pending for 10 s, and no other proposed, had no worker reported it.
        run.until(lambda: run.now().line.plan == 2, "the first plan is pending for ever")
        run.until_committed(run.now().line.committed + 3)
        first.terminate()
        run.ended(first, ExitCode.DRAINED)
        left_at = run.now().line.committed
        run.ended(run.launch(2, *OPTIONS, "0", script=SCRIPT))
        report, events = audit(run.entries()), run.events()
    assert report["exactly_once"], report["verdict"]
    assert report["rolled_back_steps"] == 0
    plans = {event.step: event.plan for event in events if isinstance(event, records.Committed)}
    with TopicReader(connection, job, DECISIONS) as reader:
        told = [codec.decode(raw.value, records.Decision) for raw in reader.to_end()]
        decisions = [decision for decision in told if decision.action is not records.Action.NONE]
    assert [(d.plan, d.learning_rate_factor, d.assignments) for d in decisions] == [(1, 0.25, ()), (2, 0.5, ())]
    factors = {0: 1.0, **{d.plan: d.learning_rate_factor for d in decisions}}
    expected = {
        step: rate * factors[plans[step]] for step, rate in zip(range(1, len(plans) + 1), rates(), strict=False)
    }
    found = stepped_by(run.record)
    assert found == {step: {rate} for step, rate in expected.items()}, "the same on all members, and as the log says"
    assert set(plans.values()) == {0, 1, 2}
    assert plans[left_at + 1] == 2, "who is started again has the plan with the model"


def stepped_by(folder: Path) -> dict[int, set[float]]:
    """The learning rates by which any worker made each step."""
    found = defaultdict[int, set[float]](set)
    for file in folder.glob("*.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            found[line["step"]].add(line["rate"])
    return dict(found)
