"""The files of one run's model, as this worker writes and reads them.

Owns where they lie, what they are labelled with, and that nothing is overwritten by a file of something else. Must not
know when one is due, nor who is a member.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from antdt_schemas import records
from antdt_schemas.errors import ForeignState, Unavailable
from antdt_schemas.limits import INIT_FILE

from antdt.files import checkpoint
from antdt.strategies.base import Model
from antdt.worker.session import Session

INIT_NAME = f"{INIT_FILE}.pt"
RETRY_S, RETRY_MAX_S = 1.0, 30.0
WRITTEN = "written"  # a label: when, in UTC

log = logging.getLogger("antdt")


class Trouble:
    """Files that could not be written: since when, how often, and when to try again."""

    def __init__(self) -> None:
        self.since_s, self.tries, self.next_s = 0.0, 0, 0.0

    def over(self) -> None:
        """A file was written."""
        if self.tries:
            log.warning("checkpoints can be written again, after %.0f s", monotonic() - self.since_s)
        self.tries, self.next_s = 0, 0.0

    def failed(self, error: Unavailable, last_good: str) -> None:
        """Said at each try: the pauses between them grow."""
        now_s = monotonic()
        self.since_s = self.since_s if self.tries else now_s
        pause_s = min(RETRY_MAX_S, RETRY_S * 2**self.tries)
        self.tries, self.next_s = min(self.tries + 1, 16), now_s + pause_s
        said = "%s Training goes on; %s. Failing for %.0f s, tried again in %.0f s."
        log.warning(said, error, last_good, now_s - self.since_s, pause_s)


class ModelFiles:
    """`written_step`: that of the file which this worker wrote last in this generation, `written_name`; -1 for none.

    A file that cannot be written ends nothing: it is owed, and tried again with pauses. The model before any step is
    kept in memory for as long.
    """

    def __init__(self, root: Path, job: str, strategy: Model) -> None:
        self.root, self.job, self.strategy = root, job, strategy
        self.run_id, self.written_step, self.written_name = "", -1, ""
        self.owes, self._trouble = False, Trouble()
        self._init: bytes | None = None
        self._init_trouble = Trouble()

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
        unsaved = self._init if name == INIT_NAME else None
        if name != INIT_NAME or not fresh or _is_there(folder / name):
            with io.BytesIO(unsaved) if unsaved else checkpoint.read(folder, name, self.job) as file:

                def check(saved: Any) -> None:
                    self._check(name, saved.labels, step=(grant.committed, saved.progress.step))

                strategy.restore(file, check, f"Checkpoint {folder / name}")
        else:
            self._write_init(random)

    def size_bytes(self, grant: records.Grant) -> int:
        """Of the grant's file, or the largest of its parts; 0 where there is none."""
        name = INIT_NAME if grant.restore_file == INIT_FILE else grant.restore_file
        if not name:
            return 0
        with suppress(OSError):  # whoever reads it says so
            return max((path.stat().st_size for path in self.folder.glob(f"{Path(name).stem}*")), default=0)
        return 0

    @property
    def owes_init(self) -> bool:
        """Whether the model before any step is no file yet."""
        return self._init is not None

    def retry_init(self) -> None:
        """The model before any step becomes a file, if it is not one yet."""
        if self._init is None or monotonic() < self._init_trouble.next_s:
            return
        kept = self._init
        self._try_init(lambda out: out.write(kept))

    def _write_init(self, random: Sequence[bytes]) -> None:
        """It is in memory only where it cannot be a file at once."""
        labels = self._stamped(INIT_NAME)
        if not self._try_init(lambda out: self.strategy.save(out, random, labels)):
            self._init = self.strategy.snapshot(random, labels)

    def _try_init(self, save: Callable[[checkpoint.Digesting], Any]) -> bool:
        try:
            checkpoint.write(self.folder, INIT_NAME, save)
        except Unavailable as error:
            self._init_trouble.failed(error, "it is kept in memory, and there is no older one")
            return False
        self._init = None
        self._init_trouble.over()
        return True

    def take_final(self, file: str) -> str:
        """The job ended, perhaps without this worker: it started later, or was behind. The final model is that file.
        Whoever made its step holds it, and loads nothing: beside its own, another model may have no room. Returns
        since when it is; empty for whoever has written it.

        Raises ReplicasDiffer where this worker has that very step and another model: the file would hide it.
        """
        strategy, since = self.strategy, list[str]()
        # No step is made behind that file, and no other model is adopted, before a generation begins, which forgets it.
        if (file, strategy.step_number) == (self.written_name, self.written_step) and not strategy.void:
            return ""
        # Names are unique, and one who never was granted anything does not know the run.
        found = next(self.root.glob(f"*/{file}"), self.root / file)
        with checkpoint.read(found.parent, file, self.job) as data:
            if not strategy.holds(found):
                strategy.restore(data, lambda saved: since.append(saved.labels.get(WRITTEN, "")), f"Checkpoint {found}")
        return "".join(since) or _utc(found.stat().st_mtime)

    @property
    def may_try(self) -> bool:
        """Whether to write now: not so soon after a write that failed."""
        return monotonic() >= self._trouble.next_s

    def write(self, session: Session, random: Sequence[bytes], patience_s: float = 0.0) -> records.Checkpoint | None:
        """A durable file of the model as it is: parts first, then the name. The event is for the caller to send.

        None: it could not be written, and is owed; that was said. patience_s: for how long to try again here.

        Raises NotFinite for a model that nobody should go back to: the files that there are stay.
        """
        self.strategy.check_finite()
        step, until = self.strategy.step_number, monotonic() + patience_s
        name = checkpoint.file_name(session.generation, session.incarnation, step)
        labels = self._stamped(name)
        while True:
            try:
                digest = checkpoint.write(self.folder, name, lambda out: self.strategy.save(out, random, labels))
            except Unavailable as error:
                self.owes = True
                self._trouble.failed(error, self.last_good(session))
                self.prune(session)
                if self._trouble.next_s > until:
                    return None
                sleep(max(0.0, self._trouble.next_s - monotonic()))
            else:
                break
        self.owes, self.written_step, self.written_name = False, step, name
        self._trouble.over()
        self._init_trouble.next_s = 0.0  # there is room now
        return records.Checkpoint(session.generation, step, self.strategy.lineage, name, digest)

    def last_good(self, session: Session) -> str:
        """Which checkpoint the ledger would go back to."""
        step = max(session.files.kept_steps)
        return f"the last good checkpoint is that of step {step}" if step else "there is no checkpoint of a step yet"

    def _stamped(self, name: str) -> dict[str, str]:
        return {**self._labels(name), WRITTEN: _utc(datetime.now(UTC).timestamp())}

    def prune(self, session: Session) -> None:
        """Remove what no event can name any more: the ledger refuses what is older than the oldest that it keeps."""
        checkpoint.prune(self.folder, min(session.files.kept_steps))

    def _labels(self, name: str) -> dict[str, str]:
        return {"run": self.run_id, "job": self.job, "file": name}

    def _check(self, name: str, labels: Mapping[str, str], **numbers: tuple[int, int]) -> None:
        """Before anything is overwritten: the file is the one of this grant, not one that was put in its place.

        numbers: what the grant says, and what the file has.
        """
        hint = f"Go back to another one: {checkpoint.rollback(self.job)}."
        expected = {**self._labels(name), **{label: str(one) for label, (one, _) in numbers.items()}}
        found = {**labels, **{label: str(other) for label, (_, other) in numbers.items()}}
        for label, value in expected.items():
            if found.get(label) != value:
                what = f"The {label} of checkpoint {self.folder / name}"
                raise ForeignState(what, value, found.get(label, "none"), hint)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder that cannot be looked into: the model at hand is as good, nothing was made of it yet
        return False


def _utc(timestamp_s: float) -> str:
    return datetime.fromtimestamp(timestamp_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
