"""How long members take to add up a small tensor: straight from each to each (`antdt.strategies.allreduce.mesh`), and
by gloo's all-reduce, all-gather, and send and receive.

`python -m bench.exchange --json FILE`. All ways in turn, in the same processes; each member was asleep for 10 ms
before, as it is while an accelerator computes. Microseconds of the first member, by the clock, and of its whole
process, threads included, by the processor.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Any

import torch
from antdt.strategies.allreduce import Generation, Rendezvous, store_of
from antdt.strategies.allreduce.mesh import SENT_BYTES_MAX
from torch import distributed

from bench.common import machine, quartiles, write
from bench.shard_clients import SPAWN, end_with_parent, receive

WORLDS, ASLEEP_S, WARM_UP = (2, 4), 0.01, 20
SIZES_BYTES = (2**10, 80 * 2**10, 2**19)


def ways(rank: int, world: int, generation: Generation, size: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Each adds up ones, and returns the sum."""
    own, parts = torch.empty(size), [torch.empty(size) for _ in range(world)]

    def straight() -> torch.Tensor:
        generation.wait(generation.allreduce(own, again=True))
        generation.settled()
        return own

    def allreduce() -> torch.Tensor:
        distributed.all_reduce(own)
        return own

    def allgather() -> torch.Tensor:
        distributed.all_gather(parts, own)
        return torch.stack(parts).sum(0)

    def pairs() -> torch.Tensor:
        others = [other for other in range(world) if other != rank]
        works = [distributed.irecv(parts[other], other) for other in others]
        works += [distributed.isend(own, other) for other in others]
        for work in works:
            work.wait()
        for other in others:
            own.add_(parts[other])
        return own

    def asleep(way: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def prepared() -> torch.Tensor:
            own.fill_(1.0)
            return way()

        return prepared

    found = {"straight": straight, "all-reduce": allreduce, "all-gather": allgather, "send and receive": pairs}
    return {name: asleep(way) for name, way in found.items()}


def member(rank: int, world: int, times: int, file: str, address: Pipe, result: Pipe) -> None:
    """One of them: by size and way, rows of (wall, processor)."""
    end_with_parent()
    torch.set_num_threads(1)
    rendezvous = Rendezvous("127.0.0.1")
    if rank == 0:
        address.send((rendezvous.host, rendezvous.port))
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    generation = Generation(1, world, rank, store_of(*receive(address)), lambda: False)
    rows: dict[int, dict[str, list[tuple[float, float]]]] = {}
    for size_bytes in (size for size in SIZES_BYTES if size * (world - 1) <= SENT_BYTES_MAX):
        found = ways(rank, world, generation, size_bytes // 4)
        rows[size_bytes] = {name: [] for name in found}
        for _ in range(WARM_UP + times):
            for name, way in found.items():
                sleep(ASLEEP_S)
                wall_s, cpu_s = perf_counter(), process_time()
                total = way()
                rows[size_bytes][name].append((perf_counter() - wall_s, process_time() - cpu_s))
                assert bool((total == world).all()), name
    if rank == 0:
        result.send(rows)
    distributed.barrier()
    generation.leave()
    distributed.destroy_process_group()


def compare(world: int, times: int) -> dict[str, Any]:
    """Microseconds by size and way."""
    with tempfile.TemporaryDirectory() as folder:
        mine, theirs = SPAWN.Pipe(duplex=False)
        addresses = [SPAWN.Pipe() for _ in range(world)]
        args = [(rank, world, times, str(Path(folder) / "store"), addresses[rank][1], theirs) for rank in range(world)]
        members = [SPAWN.Process(target=member, args=one, daemon=True) for one in args]
        try:
            for one in members:
                one.start()
            where = receive(addresses[0][0])
            for pipe, _ in addresses:
                pipe.send(where)
            rows = receive(mine)
        finally:
            for one in members:
                one.join(10)
                one.kill()
    out: dict[str, Any] = {}
    for size_bytes, found in rows.items():
        for name, pairs in found.items():
            wall, cpu = zip(*pairs[WARM_UP:], strict=True)
            out.setdefault(str(size_bytes), {})[name] = {
                "wall_us": quartiles([1e6 * one for one in wall], 0),
                "cpu_us": quartiles([1e6 * one for one in cpu], 0),
            }
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--times", type=int, default=200, help="of each way and size")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for world in WORLDS:
        results[f"{world}_members"] = found = compare(world, options.times)
        for size, by in found.items():
            for name, one in by.items():
                wall, cpu = one["wall_us"], one["cpu_us"]
                print(
                    f"{world} members, {int(size):>7,} bytes, {name:<16}: {wall['median']:>5.0f} us "
                    f"[{wall['q1']:.0f} to {wall['q3']:.0f}], processor {cpu['median']:.0f} [{cpu['q1']:.0f} to "
                    f"{cpu['q3']:.0f}]"
                )
    write(options.json, {**results, "machine": machine()})


if __name__ == "__main__":
    main()
