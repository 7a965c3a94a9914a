"""The environment of a worker, as its launcher makes it.

Owns the names: ANTDT_*, which the worker's Settings read, and those of torchrun, which only a script that makes process
groups of its own needs. Without being asked for them (`--torch-env`) no worker has any: libraries that find RANK or
LOCAL_RANK believe that a process group is theirs to make. Must not know when a worker is started.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from antdt_schemas.address import LOOPBACK
from antdt_schemas.errors import UsageError

# What torchrun sets, and what operators of clusters set for it.
TORCH = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where process groups of the script meet: the machine of rank 0, and a port of it."""

    host: str
    port: str


@dataclass(frozen=True, slots=True)
class Where:
    """A worker among the others: rank of `world`, local rank of `here` on machine number `node`."""

    rank: int
    world: int
    local_rank: int
    here: int
    node: int


def meeting(environ: Mapping[str, str], here: int, world: int) -> Meeting:
    """As the environment has it, torchrun's own names included; on one machine it is found.

    Raises:
        UsageError: there are other machines, and nobody says where.
    """
    host = environ.get("PET_MASTER_ADDR") or environ.get("MASTER_ADDR", "")
    port = environ.get("PET_MASTER_PORT") or environ.get("MASTER_PORT", "")
    if here < world and not (host and port):
        raise UsageError(
            f"--torch-env: {world - here} of {world} workers are on other machines: set MASTER_ADDR to the address "
            "of the first one, and MASTER_PORT to a port that is free there."
        )
    return Meeting(host or LOOPBACK, port or str(_free_port()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def of_worker(
    environ: Mapping[str, str], own: Mapping[str, str], where: Where, restarts: int, torch: Mapping[str, str] | None
) -> dict[str, str]:
    """All of it: the launcher's, but for torch's names; what is the worker's own; where it stands; and, if they were
    asked for, torch's names.
    """
    out = {name: value for name, value in environ.items() if name not in TORCH}
    out |= {
        "ANTDT_RANK": str(where.rank),
        "ANTDT_LOCAL_RANK": str(where.local_rank),
        "ANTDT_WORLD_SIZE": str(where.world),
        "ANTDT_LOCAL_WORLD_SIZE": str(where.here),
        "ANTDT_RESTARTS": str(restarts),
        # As torchrun does: several workers on one machine must not each take all its cores.
        "OMP_NUM_THREADS": environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONUNBUFFERED": "1",
    }
    if torch is not None:
        out |= dict(torch)
        out |= {
            "RANK": str(where.rank),
            "LOCAL_RANK": str(where.local_rank),
            "WORLD_SIZE": str(where.world),
            "LOCAL_WORLD_SIZE": str(where.here),
            "GROUP_RANK": str(where.node),
            "GROUP_WORLD_SIZE": str(max(1, where.world // max(1, where.here))),
            "ROLE_NAME": "default",
            "ROLE_RANK": str(where.rank),
            "ROLE_WORLD_SIZE": str(where.world),
            "TORCHELASTIC_RESTART_COUNT": str(restarts),
            "TORCHELASTIC_USE_AGENT_STORE": "False",  # rank 0 of the script's group serves it
        }
    return out | dict(own)


def hint_of(error: BaseException, environ: Mapping[str, str]) -> str:
    """What to do where a script has missed one of torch's names; empty where it is something else."""
    said = str(error.args[0]) if error.args else ""
    key = isinstance(error, KeyError) and said in TORCH
    of_torch = isinstance(error, ValueError) and "environment variable" in said
    name = said if key else next((name for name in TORCH if of_torch and name in said.split()), "")
    if not name or name in environ:
        return ""
    return (
        f"{name} is set by `antdt launch --torch-env` only, as libraries take it for a process group that is theirs to "
        "make. A worker's place is in ANTDT_RANK, ANTDT_LOCAL_RANK and ANTDT_WORLD_SIZE."
    )


def torch_of_launch(at: Meeting, run_id: str, restarts_max: int) -> dict[str, str]:
    """Torch's names that are the same for all workers of a launch."""
    return {
        "MASTER_ADDR": at.host,
        "MASTER_PORT": at.port,
        "TORCHELASTIC_RUN_ID": run_id,
        "TORCHELASTIC_MAX_RESTARTS": str(restarts_max),
    }
