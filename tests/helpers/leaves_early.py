"""A training script that does not stay in the loop to the end.

--how break: behind a step; open: with a batch at hand; raise: an exception, by the worker --who only; next: the loop is
a plain iterator, and the script ends without having closed it. --at: the step behind which that happens.
"""

from __future__ import annotations

import argparse
import os

import antdt
import torch
from torch.nn import functional
from torch.utils.data import TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--record")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--how", default="")
    parser.add_argument("--who", default="")
    parser.add_argument("--at", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    x = torch.rand(480, 4)
    model = torch.nn.Linear(4, 1)
    agent = antdt.Agent(
        model,
        torch.optim.SGD(model.parameters(), 0.01),
        TensorDataset(x, x.sum(1, keepdim=True)),
        batch_size=given.batch_size,
        epochs=given.epochs,
    )
    mine = given.who in ("", os.environ["ANTDT_WORKER"])

    def over(how: str) -> bool:
        return mine and given.how == how and agent.step_number >= given.at

    batches = iter(agent)
    for data, target in batches if given.how == "next" else agent:
        if over("open"):
            break
        agent.step(functional.mse_loss(model(data), target))
        if over("raise"):
            raise ValueError("a mistake in the script")
        if over("break") or over("next"):
            break
    print(f"{os.environ['ANTDT_WORKER']} is behind the loop at step {agent.step_number}", flush=True)


if __name__ == "__main__":
    main()
