"""What the Agent costs a step of the worker's own thread, without the collective.

`python -m bench.agent --json FILE`. A real Agent with a real broker and a real ledger, one worker: nothing is reduced.
Every step is followed by the same step of a plain PyTorch loop in the same thread. `agent_us` adds up, step by step,
    next      from the end of agent.step() to the next batch, without fetching it: the plan, taking samples, announcing
    step      agent.step() without backward and optimizer: weighing, lineage, accounting, telemetry
    hooks     backward of the Agent's loss less that of the plain loop's: hooks, and the weight
and `difference_us` is the whole of both loops subtracted, which holds the Agent's data path as well and is noisier.
`rows_us` is what a member of four does more than one alone, apart from the collective: its row packed, four unpacked.

All of it once by the time of the thread on a processor (cpu), which other load changes little, and once by the wall
clock, which includes waiting for the interpreter: the connection's thread wants it as well.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import torch
from antdt.agent import Agent
from antdt.connect.settings import Settings
from antdt.strategies.allreduce.composition import ROW_WIDTH, Round, Row
from antdt.strategies.allreduce.rows import Rows, digits_in
from antdt_schemas.connection import Connection
from antdt_schemas.lineage import ROOT
from antdt_schemas.ranges import Range
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.kafka import topics_admin
from torch.utils.data import TensorDataset

from bench.common import machine, quartiles, write
from bench.shard_clients import ledger_process

JOB = "bench-agent"
BATCH_SIZE = 64
WARM_UP_STEPS = 200
CLOCKS: dict[str, Callable[[], float]] = {"cpu": thread_time, "wall": perf_counter}


def model_of() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Small, so that the rest can be seen."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def loss_of(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean squared error."""
    return torch.nn.functional.mse_loss(model(x), y)


class Stopwatch:
    """Seconds spent in chosen methods since they were last asked for."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.spent_s: dict[str, float] = {}

    def timed(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed under a name."""

        def call(*args: Any, **words: Any) -> Any:
            before_s = self.clock()
            try:
                return act(*args, **words)
            finally:
                self.spent_s[name] = self.spent_s.get(name, 0.0) + self.clock() - before_s

        return call

    def take(self, name: str) -> float:
        """Seconds under this name since the last call."""
        return self.spent_s.pop(name, 0.0)


class Plain:
    """The same step without an Agent: a seeded order, a batch by index, backward, optimizer."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.model, self.optimizer = model_of()
        self.tensors = dataset.tensors
        self.order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
        self.at = 0

    def step(self) -> None:
        """One step."""
        if self.at + BATCH_SIZE > len(self.order):
            self.at = 0
        index = self.order[self.at : self.at + BATCH_SIZE]
        self.at += BATCH_SIZE
        x, y = [t[index] for t in self.tensors]
        loss = loss_of(self.model, x, y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def train(connection: Connection, folder: Path, steps: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Microseconds of every step."""
    dataset = TensorDataset(torch.randn(steps * BATCH_SIZE, 20), torch.randn(steps * BATCH_SIZE, 1))
    environ = {"ANTDT_JOB": JOB, "ANTDT_DATA": str(folder), "ANTDT_KAFKA_BOOTSTRAP_SERVERS": connection.bootstrap}
    model, optimizer = model_of()
    plain, watch, rows = Plain(dataset), Stopwatch(clock), list[tuple[float, ...]]()
    # What is not the Agent's own is timed, to be left out; its optimizer is wrapped before it looks at it.
    optimizer.step = watch.timed("optimizer", optimizer.step)  # type: ignore[method-assign]
    agent = Agent(model, optimizer, dataset, batch_size=BATCH_SIZE, settings=Settings.of(environ))
    agent.source.fetch = watch.timed("fetch", agent.source.fetch)  # type: ignore[method-assign]
    backward = torch.Tensor.backward
    torch.Tensor.backward = watch.timed("backward", backward)  # type: ignore[method-assign,assignment]
    try:
        batches = iter(agent)
        started = clock()
        while (batch := next(batches, None)) is not None:
            taken = clock()
            next_s = taken - started - watch.take("fetch")
            loss = loss_of(model, *batch)
            computed = clock()
            agent.step(loss)
            ended = clock()
            backward_s = watch.take("backward")
            step_s = ended - computed - backward_s - watch.take("optimizer")
            before = clock()
            plain.step()
            plain_s, hooks_s = clock() - before, backward_s - watch.take("backward")
            rows.append((next_s, step_s, hooks_s, ended - started - plain_s, plain_s))
            started = clock()
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
    names = "next", "step", "hooks", "difference", "plain"
    return {
        name: [v * 1e6 for v in column]
        for name, column in zip(names, zip(*rows[WARM_UP_STEPS:], strict=True), strict=True)
    }


def rows_us(clock: Callable[[], float], members: int = 4, repetitions: int = 2_000) -> list[float]:
    """Microseconds of one row out, and everybody's in."""
    rows = [
        Row(samples=64, plan_seen=1, plan=1, lineage=ROOT, step=9, reference=256, ranges=(Range(r, -r, 0, r * 64, 64),))
        for r in range(members)
    ]
    own = Rows(torch.zeros(members, digits_in(ROW_WIDTH, torch.float32)), ROW_WIDTH)
    heard = torch.zeros_like(own.within)
    for rank, row in enumerate(rows):
        own.put(rank, row.pack())
        heard += own.within
    out = []
    for _ in range(repetitions):
        before = clock()
        own.put(0, rows[0].pack())
        own.within.copy_(heard)  # in place of the sum
        Round.of([Row.unpack(columns) for columns in own.all()])
        out.append((clock() - before) * 1e6)
    return out


def measure(steps: int) -> dict[str, Any]:
    """Everything, by both clocks."""
    torch.set_num_threads(1)
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, EmbeddedBroker(Path(scratch) / "broker") as broker:
        for name, clock in CLOCKS.items():
            folder = Path(scratch) / name
            topics_admin.create(broker.connection, JOB)
            with ledger_process(broker.connection, JOB, folder / "ledger"):
                found = train(broker.connection, folder, steps, clock)
            topics_admin.delete(broker.connection, JOB)
            found["agent"] = [sum(parts) for parts in zip(found["next"], found["step"], found["hooks"], strict=True)]
            found["rows"] = rows_us(clock)
            out[name] = {f"{part}_us": quartiles(values, 1) for part, values in found.items()}
    return {"agent_us": out["cpu"]["agent_us"]["median"], **out, "steps": steps, "machine": machine()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--steps", type=int, default=3_000)
    options = parser.parse_args()
    results = measure(options.steps)
    for clock in CLOCKS:
        for part, r in results[clock].items():
            print(f"{clock:<5} {part:<14} {r['median']:>8.1f} [{r['q1']:.1f} to {r['q3']:.1f}]")
    write(options.json, results)


if __name__ == "__main__":
    main()
