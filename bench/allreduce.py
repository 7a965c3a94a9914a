"""Our AllReduce against torch's DistributedDataParallel: 2 and 4 members, the same model and data; by gloo
on the CPU, or on the device that BENCH_DEVICE names.

`python -m bench.allreduce --json FILE`. Every member trains both in one process, in blocks that alternate, so what the
machine does meanwhile hits both; compared are the blocks of a pair. DDP runs with gradient_as_bucket_view=True, ours
with its defaults (compositions inline), which is what the Agent uses. CPU time is that of the whole process. At the
end both models must hold the same parameters, to float tolerance: what was compared did the same work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from antdt.strategies.allreduce import AllReduceReplica, Generation, GenerationOptions, Rendezvous, store_of
from torch import distributed, nn

from bench.common import machine, quartiles, tell_nccl_apart, write
from bench.habit_loops import ENV_DEVICE
from bench.shard_clients import SPAWN, end_with_parent, receive

BATCH_SIZE = 64
BLOCK_STEPS = 10
WARM_UP_BLOCKS = 2
DEVICE = torch.device(os.environ.get(ENV_DEVICE, "cpu"))
WORLDS = (2, 4) if DEVICE.type == "cpu" else (2,)
WIDTH = 512 if DEVICE.type == "cpu" else 1792


def model_of() -> tuple[nn.Module, torch.optim.Optimizer]:
    """0.66 million parameters: about 10 ms a step on one core; on a CUDA device 4.7 million."""
    torch.manual_seed(0)
    layers = nn.Linear(256, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 512)
    model = nn.Sequential(*layers).to(DEVICE)
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


class Ours:
    """A member of a generation."""

    def __init__(self, rank: int, world: int, host: str, port: int, backend: Any) -> None:
        self.model, optimizer = model_of()
        options, device = (
            GenerationOptions(backend=backend),
            next(self.model.parameters()).device if backend == "nccl" else None,
        )
        self.member, self.world, self.lease = AllReduceReplica(self.model, optimizer), world, 0
        self.generation = Generation(1, world, rank, store_of(host, port), lambda: False, options, device=device)
        self.member.attach(self.generation)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """One step."""
        self.lease += 1
        taken = (self.lease, 1, 0, 0, BATCH_SIZE)
        self.member.take([taken], BATCH_SIZE, 0, False, BATCH_SIZE * self.world)
        self.member.backward(nn.functional.mse_loss(self.model(x), y), BATCH_SIZE)
        self.member.step()
        self.member.drop_pending(self.lease)


class Ddp:
    """A rank of the default group."""

    def __init__(self, rank: int, world: int, file: str, backend: str) -> None:
        distributed.init_process_group(backend, init_method=f"file://{file}", rank=rank, world_size=world)
        self.model, self.optimizer = model_of()
        self.ddp = nn.parallel.DistributedDataParallel(self.model, gradient_as_bucket_view=True)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """One step."""
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.ddp(x), y).backward()
        self.optimizer.step()


def timed(step: Callable[[torch.Tensor, torch.Tensor], None], data: list[Any]) -> tuple[float, float]:
    """Milliseconds a step by the processor and by the clock."""
    cpu_s, wall_s = process_time(), perf_counter()
    for x, y in data:
        step(x, y)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return (process_time() - cpu_s) * 1e3 / len(data), (perf_counter() - wall_s) * 1e3 / len(data)


def train(rank: int, world: int, blocks: int, backend: str, file: str, address: Pipe, result: Pipe) -> None:
    """One member: rows of (DDP cpu, DDP wall, our cpu, our wall)."""
    end_with_parent()
    torch.set_num_threads(1)
    tell_nccl_apart(f"rank-{rank}")
    rendezvous = Rendezvous("127.0.0.1")
    if rank == 0:
        address.send((rendezvous.host, rendezvous.port))
    ddp, ours = Ddp(rank, world, file, backend), Ours(rank, world, *receive(address), backend)
    torch.manual_seed(rank)
    data = [
        (torch.randn(BATCH_SIZE, 256).to(DEVICE), torch.randn(BATCH_SIZE, 512).to(DEVICE)) for _ in range(BLOCK_STEPS)
    ]
    rows = []
    for block in range(blocks + WARM_UP_BLOCKS):
        first, second = (ddp.step, ours.step) if block % 2 else (ours.step, ddp.step)
        distributed.barrier()
        a = timed(first, data)
        distributed.barrier()
        b = timed(second, data)
        rows.append((*a, *b) if block % 2 else (*b, *a))
    for theirs, mine in zip(ddp.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-5)
    result.send(rows[WARM_UP_BLOCKS:])
    distributed.barrier()
    ours.member.abort()
    distributed.destroy_process_group()


def compare(world: int, blocks: int, backend: str) -> dict[str, Any]:
    """Paired differences of all blocks of all members, milliseconds a step."""
    with tempfile.TemporaryDirectory() as folder:
        results = [SPAWN.Pipe(duplex=False) for _ in range(world)]
        addresses = [SPAWN.Pipe() for _ in range(world)]
        members = []
        for rank in range(world):
            pipes = addresses[rank][1], results[rank][1]
            args = rank, world, blocks, backend, str(Path(folder) / "store"), *pipes
            members.append(SPAWN.Process(target=train, args=args, daemon=True))
            members[-1].start()
        try:
            where = receive(addresses[0][0])
            for mine, _ in addresses:
                mine.send(where)
            rows = [row for mine, _ in results for row in receive(mine)]
        finally:
            for member in members:
                member.join(10)
                member.kill()
    return {
        "ddp_cpu_ms": round(statistics.median(r[0] for r in rows), 2),
        "ddp_wall_ms": round(statistics.median(r[1] for r in rows), 2),
        "difference_cpu_ms": quartiles([r[2] - r[0] for r in rows]),
        "difference_wall_ms": quartiles([r[3] - r[1] for r in rows]),
        "blocks": len(rows),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--blocks", type=int, default=20, help=f"pairs of blocks of {BLOCK_STEPS} steps")
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo", help="of both")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for world in WORLDS:
        results[f"{world}_members"] = r = compare(world, options.blocks, options.backend)
        cpu, wall = r["difference_cpu_ms"], r["difference_wall_ms"]
        print(
            f"{world} members: DDP {r['ddp_cpu_ms']} ms CPU, {r['ddp_wall_ms']} ms wall a step; ours "
            f"{cpu['median']:+.2f} [{cpu['q1']:+.2f} to {cpu['q3']:+.2f}] CPU, "
            f"{wall['median']:+.2f} [{wall['q1']:+.2f} to {wall['q3']:+.2f}] wall"
        )
    write(options.json, {**results, "machine": machine()})


if __name__ == "__main__":
    main()
