"""AllReduce(deterministic="bitwise") in real jobs: the same bits for any number of workers, whoever is killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from antdt_schemas.connection import Connection
from antdt_streams.views.job import audit_of

from tests.helpers.job_processes import job_processes

pytestmark = [pytest.mark.kafka, pytest.mark.dear]

SCRIPT = """
import hashlib, json, os, signal, sys
import antdt, torch
from pathlib import Path

here, dies = Path(__file__).parent, DIES
torch.manual_seed(0)
x = torch.randn(500, 16)
data = torch.utils.data.TensorDataset(x, x[:, :4].argmax(1))
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(32, 4))
optimizer = torch.optim.AdamW(model.parameters(), 0.01)
agent = antdt.Agent(
    model, optimizer, data, batch_size=48, epochs=2, clip_grad_norm=1.0,
    strategy=antdt.AllReduce(deterministic="bitwise", unit_size=4),
)
name, first = os.environ["ANTDT_WORKER"], os.environ["ANTDT_RESTARTS"] == "0"
for x, y in agent:
    if name == dies and first and agent.step_number >= 9:
        os.kill(os.getpid(), signal.SIGKILL)
    agent.step(torch.nn.functional.cross_entropy(model(x), y, weight=torch.tensor([1.0, 0.3, 2.0, 0.7])))
bits = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
(here / f"{name}.json").write_text(json.dumps({"bits": bits, "step": agent.step_number}))
"""


def test_any_number_of_workers_makes_the_same_model_bit_by_bit(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    found = set()
    for workers, dies in ((1, ""), (2, ""), (3, "w1"), (3, "w0")):
        folder, name = tmp_path / f"{workers}{dies}", f"{job[:30]}-{workers}{dies}"
        folder.mkdir()
        script = folder / "script.py"
        script.write_text(SCRIPT.replace("DIES", repr(dies)))
        with job_processes(connection, name, folder) as run:
            run.ended(run.launch(workers, script=(str(script),)))
        assert audit_of(connection, name)["exactly_once"]
        ends = [json.loads(file.read_text()) for file in folder.glob("w?.json")]
        assert len(ends) == workers
        assert {end["step"] for end in ends} == {22}
        found |= {end["bits"] for end in ends}
    assert len(found) == 1
