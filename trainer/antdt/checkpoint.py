"""Durable files of a model: parts first, then the name, then the event. A half-written file never has a name."""

from __future__ import annotations

import os
from pathlib import Path

from antdt_schemas.errors import Unavailable


def file_name(generation: int, incarnation: str, step: int) -> str:
    """Unique over every branch of history: two incarnations never write the same file."""
    return f"step-{step:09d}-g{generation}-{incarnation}.pt"


def write(folder: Path, name: str, data: bytes) -> None:
    """Write `data` durably under `name`: content and directory entry are on disk when this returns.

    Raises:
        Unavailable: the disk is full or the folder cannot be written.
    """
    target, partial = folder / name, folder / f".{name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unavailable(f"The checkpoint {target} cannot be written: {error}.", "Free space, then go on.") from error


def read(folder: Path, name: str) -> bytes:
    """The content of a checkpoint.

    Raises:
        Unavailable: it is not there, which must not be answered by starting afresh.
    """
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        hint = "Every worker needs the folder of checkpoints (ANTDT_CHECKPOINTS): mount the same one everywhere."
        raise Unavailable(f"The checkpoint {folder / name} cannot be read: {error}.", hint) from error
