"""Workers that are not alike, on handwritten digits: devices of other speed and memory, and one that falls ill.

    antdt launch --job JOB -n 4 -- -m antdt.examples.unlike --slow w1:3@0.25

What `antdt demo --scene restart` and `--scene dd` start. The time of a sample is spent asleep, which stands in for an
accelerator.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

import antdt
from antdt.examples.digits import accuracy, load, network

LEARNING_RATE = 2.5e-3


@dataclass(frozen=True)
class Device:
    """factor: how many times as long a sample takes, from a share of the run on (`since`); one that falls ill later is
    well again in its next life. holds: samples of a micro-batch; 0: all.
    """

    factor: float = 1.0
    since: float = 0.0
    holds: int = 0

    def factor_at(self, done: float, life: int) -> float:
        ill = done >= self.since and (life == 0 or not self.since)
        return self.factor if ill else 1.0


def device_of(worker: str, slow: str, holds: str) -> Device:
    """As `--slow WORKER:FACTOR[@SHARE],...` and `--holds WORKER:SAMPLES,...` say."""
    speeds = dict(part.split(":") for part in filter(None, slow.split(",")))
    limits = dict(part.split(":") for part in filter(None, holds.split(",")))
    factor, _, since = speeds.get(worker, "1").partition("@")
    return Device(float(factor), float(since or 0.0), int(limits.get(worker, 0)))


def main(argv: list[str] | None = None) -> None:
    """Train; the first rank writes what came out to --result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, or mnist:DIR")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128, help="global batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=4.0, help="time a sample takes")
    parser.add_argument("--overhead-ms", type=float, default=0.0, help="time a micro-batch takes beside")
    parser.add_argument("--slow", default="", help="WORKER:FACTOR[@SHARE],...: from that share of the run on")
    parser.add_argument("--holds", default="", help="WORKER:SAMPLES,...: of a micro-batch")
    parser.add_argument("--result", type=Path, help="JSON file with the accuracy")
    options = parser.parse_args(argv)

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    train, test = load(options.data)
    model = network(train.tensors[0].shape[-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    device = device_of(os.environ.get("ANTDT_WORKER", ""), options.slow, options.holds)
    life = int(os.environ.get("ANTDT_INCARNATION", "w.0.l").split(".")[-2])
    agent = antdt.Agent(
        model,
        optimizer,
        train,
        batch_size=options.batch_size,
        epochs=options.epochs,
        seed=options.seed,
        options=antdt.AgentOptions(batch_size_max=device.holds),
    )
    steps = max(1, len(train) * options.epochs // options.batch_size)
    for x, y in agent:
        began_s = time.monotonic()
        loss = functional.cross_entropy(model(x), y)
        ms = options.overhead_ms + options.delay_ms * len(y)
        until_s = began_s + device.factor_at(agent.step_number / steps, life) * ms / 1000
        time.sleep(max(0.0, until_s - time.monotonic()))
        agent.step(loss)

    if options.result is not None and agent.settings.rank == 0:
        options.result.write_text(json.dumps({"accuracy": accuracy(model, test), "steps": agent.step_number}))


if __name__ == "__main__":
    main()
