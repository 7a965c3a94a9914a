"""A worker of `bench.mitigation`: the digits, and for each sample the time that its pattern says, spent asleep, so that
two cores carry any number of workers.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import antdt
import torch
from antdt.examples.digits import LEARNING_RATE, accuracy, load, network
from torch.nn import functional
from torch.utils.data import TensorDataset

from bench.mitigation_patterns import PATTERNS, Pattern

SERVER = os.environ.get("ANTDT_ROLE") == "server"


def strategy_of(name: str) -> Any:
    """What the script names: further strategies are added here, by the name that `--strategies` has."""
    if name == "allreduce":
        return antdt.AllReduce()
    mode, _, how = name.removeprefix("ps-").partition("/")
    said: dict[str, Any] = {"late": "drop", "backup": 1} if how == "drop" else {"sharding": how} if how else {}
    return antdt.ParameterServer(mode=mode, **said)


class Pace:
    """Sleeps as long as samples take here."""

    def __init__(self, pattern: Pattern, sample_s: float, seed: int) -> None:
        self.pattern, self.sample_s, self.seed = pattern, sample_s, seed
        name, life, _ = os.environ["ANTDT_INCARNATION"].rsplit(".", 2)
        self.worker, self.life, self.began_s = int(name[1:]), int(life), time.monotonic()

    def spend(self, samples: int, done: float, since_s: float) -> None:
        """Until the time of a micro-batch is over."""
        now_s = since_s - self.began_s
        factor = self.pattern.factor(self.worker, self.life, done, now_s, self.seed)
        until_s = since_s + factor * (self.pattern.fixed_ms / 1000 + samples * self.sample_s)
        time.sleep(max(0.0, until_s - time.monotonic()))


def main() -> None:
    """Train; the first rank writes how good the model is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pattern", choices=PATTERNS, required=True)
    parser.add_argument("--strategy", required=True)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--sample-ms", type=float, required=True)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    train, test = load(options.data)
    train = TensorDataset(*(t[: options.samples] for t in train.tensors))
    pattern = PATTERNS[options.pattern]
    model = network(train.tensors[0].shape[-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE / 4)
    pace = None if SERVER else Pace(pattern, options.sample_ms / 1000, options.seed)
    holds = pattern.holds[pace.worker] if pattern.holds and pace is not None else 0
    agent = antdt.Agent(
        model,
        optimizer,
        train,
        batch_size=options.batch_size,
        epochs=options.epochs,
        seed=options.seed,
        strategy=strategy_of(options.strategy),
        options=antdt.AgentOptions(batch_size_max=holds),
    )
    steps = len(train) * options.epochs / options.batch_size
    for x, y in agent:
        began_s = time.monotonic()
        loss = functional.cross_entropy(model(x), y)
        if pace is not None:
            pace.spend(len(y), agent.step_number / steps, began_s)
        agent.step(loss)
    if agent.settings.rank == 0 and not SERVER:
        options.result.write_text(json.dumps({"quality": accuracy(model, test)}))


if __name__ == "__main__":
    main()
