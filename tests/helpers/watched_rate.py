"""A training script that writes down which learning rate each of its steps was really made by: what tests launch.

Its scheduler multiplies the present rate, so it would carry on whatever it finds there.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import antdt
import torch
from antdt.agent import AgentOptions
from antdt.examples.recorded import Record
from torch import nn

RATE, GAMMA = 0.1, 0.99


def rates() -> Iterator[float]:
    """Of the script and its scheduler, from the first step on."""
    rate = RATE
    while True:
        yield rate
        rate *= GAMMA


class Watched(torch.optim.SGD):  # type: ignore[misc]
    """Tells the rate that it steps by."""

    def step(self, closure: Any = None) -> Any:
        self.tell(self.param_groups[0]["lr"])
        return super().step(closure)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--delay-ms", type=float)
    options = parser.parse_args()
    torch.manual_seed(0)
    record = Record(options.record, os.environ["ANTDT_WORKER"])
    model = nn.Linear(4, 1)
    optimizer = Watched(model.parameters(), lr=RATE)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, GAMMA)
    x = torch.rand(options.samples, 4)
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    agent = antdt.Agent(
        model,
        optimizer,
        data,
        batch_size=options.batch_size,
        epochs=options.epochs,
        scheduler=scheduler,
        options=AgentOptions(checkpoint_every_steps=20),
    )
    optimizer.tell = lambda rate: record.write(step=agent.step_number + 1, rate=rate)
    for features, target in agent:
        time.sleep(options.delay_ms / 1000 * len(features))
        agent.step(nn.functional.mse_loss(model(features), target))


if __name__ == "__main__":
    main()
