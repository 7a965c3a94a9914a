"""An operator rolls a running job back: real workers load the checkpoint and train exactly the rest again."""

from __future__ import annotations

from pathlib import Path

import pytest
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_streams.operator_request import ask

from tests.helpers.job_processes import job_processes

pytestmark = pytest.mark.kafka
STEPS_A_CHECKPOINT = 10


def test_running_workers_go_back_to_a_checkpoint_and_train_the_rest_again(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as run:
        every = ("--checkpoint-every", str(STEPS_A_CHECKPOINT))
        workers = run.launch(3, "--samples", "700", "--epochs", "3", "--delay-ms", "3", *every)

        def far_enough() -> bool:
            state = run.state()
            return state is not None and state.checkpoints[-1].step >= 2 * STEPS_A_CHECKPOINT

        run.until(far_enough, "no second checkpoint")
        reply = ask(connection, job, lambda author: records.Rollback(STEPS_A_CHECKPOINT, author, "a bad batch"), None)
        assert reply.status is records.Status.OK, reply.reason
        run.ended(workers)
        report = run.judged()
    assert report["rolled_back_steps"] >= STEPS_A_CHECKPOINT  # type: ignore[operator]
    assert report["committed"] == 2100
