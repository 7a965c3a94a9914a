"""A training script whose data set and loop do what a file says, by the index of a sample: what tests launch.

kill: the process dies of it. raise: the data set raises. step: the loop raises. sleep: the data set never returns.
gil: it never returns, and lets no other thread run. Each of them is written down; `once` does it once only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import antdt
import torch
from antdt.agent import AgentOptions
from antdt.examples.recorded import Record
from torch import nn

FOR_EVER_S = 3600


class Poisoned(torch.utils.data.Dataset[Any]):
    """Numbers, with names as files have them."""

    def __init__(self, size: int, poison: dict[str, str], marks: Path) -> None:
        self.size, self.poison, self.marks = size, poison, marks

    def __len__(self) -> int:
        return self.size

    def sample_key(self, index: int) -> str:
        """Its name."""
        return f"img/{index}.png"

    def __getitem__(self, index: int) -> Any:
        what = self.poison.get(str(index), "")
        if what.endswith(" once"):
            what = what.removesuffix(" once")
            mark = self.marks / f"{what}-{index}"
            what = "" if mark.exists() else what
            mark.touch()
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "raise":
            raise ValueError(f"img/{index}.png is truncated")
        if what == "sleep":
            time.sleep(FOR_EVER_S)
        if what == "gil":
            ctypes.PyDLL(None).sleep(FOR_EVER_S)
        return torch.full((4,), index / self.size), index


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--poison", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-attempts", type=int, default=2)
    parser.add_argument("--num-workers", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(0)
    poison: dict[str, str] = json.loads(options.poison.read_text())
    model = nn.Linear(4, 1)
    agent = antdt.Agent(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        Poisoned(options.samples, poison, options.poison.parent),
        batch_size=options.batch_size,
        epochs=options.epochs,
        num_workers=options.num_workers,
        options=AgentOptions(max_attempts=options.max_attempts, checkpoint_every_steps=5),
    )
    record = Record(options.record, os.environ["ANTDT_WORKER"])
    for x, numbers in agent:
        taken = numbers.tolist()
        record.write(step=agent.step_number + 1, samples=taken)
        if any(poison.get(str(n)) == "step" for n in taken):
            raise RuntimeError("the loss is not finite")
        if agent.step(model(x).square().mean()):
            record.write(step=agent.step_number, lineage=agent.lineage)


if __name__ == "__main__":
    main()
