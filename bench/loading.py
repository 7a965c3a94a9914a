"""What data processes are good for: the time of a step over a data set whose samples take time.

`python -m bench.loading --json FILE`. One worker, a real broker and a real ledger, batches of 32 samples of 48 KB, a
model that computes for some tens of milliseconds. Getting a sample takes nothing, 2 ms of the processor, or 2 ms of
waiting; with 0, 1 and 2 data processes. Beside each, the same in a plain PyTorch loop over a DataLoader with as many
workers. Every run is a process of its own, forked from one that has imported torch, as `antdt launch` does it; all
kinds of runs take turns, as often as --repetitions says. A figure is the median over the repetitions of each run's mean
step (batches of several processes come in bursts, so single steps say little), with the least and the greatest.

Two cores are two cores: where samples cost the processor, two processes and the loop share them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.kafka import topics_admin
from torch.utils.data import DataLoader, Dataset

from bench.common import machine, spread, write
from bench.shard_clients import WAIT_S, Pipe, ledger_process, receive

BATCH_SIZE = 32
COST_S = 0.002
WARM_UP_STEPS = 6
COSTS = ("nothing", "processor", "waiting")
LOOPS = ("agent", "dataloader")
WORKERS = (0, 1, 2)
JOB = "bench-loading"
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["torch._dynamo", "antdt.agent", "bench.shard_clients"])


class Costly(Dataset[Any]):
    """Samples of 48 KB that take their time."""

    def __init__(self, size: int, cost: str) -> None:
        self.size, self.cost = size, cost

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        if self.cost == "processor":
            until = time.thread_time() + COST_S
            while time.thread_time() < until:
                pass
        elif self.cost == "waiting":
            time.sleep(COST_S)
        return torch.full((3, 64, 64), index / self.size), index % 10


def batches(loop: str, dataset: Costly, workers: int, model: torch.nn.Module, optimizer: Any) -> Iterator[Any]:
    """(x, y, a function that makes the step of a loss)."""
    if loop == "agent":
        from antdt.agent import Agent

        agent = Agent(model, optimizer, dataset, batch_size=BATCH_SIZE, num_workers=workers)
        for x, y in agent:
            yield x, y, agent.step
        return

    def step(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for x, y in DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=workers):
        yield x, y, step


def one_run(loop: str, cost: str, workers: int, steps: int) -> list[float]:
    """Milliseconds of every full step, from the end of the one before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 256), torch.nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    out, before = [], time.perf_counter()
    for x, y, step in batches(loop, Costly(steps * BATCH_SIZE, cost), workers, model, optimizer):
        step(torch.nn.functional.cross_entropy(model(x), y))
        now = time.perf_counter()
        if len(y) == BATCH_SIZE:
            out.append((now - before) * 1e3)
        before = now
    return out[WARM_UP_STEPS:]


def in_a_process(environ: dict[str, str], loop: str, cost: str, workers: int, steps: int) -> list[float]:
    """The same, in a process that has nothing else."""
    mine, theirs = WARM.Pipe(duplex=False)
    process = WARM.Process(target=_run, args=(theirs, environ, loop, cost, workers, steps))
    process.start()
    theirs.close()
    try:
        return list(receive(mine))
    finally:
        process.join(WAIT_S)
        process.kill()


def _run(pipe: Pipe, environ: dict[str, str], loop: str, cost: str, workers: int, steps: int) -> None:
    os.environ.update(environ)
    multiprocessing.set_start_method("fork", force=True)  # for data processes, as in a script of one's own
    pipe.send(one_run(loop, cost, workers, steps))


def measure(steps: int, repetitions: int) -> dict[str, Any]:
    """All of them in turn, again and again."""
    found: dict[tuple[str, str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch, EmbeddedBroker(Path(scratch) / "broker") as broker:
        for repetition in range(repetitions):
            for cost in COSTS:
                for workers in WORKERS:
                    for loop in LOOPS:
                        name = f"{JOB}-{cost}-{workers}-{repetition}"
                        folder = Path(scratch) / name
                        environ = {
                            "ANTDT_JOB": name,
                            "ANTDT_DATA": str(folder),
                            "ANTDT_KAFKA_BOOTSTRAP_SERVERS": broker.connection.bootstrap,
                        }
                        run = loop, cost, workers, steps
                        if loop == "agent":
                            topics_admin.create(broker.connection, name)
                            with ledger_process(broker.connection, name, folder / "ledger", WARM):
                                times = in_a_process(environ, *run)
                            topics_admin.delete(broker.connection, name)
                        else:
                            times = in_a_process(environ, *run)
                        found.setdefault((cost, loop, workers), []).append(statistics.mean(times))
    return {
        cost: {loop: {str(n): spread(found[cost, loop, n]) for n in WORKERS} for loop in LOOPS} for cost in COSTS
    } | {"steps": steps, "machine": machine()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    results = measure(options.steps, options.repetitions)
    for cost in COSTS:
        for loop in LOOPS:
            for n in WORKERS:
                r = results[cost][loop][str(n)]
                print(f"{cost:<10} {loop:<11} {n} processes {r['median']:>7.1f} ms [{r['min']} to {r['max']}]")
    write(options.json, results)


if __name__ == "__main__":
    main()
