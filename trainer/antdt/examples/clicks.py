"""A small model of who clicks on what, trained on the events of a Kafka topic.

    python -m antdt.examples.clicks --topic clicks --write 20000      events into a new topic of three partitions
    antdt launch --job JOB -n 2 -- -m antdt.examples.clicks --topic clicks

With --growing the job goes on with whatever is written to the topic later, until `antdt end JOB --reason …`. With
--mode asp (or bsp, ssp) its tables lie on parameter servers:

    antdt launch --job JOB -n 2 --servers 2 -- -m antdt.examples.clicks --topic clicks --mode asp
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from antdt_schemas.connection import Connection, names_a_broker
from antdt_schemas.data_folder import BROKER, data_folder, running
from torch import nn
from torch.nn import functional

import antdt

USERS, ADS, HOURS = 400, 60, 24
WIDTH = 8
PARTITIONS = 3


def events(count: int, seed: int) -> Iterator[dict[str, int]]:
    """Some click more than others, some ads are better than others, and in the evening people click more."""
    draw = random.Random(seed)
    for _ in range(count):
        user, ad, hour = draw.randrange(USERS), draw.randrange(ADS), draw.randrange(HOURS)
        liking = 2.5 * math.sin(user * 1.7) + 1.5 * math.sin(ad * 0.9) + (hour - 12) / 8
        yield {"user": user, "ad": ad, "hour": hour, "clicked": int(draw.random() < 1 / (1 + math.exp(-liking)))}


def decode(record: antdt.Record) -> tuple[torch.Tensor, torch.Tensor]:
    """(user, ad, hour) and whether it was a click."""
    assert record.value is not None
    event = json.loads(record.value)
    return torch.tensor([event["user"], event["ad"], event["hour"]]), torch.tensor(float(event["clicked"]))


class Clicks(nn.Module):  # type: ignore[misc]
    """The logarithm of the odds of a click."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.ads, self.hours = (antdt.Embedding(rows, WIDTH, std=1.0) for rows in (USERS, ADS, HOURS))
        self.head = nn.Sequential(nn.Linear(3 * WIDTH, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (n, 3), whole numbers; the result: (n,)."""
        parts = self.users(x[:, 0]), self.ads(x[:, 1]), self.hours(x[:, 2])
        out: torch.Tensor = self.head(torch.cat(parts, 1)).squeeze(1)
        return out


def write(topic: str, count: int, seed: int) -> None:
    """Create the topic, where it is not there yet, and append events to it."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

    here = None if names_a_broker(os.environ) else running(data_folder(os.environ) / BROKER)
    connection = Connection.of(here, None, os.environ)
    connection.check_reachable()
    admin = AdminClient(connection.admin())
    if topic not in admin.list_topics(timeout=10).topics:
        admin.create_topics([NewTopic(topic, PARTITIONS)])[topic].result(30)
    producer = Producer(connection.producer(linger_ms=20))
    for event in events(count, seed):
        producer.produce(topic, json.dumps(event).encode(), str(event["user"]))
        producer.poll(0)
    if producer.flush(60):
        raise SystemExit(f"Not all events came to {topic} within a minute.")


def quality(model: nn.Module, seed: int) -> float:
    """Logarithmic loss on events that are in no topic; 0.693 is that of guessing."""
    test = list(events(2000, seed + 1))
    x = torch.tensor([[event["user"], event["ad"], event["hour"]] for event in test])
    y = torch.tensor([float(event["clicked"]) for event in test])
    with torch.no_grad():
        return float(functional.binary_cross_entropy_with_logits(model(x), y))


def main(argv: list[str] | None = None) -> None:
    """Train, or write events; the first rank writes what came out to --result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topic", default="clicks")
    parser.add_argument("--write", type=int, default=0, help="append so many events, and train nothing")
    parser.add_argument("--growing", action="store_true", help="train on what is written later, too")
    parser.add_argument("--mode", choices=("bsp", "asp", "ssp"), help="of parameter servers (antdt launch --servers N)")
    parser.add_argument("--batch-size", type=int, default=128, help="global batch")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="time that an event takes at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, help="JSON file with the loss on other events")
    options = parser.parse_args(argv)
    if options.write:
        write(options.topic, options.write, options.seed)
        return

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    model = Clicks()
    agent = antdt.Agent(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-2),
        antdt.Topic(options.topic, decode, bounded=not options.growing),
        batch_size=options.batch_size,
        epochs=options.epochs,
        strategy=antdt.ParameterServer(options.mode) if options.mode else antdt.AllReduce(),
    )
    for x, clicked in agent:
        time.sleep(options.delay_ms / 1000 * len(x))
        agent.step(functional.binary_cross_entropy_with_logits(model(x), clicked))

    if options.result is not None and agent.settings.rank == 0:
        found: dict[str, Any] = {"loss": quality(model, options.seed), "steps": agent.step_number}
        options.result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
