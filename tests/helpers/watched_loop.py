"""A loop of somebody else's, under torchrun, with one line of ours: what `watch` must not change. Each rank writes its
losses to a file of FOLDER.

python -m torch.distributed.run ... watched_loop.py ddp|fsdp SECONDS FOLDER     # rank 1 takes so long a step more
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import antdt
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Net(nn.Module):
    """One that is slow where it is told to be."""

    def __init__(self, slow_s: float) -> None:
        super().__init__()
        self.net, self.slow_s = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1)), slow_s

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.slow_s)
        return self.net(x)


def main(how: str, slow_s: float, folder: Path) -> None:
    """Two epochs."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(1920, 32), torch.randn(1920, 1))
    sampler = DistributedSampler(data, seed=3)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    model: nn.Module = Net(slow_s if rank == 1 else 0.0)
    if how == "fsdp":
        fully_shard(model)
    else:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    antdt.watch(model, optimizer, loader)  # the line
    losses = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item().hex())
    # Not printed: all ranks share one pipe, where long lines meet.
    (folder / str(rank)).write_text(" ".join(losses), encoding="utf-8")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
