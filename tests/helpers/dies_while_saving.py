"""A training script whose process dies by SIGKILL while it writes a checkpoint, and every other worker with it.

`--fates FOLDER` has one file for each checkpoint to come, N-SPARED or N-POINT. The one whose turn it is becomes
DIED-N-POINT, in which the name of the checkpoint stands. When none is left, nobody dies any more.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from antdt.examples import recorded
from antdt.files import checkpoint
from antdt.worker.session.files import Files
from antdt_schemas import records
from antdt_schemas.limits import INIT_FILE

SPARED = "spared"
POINTS = ("half-written", "not-synced", "not-renamed", "not-told")


class Fates:
    """What becomes of the checkpoint at hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fate: Path | None = None
        self.name, self.synced = "", 0
        self.spared = self.told = ""

    def begin(self, name: str) -> None:
        """A checkpoint is written: what is to become of it? None dies before the ledger knows the one that was spared:
        on a busy machine steps may be faster than answers, and then there would be no file to come back to.
        """
        self.fate, self.name, self.synced = min(self.folder.glob("[0-9]*"), default=None), name, 0
        if self.fate is None:
            return
        if self.fate.name.endswith(SPARED):
            self.fate.unlink()
            self.spared, self.fate = name, None
        elif self.spared not in ("", INIT_FILE, self.told):
            self.spared, self.fate = name, None

    def meet(self, point: str) -> None:
        """Die here if that is it. The launcher starts all again, so nobody is left whose memory holds the model."""
        if self.fate is None or not self.fate.name.endswith(point):
            return
        (self.folder / f"DIED-{self.fate.name}").write_text(self.name)
        self.fate.unlink()
        siblings = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()
        for pid in sorted(map(int, siblings), key=lambda pid: pid == os.getpid()):
            os.kill(pid, signal.SIGKILL)

    def install(self) -> None:
        """Put the deaths into what a checkpoint is written by."""
        write, real_open, real_fsync, real_replace = checkpoint.write, Path.open, os.fsync, Path.replace
        real_answered = Files.answered

        def answered(files: Files, reply: records.Reply) -> None:
            before = files.newest
            real_answered(files, reply)
            if before is not None and files.newest is None and reply.status is records.Status.OK:
                self.told = before.file

        def begun(folder: Path, name: str, data: bytes) -> bytes:
            self.begin(name)
            return write(folder, name, data)

        def opened(path: Path, *how: Any, **more: Any) -> Any:
            file = real_open(path, *how, **more)
            return HalfWritten(file, self) if path.suffix == ".partial" else file

        def fsync(descriptor: int) -> None:
            self.synced += 1
            if self.synced == 1:
                self.meet("not-synced")
            real_fsync(descriptor)
            if self.synced == 2:  # the folder: its file has the name by now
                self.meet("not-told")

        def replace(path: Path, target: Path) -> Path:
            self.meet("not-renamed")
            return real_replace(path, target)

        for place, name, patched in (
            (checkpoint, "write", begun), (Path, "open", opened), (os, "fsync", fsync), (Path, "replace", replace),
            (Files, "answered", answered),
        ):  # fmt: skip
            setattr(place, name, patched)


class HalfWritten:
    """A file whose writer may die in the middle of a write."""

    def __init__(self, file: Any, fates: Fates) -> None:
        self.file, self.fates = file, fates
        self.flush, self.fileno = file.flush, file.fileno

    def write(self, data: bytes) -> None:
        """Write in two halves."""
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.fates.meet("half-written")
        self.file.write(data[len(data) // 2 :])

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


if __name__ == "__main__":
    at = sys.argv.index("--fates")
    Fates(Path(sys.argv[at + 1])).install()
    recorded.main(sys.argv[1:at] + sys.argv[at + 2 :])
