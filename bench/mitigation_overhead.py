"""What a step of the whole apparatus costs against plain DistributedDataParallel, paired, in one job of two workers.

After each step by the Agent (from the end of the one before to its own end: the next batch, the plan, the reduction,
telemetry, with ledger, Monitor and Controller at work) each worker makes the same step by DDP, on the same processes,
with samples that it picks out of tensors at hand; and beside the pair it takes them from torch's DataLoader, as scripts
do, which is what the Agent's part of fetching stands in for (`loader_ms`: by how much that is slower, in the main
thread, without a process of its own; `difference_loaded_ms`: the difference to such a loop).
Of both a part is time asleep, in place of an accelerator. Processor time is the whole process', threads included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Any

from antdt_schemas.connection import Connection
from antdt_streams.host.child import end, spawn
from antdt_streams.kafka import topics_admin
from antdt_streams.local.place import Place
from antdt_streams.local.services import SERVICES, environment_of, start_services
from antdt_streams.local.supervise import last_words

from bench.common import quartiles

ROOT = Path(__file__).parents[1]
WORKERS, BATCH_SIZE, WARM_UP_STEPS, WITHIN_S = 2, 16, 20, 600.0
STEPS = {100: 200, 10: 600}  # by the milliseconds asleep


def overhead(connection: Connection, folder: Path) -> dict[str, Any]:
    """Milliseconds: of a step of 100 ms, and under `at_10_ms` of one of 10 ms."""
    found = {target: _measured(connection, folder, target) for target in STEPS}
    return {**found[100], "at_10_ms": found[10]}


def _measured(connection: Connection, folder: Path, target_ms: int) -> dict[str, Any]:
    job = f"overhead-{os.getpid()}-{target_ms}"
    place = Place(connection, True, folder / job, None)
    place.data.mkdir(parents=True)
    result, log = place.data / "result.json", place.data / "workers.log"
    topics_admin.create(connection, job)
    supervisor = start_services(job, place, connection, SERVICES)
    environ = dict(os.environ) | environment_of(connection, place)
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "antdt.launch", "--job", job, "-n", str(WORKERS), "--torch-env"]
    command += ["--", "-m", "bench.mitigation_overhead", "--target-ms", str(target_ms), "--result", str(result)]
    try:
        assert supervisor.await_ready(120.0, threading.Event())
        with log.open("ab") as out:
            process = spawn(
                command, env=environ, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            code = process.wait(WITHIN_S)
        finally:
            end(process, 10.0)
    finally:
        supervisor.stop()
    if code != 0:
        raise SystemExit(f"The workers ended with status {code}: {last_words(log, 20)}")
    topics_admin.delete(connection, job)
    rows = json.loads(result.read_text())
    ms = {name: [1000 * row[name] for row in rows] for name in rows[0]}
    difference = quartiles([a - b for a, b in zip(ms["step"], ms["ddp"], strict=True)], 3)
    loaded = quartiles([a - b - c for a, b, c in zip(ms["step"], ms["ddp"], ms["loader"], strict=True)], 3)
    cpu = quartiles([a - b for a, b in zip(ms["step_cpu"], ms["ddp_cpu"], strict=True)], 3)
    return {
        "target_ms": target_ms, "pairs": len(rows),
        "step_ms": quartiles(ms["step"], 3)["median"],
        "ddp_ms": quartiles(ms["ddp"], 3)["median"],
        "difference_ms": difference["median"], "q1": difference["q1"], "q3": difference["q3"],
        "loader_ms": quartiles(ms["loader"], 3)["median"],
        "difference_loaded_ms": loaded["median"], "loaded_q1": loaded["q1"], "loaded_q3": loaded["q3"],
        "cpu_difference_ms": cpu["median"], "cpu_q1": cpu["q1"], "cpu_q3": cpu["q3"],
    }  # fmt: skip


def main() -> None:
    """A worker."""
    import antdt
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, TensorDataset

    parser = argparse.ArgumentParser()
    parser.add_argument("--target-ms", type=int, required=True)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, count = distributed.get_rank(), WARM_UP_STEPS + STEPS[options.target_ms]

    def made() -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
        return model, torch.optim.SGD(model.parameters(), lr=0.01)

    def loss_of(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        sleep(options.target_ms / 1000)
        return torch.nn.functional.cross_entropy(model(x), y)

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(count * BATCH_SIZE, 64), torch.randint(0, 10, (count * BATCH_SIZE,)))
    model, optimizer = made()
    agent = antdt.Agent(model, optimizer, data, batch_size=BATCH_SIZE)
    plain, plain_optimizer = made()
    wrapped = DistributedDataParallel(plain)
    own = range(rank * BATCH_SIZE // WORKERS, (rank + 1) * BATCH_SIZE // WORKERS)
    indices = [[step * BATCH_SIZE + i for i in own] for step in range(count)]
    loader = iter(DataLoader(data, batch_sampler=indices))
    rows = []
    before_s, before_cpu_s = perf_counter(), process_time()
    for step, (x, y) in enumerate(agent):
        agent.step(loss_of(model, x, y))
        middle_s, middle_cpu_s = perf_counter(), process_time()
        batch = [t[indices[step]] for t in data.tensors]
        picked_s = perf_counter()
        loss = loss_of(wrapped, *batch)
        plain_optimizer.zero_grad()
        loss.backward()
        plain_optimizer.step()
        after_s, after_cpu_s = perf_counter(), process_time()
        next(loader)
        loaded_s = perf_counter() - after_s
        rows.append(
            {
                "step": middle_s - before_s, "ddp": after_s - middle_s, "loader": loaded_s - (picked_s - middle_s),
                "step_cpu": middle_cpu_s - before_cpu_s, "ddp_cpu": after_cpu_s - middle_cpu_s,
            }
        )  # fmt: skip
        before_s, before_cpu_s = perf_counter(), process_time()
    if rank == 0:
        options.result.write_text(json.dumps(rows[WARM_UP_STEPS:]))


if __name__ == "__main__":
    main()
