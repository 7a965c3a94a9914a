"""A training script whose workers have less memory than they are asked to use: what tests launch.

w0: backward raises torch.OutOfMemoryError with more than 10 samples. w1: it is ended by SIGKILL with more than 20.
w2: leaves the loop after some steps, so that the others take more. w3: its forward raises with more than 12 samples,
once there were some steps.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import antdt
import torch
from antdt.agent import AgentOptions
from torch import nn

HOLDS = {"w0": 10, "w1": 20, "w3": 12}
GROWS_AFTER, LEAVES_AFTER = 5, 20


class Backward(torch.autograd.Function):
    """The identity; backward needs memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        if len(gradient) > HOLDS["w0"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return gradient


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path, help="not used: several micro-batches make a step")
    parser.add_argument("--samples", type=int, default=3_000)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    worker = os.environ["ANTDT_WORKER"]
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    x = torch.rand(options.samples, 4)
    agent = antdt.Agent(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        torch.utils.data.TensorDataset(x, torch.arange(options.samples)),
        batch_size=options.batch_size,
        options=AgentOptions(checkpoint_every_steps=5, max_attempts=1),
    )
    for features, numbers in agent:
        taken, step = len(numbers), agent.step_number
        if worker == "w1" and taken > HOLDS[worker]:
            os.kill(os.getpid(), signal.SIGKILL)
        if worker == "w2" and step >= LEAVES_AFTER:
            break
        if worker == "w3" and taken > HOLDS[worker] and step >= GROWS_AFTER:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        out = model(features)
        if worker == "w0":
            out = Backward.apply(out)
        agent.step(out.square().mean())


if __name__ == "__main__":
    main()
