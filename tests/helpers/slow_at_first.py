"""A training script one of whose workers is slow up to some step, and well from then on: what tests launch."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import antdt
import torch
from antdt.examples.recorded import Record
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset


def main() -> None:
    """Train, and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--delay-ms", type=float)
    parser.add_argument("--slow", help="WORKER:FACTOR:STEP")
    options = parser.parse_args()
    torch.manual_seed(0)
    worker = os.environ["ANTDT_WORKER"]
    who, factor, until = options.slow.split(":")
    model = nn.Linear(4, 3)
    x = torch.rand(options.samples, 4)
    data = TensorDataset(x, x.argmax(1) % 3, torch.arange(options.samples))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    agent = antdt.Agent(model, optimizer, data, batch_size=options.batch_size, epochs=options.epochs)
    record = Record(options.record, worker)
    for features, target, numbers in agent:
        slow = worker == who and agent.step_number < int(until)
        time.sleep(options.delay_ms / 1000 * len(features) * (float(factor) if slow else 1.0))
        record.write(step=agent.step_number + 1, samples=numbers.tolist())
        if agent.step(functional.cross_entropy(model(features), target)):
            record.write(step=agent.step_number, lineage=agent.lineage)


if __name__ == "__main__":
    main()
