"""A training script that hands over its data as scripts have it: --kind says how. Each worker writes down the samples
of the steps that it has made.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import antdt
import torch
from antdt.launch.environment import TORCH
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

SIZE, EPOCHS, DRAWN = 300, 2, 240
X = torch.rand(SIZE, 4, generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(torch.arange(SIZE), X, X.sum(1, keepdim=True))


class Stream(IterableDataset[Any]):
    """Shuffles a buffer by the random numbers of its process."""

    def __iter__(self) -> Iterator[Any]:
        buffer = []
        for number in range(SIZE):
            buffer.append(number)
            if len(buffer) > 50:
                yield DATA[buffer.pop(random.randrange(len(buffer)))]
        yield from (DATA[number] for number in buffer)


def by_function(epoch: int, generator: torch.Generator) -> torch.Tensor:
    """Half of the samples."""
    return torch.randperm(SIZE, generator=generator)[:DRAWN]


def weighted() -> WeightedRandomSampler:
    """The last samples often, the first ones hardly ever."""
    generator = torch.Generator().manual_seed(9)
    return WeightedRandomSampler(torch.arange(SIZE, dtype=torch.float64) ** 3, DRAWN, generator=generator)


def given(kind: str) -> tuple[Any, dict[str, Any]]:
    """Data, and further arguments of the Agent."""
    if kind == "stream":
        return Stream(), {"size": SIZE, "batch_size": 24}
    if kind == "function":
        return DATA, {"sampler": by_function, "batch_size": 24}
    if kind == "weighted":
        return DataLoader(DATA, 24, sampler=weighted()), {}
    return DataLoader(DATA, 24, shuffle=True, num_workers=1, collate_fn=torch.utils.data.default_collate), {}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path)
    parser.add_argument("--batch-size", type=int)  # the data say it
    parser.add_argument("--kind", default="loader")
    parser.add_argument("--then", default="", help="another job, which is trained next")
    parser.add_argument("--group", action="store_true", help="a process group of the script's own")
    options = parser.parse_args()
    if options.group:
        torch.distributed.init_process_group("gloo")
        print("a group of", torch.distributed.get_world_size(), flush=True)
    else:
        print("without", [name for name in TORCH if name in os.environ], flush=True)
    for settings in [None, antdt.Settings.of(job=options.then)] if options.then else [None]:
        train(options, settings)


def train(options: argparse.Namespace, settings: antdt.Settings | None) -> None:
    """One model, of the job that the environment names or of another one."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    random.seed(os.urandom(8))
    model = torch.nn.Linear(4, 1)
    data, more = given(options.kind)
    agent = antdt.Agent(
        model, torch.optim.SGD(model.parameters(), 0.01), data, epochs=EPOCHS, settings=settings, **more
    )
    with open(f"{options.record}-{agent.settings.worker}-{agent.settings.job}", "w", encoding="utf-8") as record:
        for numbers, x, y in agent:
            if agent.step(functional.mse_loss(model(x), y)):
                print(*numbers.tolist(), file=record, flush=True)
    print("saved", agent.save(options.record.with_name(f"{agent.settings.job}.safetensors")), flush=True)


if __name__ == "__main__":
    main()
