"""Scripts as people have them, with real workers: what they hand over, and how they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import antdt
import pytest
import torch
from antdt.data.sampling import Drawn
from antdt.weights import labels_of
from antdt_schemas.connection import Connection
from antdt_streams.local.services import environment_of
from antdt_streams.views.job import audit_of

from tests.helpers import loaded
from tests.helpers.job_processes import job_processes

pytestmark = pytest.mark.kafka
SCRIPT = (loaded.__file__,)


def seen(folder: Path) -> Counter[int]:
    """Samples of all steps of all workers."""
    return Counter(int(n) for path in folder.glob("record-*") for n in path.read_text(encoding="utf-8").split())


def expected(kind: str) -> Counter[int]:
    """By a plain loop over a DataLoader, with the sampler's random numbers of each epoch."""
    if kind not in ("weighted", "function"):
        return Counter(list(range(loaded.SIZE)) * loaded.EPOCHS)
    sampler, seed = (loaded.weighted(), 9) if kind == "weighted" else (loaded.by_function, 0)
    drawn = Drawn(sampler, seed=seed, samples=loaded.SIZE, epochs=loaded.EPOCHS)
    lists = [drawn.list_of(epoch).tolist() for epoch in range(loaded.EPOCHS)]
    plain = [torch.utils.data.DataLoader(loaded.DATA, 24, sampler=one) for one in lists]
    return Counter(int(n) for loader in plain for numbers, _, _ in loader for n in numbers)


@pytest.mark.parametrize(("kind", "workers"), [("loader", 3), ("weighted", 3), ("stream", 2), ("function", 1)])
def test_all_workers_together_train_on_what_a_plain_loop_has(
    connection: Connection, job: str, tmp_path: Path, kind: str, workers: int
) -> None:
    with job_processes(connection, job, tmp_path) as run:
        run.ended(run.launch(workers, "--kind", kind, script=SCRIPT))
        assert audit_of(connection, job)["exactly_once"]
    assert seen(tmp_path) == expected(kind)
    said, steps = run.output.read_text(), audit_of(connection, job)["steps"]
    assert (said.count("saved True"), said.count("saved False")) == (1, workers - 1)
    assert labels_of(tmp_path / f"{job}.safetensors")["antdt.step"] == str(steps)
    antdt.load_model(tmp_path / f"{job}.safetensors", torch.nn.Linear(4, 1))
    assert ("The DataLoader is taken apart: a step has 24 samples" in said) == (kind in ("loader", "weighted"))


def test_a_script_has_a_group_of_its_own_where_it_asks_for_torchs_names(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as run:
        inherited = {"RANK": "7", "MASTER_ADDR": "", "WORLD_SIZE": "9"}
        options = ("--kind", "function", "--group")
        run.ended(run.launch(2, *options, script=SCRIPT, launcher=("--torch-env",), environ=inherited))
        assert audit_of(connection, job)["exactly_once"] and seen(tmp_path) == expected("function")
        run.ended(run.launch(2, "--kind", "function", script=SCRIPT, environ=inherited))
    said = run.output.read_text()
    assert said.count("a group of 2") == 2 and said.count("without []") == 2, "what is inherited is none of theirs"


def test_one_process_trains_one_job_after_the_other(connection: Connection, job: str, tmp_path: Path) -> None:
    other = f"b{job[:30]}"
    with job_processes(connection, job, tmp_path) as run, job_processes(connection, other, tmp_path):
        run.ended(run.launch(2, "--kind", "loader", "--then", other, script=SCRIPT))
        for name in (job, other):
            report = audit_of(connection, name)
            assert report["exactly_once"] and report["committed"] == loaded.SIZE * loaded.EPOCHS
    assert seen(tmp_path) == expected("loader") + expected("loader")


@pytest.mark.dear
def test_workers_that_torchrun_has_started_are_those_of_the_job(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path) as run:
        environ = dict(os.environ) | environment_of(connection, run.place) | {"ANTDT_JOB": job}
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
        command += [*SCRIPT, "--record", str(run.record), "--kind", "loader"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        report = audit_of(connection, job)
    assert report["exactly_once"] and report["committed"] == loaded.SIZE * loaded.EPOCHS
    assert seen(tmp_path) == expected("loader")
    assert {path.name.split("-")[1] for path in tmp_path.glob("record-*")} == {"w0", "w1"}
