"""Locks of files: they end with the process that has them, whatever it dies of, and say who that is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from antdt_schemas.data_folder import try_lock
from antdt_schemas.errors import UsageError


def acquire(path: Path, *, shared: bool = False) -> int | None:
    """A descriptor that holds the lock of a file, which is made if need be; None if somebody else holds it.

    Whoever has it alone is named in the file.

    Raises:
        UsageError: the file cannot be made there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = try_lock(path, shared=shared)
    except OSError as error:
        what = f"{path.parent} cannot be written: {error.strerror}."
        raise UsageError(f"{what} Name another data folder with --data-dir, or in ANTDT_DATA.") from error
    if handle is not None and not shared:
        _sign(handle)
    return handle


def convert(handle: int, *, shared: bool) -> bool:
    """Make a descriptor hold its file's lock like this; False: somebody else is in the way, and it holds nothing."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(handle, fcntl.LOCK_UN)
        return False
    if not shared:
        _sign(handle)
    return True


def _sign(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)


def holder(path: Path) -> int | None:
    """The process that has had it alone last."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
