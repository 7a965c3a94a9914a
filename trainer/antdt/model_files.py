"""The files of one run's model, as this worker writes and reads them.

Owns where they lie, what they are labelled with, and that nothing is overwritten by a file of something else. Must not
know when one is due, nor who is a member.
"""

from __future__ import annotations

from pathlib import Path

from antdt_schemas import records
from antdt_schemas.errors import ForeignState
from antdt_schemas.limits import INIT_FILE

from antdt import checkpoint
from antdt.allreduce import AllReduce
from antdt.allreduce.state import Saved
from antdt.session import Session

INIT_NAME = f"{INIT_FILE}.pt"


class ModelFiles:
    """`written_step`: that of the file which this worker wrote last in this generation; -1 for none."""

    def __init__(self, root: Path, job: str, strategy: AllReduce) -> None:
        self.root, self.job, self.strategy = root, job, strategy
        self.run_id, self.written_step = "", -1

    @property
    def folder(self) -> Path:
        """That of the run."""
        return self.root / self.run_id

    def restore(self, grant: records.Grant, rank: int) -> None:
        """The first member loads the grant's file. The model before any step becomes one when it is first used.

        What the others hold is void until they have it from the first, or it would be taken for part of this run.
        """
        strategy, folder = self.strategy, self.folder
        fresh = grant.restore_file == INIT_FILE and strategy.step_number == 0 and not strategy.void
        strategy.void = not fresh
        random = strategy.gather_random() if grant.restore_file == INIT_FILE else []
        if rank:
            return
        name = INIT_NAME if grant.restore_file == INIT_FILE else grant.restore_file or ""
        if name != INIT_NAME or not fresh or (folder / name).exists():
            data = checkpoint.read(folder, name, self.job)
            strategy.restore(data, lambda saved: self._check(saved, grant, name))
        else:
            checkpoint.write(folder, name, strategy.snapshot(random, self._labels(name)))

    def take_final(self, file: str) -> None:
        """The job ended without this worker: it started later, or was behind. The final model is that file.

        Raises ReplicasDiffer where this worker has that very step and another model: the file would hide it.
        """
        # Names are unique, and one who never was granted anything does not know the run.
        found = next(self.root.glob(f"*/{file}"), self.root / file)
        data = checkpoint.read(found.parent, file, self.job)
        self.strategy.restore(data, lambda saved: self.strategy.check_equal(saved, file))

    def write(self, session: Session, random: list[bytes]) -> records.Checkpoint:
        """A durable file of the model as it is: parts first, then the name. The event is for the caller to send.

        Raises NotFinite for a model that nobody should go back to: the files that there are stay.
        """
        self.strategy.check_finite()
        step = self.strategy.step_number
        name = checkpoint.file_name(session.generation, session.incarnation, step)
        digest = checkpoint.write(self.folder, name, self.strategy.snapshot(random, self._labels(name)))
        self.written_step = step
        return records.Checkpoint(session.generation, step, self.strategy.lineage, name, digest)

    def prune(self, session: Session) -> None:
        """Remove what no event can name any more: the ledger refuses what is older than the oldest that it keeps."""
        checkpoint.prune(self.folder, min(session.files.kept_steps))

    def _labels(self, name: str) -> dict[str, str]:
        return {"run": self.run_id, "job": self.job, "file": name}

    def _check(self, saved: Saved, grant: records.Grant, name: str) -> None:
        """Before anything is overwritten: the file is the one of this grant, not one that was put in its place."""
        hint = f"Go back to another one: {checkpoint.rollback(self.job)}."
        expected = {**self._labels(name), "step": str(grant.committed)}
        found = {**saved.labels, "step": str(saved.progress.step)}
        for label, value in expected.items():
            if found.get(label) != value:
                what = f"The {label} of checkpoint {self.folder / name}"
                raise ForeignState(what, value, found.get(label, "none"), hint)
