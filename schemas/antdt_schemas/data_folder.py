"""Where a machine keeps what a job leaves on it, and how everybody there finds its broker.

The folder of the broker holds `lock`, which a running broker has, and `ports.json`, its address.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path

ENV_DATA = "ANTDT_DATA"
DEFAULT = "antdt-data"
BROKER = "kafka"
HOST = "127.0.0.1"
LOCK, PORTS = "lock", "ports.json"


def data_folder(environ: Mapping[str, str]) -> Path:
    """The data folder that the environment names, or `antdt-data` here."""
    return Path(environ.get(ENV_DATA) or DEFAULT)


def running(folder: Path) -> str | None:
    """`host:port` of the broker that runs on a broker's folder, whoever started it; None if none does."""
    if not (folder / LOCK).exists():
        return None
    handle = try_lock(folder / LOCK, shared=True)  # whoever else looks at this moment is no broker
    if handle is not None:
        os.close(handle)
        return None
    ports = ports_of(folder)
    return f"{HOST}:{ports['broker']}" if ports else None


def ports_of(folder: Path) -> dict[str, int]:
    """Ports of the broker that ran last on a folder: `broker` for clients, `controller`; empty if none ever did."""
    try:
        ports: dict[str, int] = json.loads((folder / PORTS).read_text(encoding="utf-8") or "{}")
    except FileNotFoundError:
        return {}
    return ports


def try_lock(file: Path, *, shared: bool = False, make: bool = True) -> int | None:
    """A descriptor that holds the lock of a file, or None if somebody else does. It ends with its last descriptor.

    shared: for a look only; it holds up nobody but who wants to have the lock at this very moment.

    Raises:
        OSError: the file cannot be made, or is not there; or its file system has no locks.
    """
    handle = os.open(file, os.O_RDWR | (os.O_CREAT if make else 0) | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return handle
