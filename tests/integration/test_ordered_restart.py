"""A policy of the user's orders an incarnation to be started again: real processes, from the view to the next life."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from antdt_schemas import codec, records
from antdt_schemas.connection import Connection
from antdt_schemas.topics import DECISIONS
from antdt_streams.kafka.reader import TopicReader

from tests.helpers.job_processes import JobProcesses, is_feed, job_processes
from tests.helpers.loading import children
from tests.helpers.warm import Warm

pytestmark = pytest.mark.kafka
POLICY = '''
from antdt_schemas.records import Action
from antdt_streams.policies import Proposal


class Once:
    """Orders the first life of w1 that it sees to be started again, once."""

    name, version = "once", 1

    def decide(self, view, memory):
        found = [node.incarnation for node in view.nodes if node.worker == "w1"]
        if memory or len(view.nodes) < 3 or not found:
            return (), memory
        return (Proposal(Action.KILL_RESTART, "w1 is to begin anew", target=found[0]),), {"ordered": found[0]}
'''
OPTIONS = ("--samples", "700", "--epochs", "10", "--delay-ms", "4", "--checkpoint-every", "0")
SERVICES = ("ledger", "monitor", "controller")


@pytest.mark.dear
def test_an_incarnation_that_is_to_go_leaves_and_the_next_one_joins_exactly_once(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    policy = tmp_path / "once.py"
    policy.write_text(POLICY)
    with job_processes(connection, job, tmp_path, services=SERVICES, policy=f"{policy}:Once") as run:
        launcher = run.launch(3, *OPTIONS)
        run.until(lambda: lives_of(run, "w1") == ["left", "member"], "w1 is not back as its next life")
        read_all_again(run, launcher)
        run.ended(launcher)
        assert run.judged()["committed"] == 7000
        events, said = run.events(), run.output.read_text()
    joined = [(e.incarnation, e.restarts) for e in events if isinstance(e, records.Joined) and e.worker == "w1"]
    (first, _), (second, _) = joined
    assert [restarts for _, restarts in joined] == [0, 1]
    assert not [e for e in events if isinstance(e, records.Lost)], "it has left, as on any SIGTERM"
    without = {e.generation for e in events if isinstance(e, records.Granted) and not {first, second} & {*e.members}}
    assert [e for e in events if isinstance(e, records.Committed) and e.generation in without], "the others went on"
    (first_at, ordered), (again_at, repeat) = decisions(connection, job)
    assert (ordered.action, ordered.target, repeat) == (records.Action.KILL_RESTART, first, ordered)
    by = "as policy once (version 1, decision {}) orders"
    assert f"{first} is told to leave, to be started again, {by.format(first_at)}: w1 is to begin anew" in said
    assert said.count("; started again as ordered (1)") == said.count("started again as ordered") == 1
    assert "w1 ended with status 143: it has left; started again as ordered (1)" in said
    assert f"{first} is not started again, {by.format(again_at)}: the worker is {second} now" in said


def lives_of(run: JobProcesses, worker: str) -> list[str]:
    """What has become of each incarnation of a worker."""
    state = run.state()
    return (
        [one.status for one in state.members.incarnations.values() if one.worker == worker] if state is not None else []
    )


def read_all_again(run: JobProcesses, launcher: Warm) -> None:
    """Who follows the decisions for the launcher begins at their start, and so does the Controller with measurements:
    it orders again what it has ordered.
    """
    (feed,) = filter(is_feed, children(launcher.pid))
    os.kill(feed, signal.SIGKILL)
    again = "orders to start a worker again are heard, those of before as well"
    run.until(lambda: again in run.output.read_text(), "nobody follows the decisions again")
    assert "not heard for now: who follows them was ended by SIGKILL" in run.output.read_text()
    service = run.supervisors[SERVICES.index("controller")].children["controller"].process
    assert service is not None
    service.kill()
    service.wait(5)
    shutil.rmtree(run.place.service_folder(run.job, "controller"))
    run.until(lambda: "is not started again" in run.output.read_text(), "the launcher has not heard the order again")
    assert launcher.poll() is None, "there is nobody left who could be started again"


def decisions(connection: Connection, job: str) -> list[tuple[int, records.Decision]]:
    """All that the Controller has commanded, with offsets; what else it says is what came of that."""
    with TopicReader(connection, job, DECISIONS) as reader:
        told = [(raw.offset, codec.decode(raw.value, records.Decision)) for raw in reader.to_end()]
    return [(offset, decision) for offset, decision in told if decision.action is not records.Action.NONE]
