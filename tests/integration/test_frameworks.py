"""Adapters against the real frameworks: watched, they learn the same to the bit; steered, every sample is in the model
exactly once, whoever is killed.

`make adapters` installs the frameworks and runs this; without them it is skipped.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import antdt
import pytest
import torch
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.topics import STEPS
from antdt_streams.chaos.judge import judge_log
from antdt_streams.kafka.reader import TopicReader, decoded
from antdt_streams.local.services import environment_of
from torch import nn
from torch.utils.data import TensorDataset

from tests.helpers.framework_loops import Net, Numbers
from tests.helpers.job_processes import job_processes

PAGE = (Path(__file__).parents[2] / "docs" / "FRAMEWORKS.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python ([^\n]+)\n(.*?)^```", PAGE, re.M | re.S))
LOOPS = Path(__file__).parents[1] / "helpers" / "framework_loops.py"
NEEDS = {"hf": "transformers", "lightning": "lightning", "accelerate": "accelerate"}
pytestmark = [pytest.mark.kafka, pytest.mark.adapters, pytest.mark.timeout(600)]


@pytest.fixture(params=NEEDS)
def framework(request: pytest.FixtureRequest) -> str:
    """Its name here, where it is installed."""
    name: str = request.param
    if find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed: `make adapters` installs it, and runs this test")
    return name


def losses(framework: str, how: str, environ: dict[str, str]) -> list[str]:
    """Of one process, to the bit."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTDT_")}
    done = subprocess.run(
        [sys.executable, str(LOOPS), framework, how],
        env=plain | environ, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return next(line for line in done.stdout.splitlines() if line.startswith("losses")).split()[1:]


def test_a_framework_that_is_watched_learns_the_same(
    framework: str, connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as one:
        watched = losses(framework, "watched", environment_of(connection, one.place) | {"ANTDT_JOB": job})
        assert watched == losses(framework, "plain", {})
        with TopicReader(connection, job, STEPS) as reader:
            told = [record for _, record in decoded(reader.to_end(), records.StepBatch)]
        assert [size for step in told for size in step.batch_size] == [24] * len(watched) == [24] * 20
        assert told[-1].lineage, "its order is known"
        assert "Numbers[240] in batches of 24" in told[-1].order


@pytest.mark.parametrize("block", ["hf watched", "hf steered", "lightning steered", "accelerate steered"])
def test_the_page_runs(block: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = block.split(maxsplit=1)[0]
    if find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed: `make adapters` installs it, and runs this test")
    for variable in [variable for variable in os.environ if variable.startswith("ANTDT_")]:
        monkeypatch.delenv(variable)  # nothing speaks of a job: agents train alone
    monkeypatch.chdir(tmp_path)
    names = PREPARE[name]()
    before = [param.detach().clone() for param in names["model"].parameters()]
    exec(BLOCKS[block], names)
    assert not any(torch.equal(a, b) for a, b in zip(before, names["model"].parameters(), strict=True))


def prepare_hf() -> dict[str, Any]:
    """What a script has before the block."""
    from transformers import Trainer, TrainingArguments

    class Model(Net):
        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            out = super().forward(input_ids)
            return {"loss": nn.functional.cross_entropy(out, labels), "logits": out}

    args = TrainingArguments("out", num_train_epochs=2, use_cpu=True, report_to=[], save_strategy="no")
    return {"antdt": antdt, "Trainer": Trainer, "model": Model(), "args": args, "dataset": Numbers()}


def prepare_lightning() -> dict[str, Any]:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch["input_ids"]), batch["labels"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.5)

    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    module = Module()
    words = {"antdt": antdt, "Trainer": pl.Trainer, "dataset": Numbers(), "settings": settings}
    return words | {"module": module, "model": module}


def prepare_accelerate() -> dict[str, Any]:
    from accelerate import Accelerator

    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)
    data = TensorDataset(torch.randn(64, 4), torch.randint(0, 2, (64,)))
    words = {"antdt": antdt, "torch": torch, "Accelerator": lambda: Accelerator(cpu=True), "dataset": data}
    words["loss_function"] = nn.functional.cross_entropy
    return words | {"model": model, "optimizer": optimizer, "scheduler": scheduler}


PREPARE = {"hf": prepare_hf, "lightning": prepare_lightning, "accelerate": prepare_accelerate}


def test_a_framework_that_is_steered_trains_every_sample_once_whoever_is_killed(
    framework: str, connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as one:
        said = framework, "steered", "--epochs", "4", "--delay-ms", "4"
        launcher = one.launch(2, script=(str(LOOPS), *said))
        one.until_committed(7)
        os.kill(one.workers_of(launcher)[1], signal.SIGKILL)
        one.until_committed(15)
        for pid in one.workers_of(launcher):  # and now all of them, in the middle of the second epoch
            os.kill(pid, signal.SIGKILL)
        one.ended(launcher)
        report, wrong = judge_log(one.entries())
        assert not wrong
        assert report["verdict"] == "EXACTLY ONCE. Each of 240 samples in each of 4 epochs (960)."
        joined = [event.worker for event in one.events() if isinstance(event, records.Joined)]
        assert joined.count("w0") >= 2
        assert joined.count("w1") >= 2
