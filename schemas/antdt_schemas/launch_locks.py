"""Which launch runs a worker on this machine: one lock for each worker in the data folder, and who has it.

    DATA/launch/JOB/w0.lock        held by the launcher while it runs w0; says who that is, and since when
    DATA/launch/JOB/w0.take-over   who asks that launcher to leave

A lock ends with its process, however that ends. What it names (`place`) goes to the ledger with the workers: a launch
that holds it has outlived every other one that ever did.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from antdt_schemas.data_folder import try_lock

LAUNCHES = "launch"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Holder:
    """A launch: its id, user@host:pid, when it began, and how long its workers may take to leave."""

    launch: str = ""
    launcher: str = "another launcher"
    since: str = ""
    grace_s: float = 30.0

    def __str__(self) -> str:
        return f"{self.launcher} since {self.since}" if self.since else self.launcher


def this_process(launch: str, grace_s: float) -> Holder:
    return Holder(launch, process_name(), time.strftime("%Y-%m-%d %H:%M:%S"), grace_s)


def process_name() -> str:
    """user@host:pid of this process; the number of a user who has no name, as in containers."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


def folder_of(data: Path, job: str) -> Path:
    return data / LAUNCHES / job


@dataclass(slots=True)
class Lock:
    """One worker's lock, held until it is released or this process ends. A forked child must close `handle`."""

    folder: Path
    worker: str
    handle: int
    holder: Holder

    @property
    def place(self) -> str:
        """Host, boot and file: the same for whoever holds this lock, and for nobody at the same time."""
        at = os.fstat(self.handle)
        boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
        return f"{socket.gethostname()}/{boot}/{at.st_dev}:{at.st_ino}"

    def wanted_by(self) -> str:
        """Who asks this holder to leave; empty while nobody does."""
        with suppress(OSError, ValueError):
            asked = json.loads(_wish(self.folder, self.worker).read_text(encoding="utf-8"))
            if asked["from"] == self.holder.launch:
                return str(asked["by"])
        return ""

    def release(self) -> None:
        os.close(self.handle)


def take(folder: Path, worker: str, mine: Holder) -> Lock | Holder:
    """The lock, or who has it.

    Raises:
        OSError: the folder cannot be written, or its file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{worker}.lock"
    handle = try_lock(path)
    if handle is None:
        return _holder(path)
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(asdict(mine)).encode(), 0)
    with suppress(OSError):
        _wish(folder, worker).unlink()
    return Lock(folder, worker, handle, mine)


def ask_to_leave(folder: Path, worker: str, holder: Holder, by: str) -> None:
    """Ask the launch that holds a worker's lock to leave. It looks twice a second."""
    wish = _wish(folder, worker)
    new = wish.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps({"from": holder.launch, "by": by}), encoding="utf-8")
    new.replace(wish)


def is_free(folder: Path, worker: str) -> bool:
    try:
        handle = try_lock(folder / f"{worker}.lock", make=False)
    except OSError:
        return True
    if handle is not None:
        os.close(handle)
    return handle is not None


def _holder(path: Path) -> Holder:
    """What it says of itself; nothing of it where it is just beginning."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Holder()


def _wish(folder: Path, worker: str) -> Path:
    return folder / f"{worker}.take-over"
