"""An operator rolls a running job back: real workers load the checkpoint and train exactly the rest again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.topics import SHARD_LOG
from antdt_streams import topics_admin
from antdt_streams.chaos.judge import entries_of, judge_log, judge_records
from antdt_streams.cli.common import Place
from antdt_streams.cli.services import environment_of, start_services
from antdt_streams.ledger.core.state import State
from antdt_streams.operator_request import ask
from antdt_streams.reader import TopicReader
from antdt_streams.supervise import Supervisor

from tests.helpers.ledger_thread import replayed

pytestmark = pytest.mark.kafka
WITHIN_S = 90.0
STEPS_A_CHECKPOINT = 10


def until(holds: Callable[[], bool], supervisor: Supervisor, what: str) -> None:
    """Wait for a condition while the services go on."""
    end = time.monotonic() + WITHIN_S
    while not holds():
        supervisor.poll()
        assert time.monotonic() < end, what
        time.sleep(0.02)  # between two looks


def state_of(connection: Connection, job: str) -> State | None:
    with TopicReader(connection, job, SHARD_LOG) as reader:
        return replayed(connection, job).state if sum(reader.ends()) else None


def test_running_workers_go_back_to_a_checkpoint_and_train_the_rest_again(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    place = Place(connection, True, tmp_path, None)
    topics_admin.create(connection, job)
    supervisor = start_services(job, place, connection, ("ledger",))
    script = ["-m", "antdt.examples.recorded", "--record", str(tmp_path / "record"), "--samples", "700"]
    script += ["--epochs", "3", "--batch-size", "24", "--checkpoint-every", str(STEPS_A_CHECKPOINT), "--delay-ms", "3"]
    workers = subprocess.Popen(
        [sys.executable, "-m", "antdt.launch", "--job", job, "-n", "3", "--", *script],
        env=dict(os.environ) | environment_of(connection, place),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:

        def far_enough() -> bool:
            state = state_of(connection, job)
            return state is not None and state.checkpoints[-1].step >= 2 * STEPS_A_CHECKPOINT

        until(far_enough, supervisor, "no second checkpoint")
        reply = ask(connection, job, lambda author: records.Rollback(STEPS_A_CHECKPOINT, author, "a bad batch"), None)
        assert reply.status is records.Status.OK, reply.reason
        until(lambda: workers.poll() is not None, supervisor, "the run does not end")
        said = workers.communicate()[0]
        assert workers.returncode == 0, said
    finally:
        workers.kill()
        supervisor.stop()
    entries = entries_of(connection, job)
    report, wrong = judge_log(entries)
    assert not wrong
    assert report["rolled_back_steps"] >= STEPS_A_CHECKPOINT
    assert report["committed"] == 2100
    assert not judge_records(entries, tmp_path / "record"), "the workers' own records say something else"
