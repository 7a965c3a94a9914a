"""A training script on a Kafka topic, which writes down the records that it trained on: what tests launch.

A value is a number; "poison" cannot be decoded, and a tombstone is no sample.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import antdt
import torch
from antdt.agent import AgentOptions
from antdt.examples.recorded import Record


def decode(record: antdt.Record) -> Any:
    """(features, name of the record)."""
    if record.value is None:
        return None
    assert record.timestamp_ms is not None and dict(record.headers)["unit"] == b"cm", record
    return torch.full((4,), float(record.value) % 100 / 100), record.name


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--mended", action="store_true")
    parser.add_argument("--growing", action="store_true")
    parser.add_argument("--cache-mb", type=int, default=64)
    parser.add_argument("--step-s", type=float, default=0.0)
    options = parser.parse_args()
    torch.manual_seed(0)

    def mended(record: antdt.Record) -> Any:
        return decode(record._replace(value=b"1") if record.value == b"poison" else record)

    torch.set_num_threads(1)
    model = torch.nn.Linear(4, 1)
    agent = antdt.Agent(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        antdt.Topic(
            options.topic, mended if options.mended else decode, bounded=not options.growing, cache_mb=options.cache_mb
        ),
        batch_size=options.batch_size,
        epochs=options.epochs,
        options=AgentOptions(checkpoint_every_steps=5),
    )
    record = Record(options.record, os.environ["ANTDT_WORKER"])
    for x, names in agent:
        record.write(step=agent.step_number + 1, samples=list(names))
        time.sleep(options.step_s)
        if agent.step(model(x).square().mean()):
            record.write(step=agent.step_number, lineage=agent.lineage)


if __name__ == "__main__":
    main()
