"""Durable files of a model: parts first, then the name, then the event. A half-written file never has a name.

A file is what `torch.save` wrote and, behind it, MARK and the BLAKE2b-128 of that: `torch.load` reads it as it is, and
whoever restores from it knows that it is whole. `b2sum -l 128 FILE` gives the digest that the log has of it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from antdt_schemas.errors import Mismatch, Unavailable

DIGEST_SIZE = 16
PIECE_SIZE_BYTES = 2**18
MARK = b"ANTDTCK1"
NAME = re.compile(r"\.?step-(\d{9,})-.*\.(pt|part)(\.partial)?")


def file_name(generation: int, incarnation: str, step: int) -> str:
    """Unique over every branch of history: two incarnations never write the same file."""
    return f"step-{step:09d}-g{generation}-{incarnation}.pt"


def step_of(name: str) -> int:
    """Of the model that is in a file of this name."""
    match = NAME.fullmatch(name)
    assert match is not None, name
    return int(match[1])


class Digesting:
    """A file that is written from its front to its end; its digest so far. `torch.save` calls it out of native code,
    which no exception may cross: what the system refuses is remembered, and all that follows goes nowhere.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None
        self.digest = blake2b(digest_size=DIGEST_SIZE)

    def write(self, data: Any) -> int:
        """The next piece of it."""
        if self._error is None:
            try:
                self._file.write(data)
                self.digest.update(data)
            except OSError as error:
                self._error = error
        return len(data)

    def flush(self) -> None:
        """Nothing is due before its end."""

    def check(self) -> None:
        """Raises OSError where something could not be written."""
        if self._error is not None:
            raise self._error


def write(folder: Path, name: str, save: Callable[[Digesting], Any]) -> bytes:
    """Write durably under `name` what `save` writes: content and directory entry are on disk when this returns the
    file's digest.

    What others left half-written goes away first (but parts, which several write at a time), and so does this one if it
    fails: it may be what fills the disk.

    Raises:
        Unavailable: the disk is full or the folder cannot be written.
    """
    target, partial = folder / name, folder / f".{name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # One member writes at a time. Somebody who only slept finds no file to give a name to, and says so.
        for left in folder.glob(".*.pt.partial"):
            _remove(left)
        try:
            with partial.open("wb") as file:
                out = Digesting(file)
                save(out)
                out.write(MARK + out.digest.digest())
                out.check()
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            _remove(partial)
            raise
        _sync(folder)
    except OSError as error:
        why = error.strerror or str(error)
        raise Unavailable(f"The checkpoint {target} cannot be written: {why}.", "Is the disk full?") from error
    return out.digest.digest()


def write_bytes(folder: Path, name: str, data: bytes | memoryview) -> bytes:
    """The same, of what is at hand already. Raises Unavailable."""
    return write(folder, name, lambda out: out.write(data))


def read(folder: Path, name: str, job: str) -> BinaryIO:
    """What was written under `name`, whole: an open file at its front, which is the caller's to close.

    Raises:
        Unavailable: it is not there, which must not be answered by starting afresh.
        Mismatch: it is not what was written.
    """
    path = folder / name
    try:
        file = path.open("rb")
        try:
            mark, stated, found = _digests_of(file)
        except BaseException:
            file.close()
            raise
    except OSError as error:
        hint = (
            "Every worker needs the folder of checkpoints (ANTDT_CHECKPOINTS): mount the same one everywhere. If the "
            f"file is gone for good, go back to an older one: {rollback(job)}."
        )
        raise Unavailable(f"The checkpoint {path} cannot be read: {error}.", hint) from error
    if mark != MARK or stated != found:
        file.close()
        expected = stated.hex() if mark == MARK else f"one at its end, behind {MARK.decode()}"
        raise Mismatch(
            f"The digest of checkpoint {path}",
            expected,
            found.hex(),
            f"The file is torn or damaged; nothing was overwritten with it. Go back to an older one: {rollback(job)}.",
        )
    return file


def read_bytes(folder: Path, name: str, job: str) -> bytes:
    """The same, as bytes, without what stands at its end. Raises Unavailable, Mismatch."""
    with read(folder, name, job) as file:
        return file.read()[: -len(MARK) - DIGEST_SIZE]


def _digests_of(file: BinaryIO) -> tuple[bytes, bytes, bytes]:
    """What stands at its end, the digest behind that, and the one of what is before them."""
    left = max(0, os.fstat(file.fileno()).st_size - len(MARK) - DIGEST_SIZE)
    digest = blake2b(digest_size=DIGEST_SIZE)
    while left > 0 and (piece := file.read(min(left, PIECE_SIZE_BYTES))):
        digest.update(piece)
        left -= len(piece)
    trailer = file.read()
    file.seek(0)
    return trailer[:-DIGEST_SIZE], trailer[-DIGEST_SIZE:], digest.digest()


def digest_of(body: bytes) -> bytes:
    """That of the whole file, trailer included, as the log has it."""
    digest = blake2b(body, digest_size=DIGEST_SIZE)
    digest.update(MARK + digest.digest())
    return digest.digest()


def rollback(job: str) -> str:
    """The command that leads to another checkpoint."""
    return f"`antdt rollback {job} --step S`"


def prune(folder: Path, oldest_step: int) -> int:
    """Removes the files of steps before `oldest_step`, half-written ones as well; returns how many."""
    removed = 0
    with suppress(OSError):  # a folder that is away for now
        for path in folder.iterdir():
            match = NAME.fullmatch(path.name)
            if match is not None and int(match[1]) < oldest_step:
                removed += _remove(path)
    return removed


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such thing
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> bool:
    """Somebody else's, or gone already: it costs room, nothing else."""
    with suppress(OSError):
        path.unlink()
        return True
    return False
