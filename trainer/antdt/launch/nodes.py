"""How many workers, and which: what torchrun's options and variables (PET_*) say of this machine and the others."""

from __future__ import annotations

import os

from antdt_schemas.errors import UsageError

from antdt.host.child import in_child

COUNT_S = 120.0


def workers_here(text: str) -> int:
    """A number, or as torchrun has it: `cpu`, one for each core; `gpu`, for each device; `auto`, devices or else cores.
    0 is for a machine that has servers only.

    Raises:
        UsageError: it is none of them, or there is no device.
    """
    if text in ("auto", "gpu"):
        devices = _devices()
        if text == "gpu" and not devices:
            raise UsageError("-n gpu: torch finds no CUDA device here. Say -n cpu, or how many workers.")
        return devices or os.cpu_count() or 1
    if text == "cpu":
        return os.cpu_count() or 1
    if not text.isdigit():
        raise UsageError(f"-n {text}: say how many workers, or auto, gpu or cpu.")
    return int(text)


def _devices() -> int:
    """Asked in a child: whoever has touched a device must not fork."""
    reading, writing = os.pipe()

    def count() -> None:
        import torch

        os.write(writing, str(torch.cuda.device_count() if torch.cuda.is_available() else 0).encode())

    child = in_child(count)
    os.close(writing)
    child.join(COUNT_S)
    try:
        return int(os.read(reading, 16) or b"0") if child.exitcode == 0 else 0
    finally:
        os.close(reading)


def first_and_world(workers: int, nnodes: str, node_rank: int, first_rank: int, world_size: int) -> tuple[int, int]:
    """First rank of this machine and workers of all: as said, or counted from the number of machines.

    nnodes: a number, or MIN:MAX, of which a job begins with the fewest.

    Raises:
        UsageError: not a number of machines, or this one is not among them.
    """
    fewest, _, most = nnodes.partition(":")
    if not fewest.isdigit() or int(fewest) < 1 or not (most or fewest).isdigit():
        raise UsageError(f"--nnodes {nnodes}: say how many machines, 2, or from how many to how many, 1:4.")
    if not 0 <= node_rank < int(most or fewest):
        raise UsageError(f"--node-rank {node_rank}: of {nnodes} machines the first one is 0.")
    first = first_rank if first_rank >= 0 else node_rank * workers
    world = world_size or max(int(fewest) * workers, first + workers if most else 0)
    if world < 1:
        raise UsageError("-n 0: say with --world-size how many workers all machines start, as the others do.")
    return first, world


def servers_here(servers: int, here: int, first_server: int, node_rank: int, first_rank: int) -> range:
    """Which servers of a job this machine starts. here: how many, -1: all of them if it is the first machine, and else
    none. first_server: number of the first one, -1: the machines before have as many each.

    Raises:
        UsageError: the job has no such servers.
    """
    if here < 0:
        if first_server >= 0:
            raise UsageError(f"--first-server {first_server}: say with --servers-here how many this machine starts.")
        return range(servers if node_rank == 0 and first_rank <= 0 else 0)
    first = first_server if first_server >= 0 else node_rank * here
    if here and first + here > servers:
        of = f"--servers {servers} are s0 to s{servers - 1}" if servers else "say with --servers how many there are"
        raise UsageError(f"--servers-here {here}, s{first} being the first: {of}, in the whole job.")
    return range(first, first + here)
