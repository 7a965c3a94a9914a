"""The environment of a worker: ANTDT_* and, where they mean the same, torchrun's variables. Read here only."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antdt_schemas import auth, framing
from antdt_schemas.address import LOOPBACK, own_address
from antdt_schemas.connection import Connection, names_a_broker
from antdt_schemas.data_folder import BROKER, data_folder, running
from antdt_schemas.errors import UsageError
from antdt_schemas.launch_locks import process_name
from antdt_schemas.topics import check_job, check_worker

from antdt.host import torchrun

# What a machine is, and where things lie on it: that speaks of no job.
OURS = tuple(
    f"ANTDT_{name}" for name in ("DATA", "CHECKPOINTS", "BROKER_JARS", "NODE", "HARDWARE", "ADVERTISE", "GRACE_S")
)
# What a launcher says, what torchrun says, and what it is without both: rank, workers of all machines, earlier lives.
PLACE = (
    ("ANTDT_RANK", "RANK", 0),
    ("ANTDT_WORLD_SIZE", "WORLD_SIZE", 1),
    ("ANTDT_RESTARTS", "TORCHELASTIC_RESTART_COUNT", 0),
)
GRACE_S = 30.0  # as Kubernetes
WORKER, SERVER = "worker", "server"


@dataclass(frozen=True)
class Settings:
    """Who this worker is and where its job runs.

    restarts counts earlier lives of the worker; incarnation is new with every process. advertise: where the other
    members reach this machine, see `address`. launch, launcher: who started it; place: what only one launch of this
    machine can hold; take_over: whoever runs this worker now is asked to leave. grace_s: between SIGTERM and SIGKILL.
    alone: no job is named, and this process trains by itself. role: "worker" or "server"; servers: of the whole job.
    """

    job: str
    worker: str
    incarnation: str
    rank: int
    world_size: int
    restarts: int
    node: str
    hardware: str
    advertise: str
    connection: Connection
    secret: bytes | None
    checkpoints: Path
    launch: str = ""
    launcher: str = ""
    place: str = ""
    take_over: bool = False
    grace_s: float = GRACE_S
    alone: bool = False
    role: str = WORKER
    servers: int = 0

    @classmethod
    def here(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """As `of`; where nothing at all speaks of a job, nor of other workers, those of a process that trains alone."""
        if environ.get("ANTDT_JOB"):
            return cls.of(environ)
        spoken = [name for name, value in environ.items() if value and name.startswith("ANTDT_") and name not in OURS]
        if spoken or _number(environ, *PLACE[1]) > 1:
            speaks = min(spoken, default="WORLD_SIZE")
            raise UsageError(
                f"No job is named, although {speaks} is set, so this process is not to train alone: start "
                "workers with `antdt launch --job NAME -n N script.py`, or set ANTDT_JOB."
            )
        incarnation, folder = f"w0.0.{uuid.uuid4().hex[:8]}", Path(environ.get("ANTDT_CHECKPOINTS") or "")
        who: dict[str, Any] = {"rank": 0, "world_size": 1, "restarts": 0, "node": socket.gethostname(), "hardware": ""}
        nowhere: dict[str, Any] = {"advertise": LOOPBACK, "connection": Connection(f"{LOOPBACK}:9092"), "secret": None}
        return cls("alone", "w0", incarnation, **who, **nowhere, checkpoints=folder, alone=True)

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ, *, job: str = "") -> Settings:
        """Settings of this process. job: another one than the environment names.

        Raises:
            UsageError: the job is not named, or a value cannot be used.
        """
        job = job or environ.get("ANTDT_JOB", "")
        if not job:
            raise UsageError(
                "No job is named: start workers with `antdt launch --job NAME -n N script.py`, or set ANTDT_JOB."
            )
        rank, world_size, restarts = (_number(environ, *names) for names in PLACE)
        worker = check_worker(environ.get("ANTDT_WORKER", f"w{rank}"))
        secret = environ.get(auth.ENV_SECRET, "")
        folder = data_folder(environ)
        here = None if names_a_broker(environ) else running(folder / BROKER)  # the broker of `antdt up`
        connection = Connection.of(here, None, environ).named(job, "worker", worker)
        framing.use(connection.wire)
        return cls(
            job=check_job(job),
            worker=worker,
            # The launcher names it, so that it can report its end; without one it is made here.
            incarnation=environ.get("ANTDT_INCARNATION") or f"{worker}.{restarts}.{uuid.uuid4().hex[:8]}",
            rank=rank,
            world_size=world_size,
            restarts=restarts,
            node=environ.get("ANTDT_NODE") or socket.gethostname(),
            hardware=environ.get("ANTDT_HARDWARE", ""),
            advertise=own_address(environ, connection.bootstrap),
            connection=connection,
            secret=secret.encode() if secret else None,
            checkpoints=Path(environ.get("ANTDT_CHECKPOINTS") or folder / "checkpoints" / job),
            # A worker that was started by hand is a launch of its own.
            launch=environ.get("ANTDT_LAUNCH") or torchrun.run_of(environ) or uuid.uuid4().hex[:12],
            launcher=environ.get("ANTDT_LAUNCHER") or process_name(),
            place=environ.get("ANTDT_PLACE", ""),
            take_over=environ.get("ANTDT_TAKE_OVER", "") not in ("", "0"),
            grace_s=_seconds(environ, "ANTDT_GRACE_S", GRACE_S),
            role=_role(environ),
            servers=_number(environ, "ANTDT_SERVERS", "ANTDT_SERVERS", 0),
        )


def _number(environ: Mapping[str, str], own: str, torchs: str, default: int) -> int:
    """By our name for it, or by torchrun's."""
    name = own if own in environ else torchs
    value = environ.get(name, str(default))
    if not value.isdigit():
        raise UsageError(f"{name}={value!r} is not a number of 0 or more.")
    return int(value)


def _role(environ: Mapping[str, str]) -> str:
    role = environ.get("ANTDT_ROLE") or WORKER
    if role not in (WORKER, SERVER):
        raise UsageError(f"ANTDT_ROLE={role!r}: it is {WORKER!r} or {SERVER!r}, and set by `antdt launch --servers N`.")
    return role


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    try:
        value = float(environ.get(name) or default)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"{name}={environ[name]!r} is not a number of seconds.")
    return value
