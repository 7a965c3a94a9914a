"""Workers whose script goes wrong: gradients that are not finite, an Agent too many, a setting of one worker only."""

from __future__ import annotations

from pathlib import Path

import pytest
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_streams.views.job import audit_of, status_of

from tests.helpers.job_processes import job_processes

pytestmark = pytest.mark.kafka

SCRIPT = """
import os, torch, antdt
from antdt_schemas.errors import UsageError
from torch.utils.data import TensorDataset

torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
data = TensorDataset(torch.rand(400, 4), torch.arange(400))
options = antdt.AgentOptions(checkpoint_every_steps=5)
agent = antdt.Agent(model, optimizer, data, batch_size=8, epochs=20, options=options)
changed = False

def refused(act):
    try:
        act()
    except UsageError as error:
        print("REFUSED", error, flush=True)

for x, index in agent:
    if agent.step_number >= 30 and os.environ["ANTDT_WORKER"] == "w1" and not changed:
        changed = True
        refused(lambda: next(iter(agent)))
        refused(lambda: antdt.Agent(model, optimizer, data, batch_size=8))
        refused(lambda: optimizer.step())
        optimizer.param_groups[0]["lr"] = 0.02
    loss = model(x).square().mean()
    agent.step(loss * float("nan") if (index % 40 == 7).any() else loss)
"""


def test_bad_gradients_are_skipped_and_replicas_that_differ_end_the_run(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with job_processes(connection, job, tmp_path) as run:
        run.ended(run.launch(2, script=(str(script),)), ExitCode.NEVER_RETRY)
        said, events = run.output.read_text(), run.events()
    for sentence in ("iterated already", "trained with an Agent before", "optimizer.step() was called by the script"):
        assert sentence in said
    differs = [line for line in said.splitlines() if "ReplicasDiffer" in line]
    assert len(differs) == 2, "every worker says it"
    assert all("'lr' of parameter group 0 differs: expected 0.01 (w0), found 0.02 (w1)" in line for line in differs)
    skipped = [e for e in events if isinstance(e, records.StepSkipped)]
    assert skipped
    assert {author for e in skipped for author in e.authors} <= {"w0", "w1"}
    assert all(e.authors for e in skipped)
    assert status_of(connection, job)["skipped_steps"] == audit_of(connection, job)["skipped_steps"] == len(skipped)
    assert f"step {skipped[0].step} was skipped: its gradient is not finite (by " in said
