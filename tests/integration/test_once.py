"""What happens once a step, in a real job: a worker is killed, comes back, and everything is where the model is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from antdt_schemas.connection import Connection
from antdt_streams.views.job import audit_of, status_of

from tests.helpers.job_processes import job_processes

pytestmark = pytest.mark.kafka

SCRIPT = """
import json, os, signal, time
import antdt, torch
from pathlib import Path

here, stops = Path(__file__).parent, STOPS
torch.manual_seed(0)
x = torch.randn(600, 4)
data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
optimizers = [torch.optim.AdamW(model[0].parameters(), 0.01), torch.optim.SGD(model[2].parameters(), 0.05)]
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizers[0], lambda step: 1 / (1 + step))
scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=7)
average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
agent = antdt.Agent(
    model, optimizers, data, batch_size=BATCH, epochs=3, scheduler=scheduler, clip_grad_norm=1.0, scaler=scaler,
    state={"average": average}, options=antdt.AgentOptions(checkpoint_every_steps=5),
)
agent.on_step(lambda: average.update_parameters(model))
name, first = os.environ["ANTDT_WORKER"], os.environ["ANTDT_RESTARTS"] == "0"
heard, ends = [], []
agent.on_epoch(ends.append)
for x, y in agent:
    time.sleep(0.02)
    count = agent.all_reduce(len(x))
    heard.append(count)
    if name == "w1" and first and agent.step_number >= 12 and not stops:
        os.kill(os.getpid(), signal.SIGKILL)
    if stops and name == "w1" and agent.step_number == stops:
        agent.stop("it was enough")
    agent.backward(torch.nn.functional.mse_loss(model(x), y))
    if agent.reduce():
        assert all(torch.isfinite(param.grad).all() for param in model.parameters())
    agent.apply()
said = {
    "step": agent.step_number, "lineage": agent.lineage, "last_epoch": scheduler.last_epoch,
    "scale": scaler.get_scale(),
    "averaged": int(average.n_averaged), "average": [p.tolist() for p in average.parameters()],
    "model": [p.tolist() for p in model.parameters()], "heard": max(heard, default=0), "ends": ends,
}
(here / f"{name}.json").write_text(json.dumps(said))
"""


def test_scheduler_scaler_and_average_are_where_the_model_is(connection: Connection, job: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("STOPS", "0").replace("BATCH", "20"))
    with job_processes(connection, job, tmp_path) as run:
        run.ended(run.launch(2, script=(str(script),)))
    ends = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("w0", "w1")]
    assert audit_of(connection, job)["exactly_once"]
    for end in ends:
        assert end["last_epoch"] == end["averaged"] == end["step"] == 90
    told = ("step", "lineage", "scale", "average", "model")
    assert [ends[0][name] for name in told] == [ends[1][name] for name in told]
    assert max(end["heard"] for end in ends) == 20, "never did both say something in one step"
    assert ends[0]["ends"] == [0, 1, 2], "w0 was there all the time"
    file = max(tmp_path.glob(f"**/{job}/**/step-*.pt"), default=max(tmp_path.glob("**/step-*.pt")))
    saved = torch.load(file, weights_only=True)["once"]
    assert saved["schedulers"][0]["last_epoch"] == ends[0]["step"]
    assert int(saved["state"]["average"]["n_averaged"]) == ends[0]["step"]


def test_a_stop_of_one_script_ends_all_at_one_step_with_a_checkpoint(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("STOPS", "17").replace("BATCH", "20"))
    with job_processes(connection, job, tmp_path) as run:
        run.ended(run.launch(2, script=(str(script),)))
        said = run.output.read_text()
        run.ended(run.launch(1, script=(str(script),)))
        again = run.output.read_text()[len(said) :]
    ends = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("w0", "w1")]
    assert [end["step"] for end in ends] == [17, 17]
    assert ends[0]["model"] == ends[1]["model"]
    assert "stops behind step 17: it was enough" in said
    assert "stops behind step 17: another worker's script called agent.stop" in said
    assert any("step-000000017" in path.name for path in tmp_path.glob("**/step-*.pt"))
    assert f"Job {job} is finished early, behind step 17: it was enough. It ended at" in again
    assert "nothing is trained now" in again
    report, status = audit_of(connection, job), status_of(connection, job)
    assert (report["exactly_once"], report["committed"], report["not_trained_samples"]) == (True, 340, 1460)
    assert report["stopped"] == {"step": 17, "author": "w1", "reason": "it was enough"}
    assert (status["file"], status["stopped"]) == (report["file"], "is finished early, behind step 17: it was enough")


@pytest.mark.dear
def test_a_launch_with_another_batch_size_goes_on_with_it(connection: Connection, job: str, tmp_path: Path) -> None:
    """And an operator's change in the middle of it."""
    script = tmp_path / "script.py"
    with job_processes(connection, job, tmp_path) as run:
        leaves = "if agent.step_number == 10: break\n    count = "
        script.write_text(SCRIPT.replace("STOPS", "0").replace("BATCH", "20").replace("count = ", leaves))
        run.ended(run.launch(1, script=(str(script),)))
        # What is left of the first epoch is 400 samples, and a fourth of it before the next change.
        resizes = (
            "if agent.step_number == 12 and agent.is_main: os.system("
            f"'{sys.executable} -m antdt_streams resize {job} --batch-size 50 --reason larger "
            f"--bootstrap-servers {connection.bootstrap}')\n    count = "
        )
        script.write_text(SCRIPT.replace("STOPS", "0").replace("BATCH", "40").replace("count = ", resizes))
        run.ended(run.launch(1, script=(str(script),)))
    report = audit_of(connection, job)
    assert (report["exactly_once"], report["committed"]) == (True, 1800)
    launched, resized = report["batch_sizes"]
    assert (launched["step"], launched["batch_size"]) == (11, 40)
    assert (resized["step"] in range(13, 18), resized["batch_size"]) == (True, 50), resized
    assert launched["reason"] == "launched with batch_size=40" and resized["reason"] == "larger"
    end = json.loads((tmp_path / "w0.json").read_text())
    assert end["step"] == report["steps"] == end["last_epoch"]
