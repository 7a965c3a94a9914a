"""A training script whose model counts its own samples: what tests launch on parameter servers.

Each sample adds to a row of its own in a table, with learning rate 1 and plain SGD: so the final model itself says how
often each was in it, whatever the log says. What one adds is 1 over the contributions of its version under bsp, and the
size of its contribution over an even share under asp and ssp (`expected`).

Lines of JSON in --record say what each worker was told: the version that its contribution is in, and its lineage.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import antdt
import torch
from antdt.agent import AgentOptions
from antdt.examples.recorded import Record
from antdt_schemas import records
from antdt_schemas.order import Permutation
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

FEATURES, CLASSES = 8, 3
FOR_EVER_S = 3600


class Tallied(nn.Module):
    """A linear model, and a row for each sample."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.tally = antdt.Embedding(samples, 1, std=0.0)
        self.linear = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, CLASSES), and rows (n, 1)."""
        return self.linear(x), self.tally(numbers)


def main() -> None:
    """Train; w0 writes the tally to --result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--samples", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="time a sample takes")
    parser.add_argument("--slow", default="", help="WORKER:FACTOR")
    parser.add_argument("--mode", default="bsp")
    parser.add_argument("--backup", type=int, default=0)
    parser.add_argument("--staleness", type=int, default=3)
    parser.add_argument("--sharding", default="")
    parser.add_argument("--late", default="recompute")
    parser.add_argument("--checkpoint-every", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1, help="of the first weights")
    parser.add_argument("--join-timeout", type=float, default=600.0, help="seconds to wait for the others")
    parser.add_argument("--unreachable", type=float, default=60.0, help="seconds without a server that goes on")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    worker = os.environ.get("ANTDT_WORKER", "w0")
    slow, _, factor = options.slow.partition(":")
    delay_s = options.delay_ms / 1000 * (float(factor) if slow == worker else 1.0)

    torch.set_num_threads(1)
    torch.manual_seed(1)
    x, y = torch.randn(options.samples, FEATURES), torch.arange(options.samples) % CLASSES
    torch.manual_seed(options.seed)
    model = Tallied(options.samples)
    optimizer = torch.optim.SGD(
        [{"params": model.tally.parameters(), "lr": 1.0}, {"params": model.linear.parameters(), "lr": options.lr}]
    )
    agent = antdt.Agent(
        model,
        optimizer,
        TensorDataset(x, y, torch.arange(options.samples)),
        batch_size=options.batch_size,
        epochs=options.epochs,
        options=AgentOptions(
            checkpoint_every_steps=options.checkpoint_every, max_attempts=1000, join_timeout_s=options.join_timeout
        ),
        strategy=antdt.ParameterServer(
            options.mode,
            options.staleness,
            options.backup,
            options.sharding,
            options.late,
            unreachable_s=options.unreachable,
        ),
    )
    record = Record(options.record, worker)
    (options.record / f"{worker}.pid").write_text(str(os.getpid()))
    signal.signal(signal.SIGUSR1, lambda *_: time.sleep(FOR_EVER_S))  # as a server hangs that is not dead
    for features, labels, numbers in agent:
        time.sleep(delay_s * len(labels))
        logits, rows = model(features, numbers)
        loss = functional.cross_entropy(logits, labels) - rows.sum()
        if agent.step(loss, weight=1):
            record.write(step=agent.step_number, lineage=agent.lineage, samples=len(labels))
    if options.result is not None and worker == "w0":
        found = {"steps": agent.step_number, "lineage": agent.lineage, "tally": model.tally.weight.flatten().tolist()}
        rows: Any = agent.strategy
        found["held"], found["asked"] = rows._looked_up.held, rows._looked_up.asked
        options.result.write_text(json.dumps(found))


def expected(events: Iterable[records.Event], spec: records.JobSpec) -> list[float]:
    """What the log says that each row of the final model holds."""
    owners: dict[int, str] = {}
    versions: dict[int, Mapping[str, Any]] = {}
    for event in events:
        if isinstance(event, records.Leased):
            owners |= {event.lease + at: event.incarnation for at in range(event.shards)}
        elif isinstance(event, records.RolledBack):
            versions = {step: made for step, made in versions.items() if step <= event.step}
        elif isinstance(event, records.Committed):
            made: dict[str, list[int]] = {}
            for i in range(0, len(event.ranges), 4):
                lease, epoch, start, length = event.ranges[i : i + 4]
                order = Permutation.of(spec.seed, epoch, spec.samples)
                made.setdefault(owners[lease], []).extend(order(start + at) for at in range(length))
            versions[event.step] = made
    return _added(versions, spec)


def _added(versions: Mapping[int, Mapping[str, Any]], spec: records.JobSpec) -> list[float]:
    tally = [0.0] * spec.samples
    for made in versions.values():
        for incarnation, samples in made.items():
            rank = int(incarnation.partition(".")[0].removeprefix("w"))
            base, more = divmod(spec.batch_size, spec.workers_min)
            even = base + (rank % spec.workers_min < more)
            adds = 1 / len(made) if spec.strategy.startswith("ps-bsp") else len(samples) / even
            for sample in samples:
                tally[sample] += adds
    return tally


if __name__ == "__main__":
    main()
