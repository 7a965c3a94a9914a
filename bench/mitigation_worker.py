"""A worker, or a server, of `bench.mitigation`: digits or clicks, and for each sample, or each gradient that a server
takes, the time that its pattern says, spent asleep, so that two cores carry any number of them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import antdt
import torch
from antdt.examples import digits
from antdt.strategies.ps.core.facts import PULL, Contribution
from antdt.strategies.ps.requests import Request
from antdt.strategies.ps.server import Server
from antdt_schemas.strategies import is_asynchronous
from torch.nn import functional

from bench import adult
from bench.mitigation_patterns import ALLREDUCE, PATTERNS, WORKERS, Pattern

SERVER = os.environ.get("ANTDT_ROLE") == "server"


def strategy_of(name: str) -> Any:
    """What the script names: further strategies are added here, by the name that `--strategies` has."""
    if name == ALLREDUCE:
        return antdt.AllReduce()
    mode, _, how = name.removeprefix("ps-").partition("/")
    said: dict[str, Any] = {"late": "drop", "backup": 1} if how == "drop" else {"sharding": how} if how else {}
    return antdt.ParameterServer(mode=mode, **said)


class Pace:
    """Of one life of a worker or a server. Sleeps as long as samples, or exchanges, take here."""

    def __init__(self, pattern: Pattern, sample_ms: float, seed: int, *, servers: bool) -> None:
        self.pattern, self.seed = pattern, seed
        self.sample_s = pattern.sample_ms(sample_ms, servers=servers) / 1000
        self.exchange_s = pattern.exchange_ms(servers=servers) / 1000
        name, life, _ = os.environ["ANTDT_INCARNATION"].rsplit(".", 2)
        self.number, self.life, self.began_s = int(name[1:]), int(life), time.monotonic()

    def spend(self, samples: int, done: float, since_s: float) -> None:
        """Until the time of a micro-batch is over."""
        factor = self.pattern.factor(self.number, self.life, done, since_s - self.began_s, self.seed)
        until_s = since_s + factor * (self.pattern.fixed_ms / 1000 + samples * self.sample_s)
        time.sleep(max(0.0, until_s - time.monotonic()))

    def serve(self, done: float) -> None:
        """What this server takes for one gradient."""
        if self.pattern.served is not None:
            now_s = time.monotonic() - self.began_s
            factor = self.pattern.served.factor(self.number, self.life, done, now_s, self.seed)
            time.sleep(factor * self.exchange_s)


def slow_down(pace: Pace, steps: float) -> None:
    """From here on this server sleeps with each gradient that comes, in the thread that serves, as one that has too
    little of a processor would.
    """
    stage = Server._stage

    def slowly(server: Server, who: bytes, facts: Contribution, request: Request) -> None:
        if facts.key.attempt != PULL:
            pace.serve(server.version / steps)
        stage(server, who, facts, request)

    Server._stage = slowly  # type: ignore[method-assign, assignment]


class Task:
    """What is trained: a model of the digits, or of clicks. `train`, `test`: data sets of tensors."""

    def __init__(self, data: str, samples: int) -> None:
        if data.startswith("adult:"):
            self.train, self.test, rows = adult.load(Path(data.removeprefix("adult:")), samples)
            self.model: torch.nn.Module = adult.Earner(rows)
            self.loss: Callable[..., Any] = functional.binary_cross_entropy_with_logits
            self.quality: Callable[..., float] = adult.accuracy
        else:
            self.train, self.test = digits.load(data, samples)
            self.model = digits.network(self.train.tensors[0].shape[-1])
            self.loss, self.quality = functional.cross_entropy, digits.accuracy
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=digits.LEARNING_RATE / 4)


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
    pattern, task = PATTERNS[options.pattern], Task(options.data, options.samples)
    steps = len(task.train) * options.epochs / options.batch_size
    if is_asynchronous(options.strategy):  # each worker's part of a batch is a step
        steps *= WORKERS
    pace = Pace(pattern, options.sample_ms, options.seed, servers=options.strategy != ALLREDUCE)
    if SERVER:
        slow_down(pace, steps)
    agent = antdt.Agent(
        task.model,
        task.optimizer,
        task.train,
        batch_size=options.batch_size,
        epochs=options.epochs,
        seed=options.seed,
        strategy=strategy_of(options.strategy),
        options=antdt.AgentOptions(batch_size_max=pattern.holds[pace.number] if pattern.holds and not SERVER else 0),
    )
    for x, y in agent:
        began_s = time.monotonic()
        loss = task.loss(task.model(x), y)
        pace.spend(len(y), agent.step_number / steps, began_s)
        agent.step(loss)
    if agent.settings.rank == 0 and not SERVER:
        options.result.write_text(json.dumps({"quality": task.quality(task.model, task.test)}))


if __name__ == "__main__":
    main()
