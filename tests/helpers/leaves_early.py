"""A training script that does not stay in the loop to the end.

--how break: behind a step; open: with a batch at hand; raise: by an exception; next: the loop is a plain iterator, and
the script ends without having closed it. One for all, or one for each worker with "/" between them. --at: the step
behind which that happens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from typing import Any

import antdt
import numpy
import torch
from torch.nn import functional
from torch.utils.data import TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--record")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--how", default="")
    parser.add_argument("--at", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tell("drawn unseeded", draw())
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)
    x = torch.rand(480, 4)
    model = torch.nn.Linear(4, 1)
    agent = antdt.Agent(
        model,
        torch.optim.SGD(model.parameters(), 0.01),
        TensorDataset(x, x.sum(1, keepdim=True)),
        batch_size=given.batch_size,
        epochs=given.epochs,
    )
    mine = (given.how.split("/") * 2)[int(os.environ["ANTDT_RANK"])]

    def over(how: str) -> bool:
        return mine == how and agent.step_number >= given.at

    drawn, batches = 0, iter(agent) if mine == "next" else None
    for data, target in batches or agent:
        drawn = drawn or tell("drawn in the loop", draw())
        if given.how and agent.batch_size == given.batch_size:
            time.sleep(1.0)  # alone: whoever is to leave early may not be here yet, and all would be done without it
        if over("open"):
            break
        agent.step(functional.mse_loss(model(data), target))
        if over("raise"):
            raise ValueError("a mistake in the script")
        if over("break") or over("next"):
            break
    tell("is behind the loop at step", agent.step_number)


def draw() -> list[float]:
    """From every generator that a training loop may use."""
    return [float(torch.rand(())), random.random(), float(numpy.random.rand())]


def tell(what: str, value: Any) -> int:
    """A line of its own, whole: workers share the output."""
    os.write(1, f"{os.environ['ANTDT_WORKER']} {what} {json.dumps(value)}\n".encode())
    return 1


if __name__ == "__main__":
    main()
