"""The event of a checkpoint: said to the ledger until it answers.

Owns which file is spoken of, and which answers mean it. Must not know what is in it, nor where it lies.
"""

from __future__ import annotations

from collections import deque

from antdt_schemas import records
from antdt_schemas.limits import CHECKPOINTS_KEPT
from antdt_schemas.records import Status

from antdt.worker.session.asking import ASKED_MAX, Due, Outbox, SessionOptions


class Files:
    """One file at a time. `kept_steps`: of those that the ledger may restore, oldest first; 0: not known to be less."""

    def __init__(self, options: SessionOptions) -> None:
        self.options = options
        self.newest: records.Checkpoint | None = None
        self.kept_steps = deque([0], maxlen=CHECKPOINTS_KEPT)
        self._due = Due()
        self._names: dict[int, str] = {}

    def wrote(self, file: records.Checkpoint) -> None:
        """A durable file holds this step. An older one is not spoken of again."""
        self.newest, self._due = file, Due()

    def begin(self, grant: records.Grant) -> None:
        """Another generation: what was written before is not spoken of any more."""
        if grant.kept_steps or grant.restore_file is not None:
            self.kept_steps = deque(grant.kept_steps or [0], maxlen=CHECKPOINTS_KEPT)
        self.newest, self._due = None, Due()

    def asked(self, number: int) -> bool:
        """Whether the request of this number spoke of a file."""
        return number in self._names

    def answered(self, reply: records.Reply) -> None:
        """A reply to any request came. A refused file is dropped: the next one is taken."""
        file = self.newest
        if file is not None and self._names.get(reply.number) == file.file and reply.status is not Status.CLOSED:
            if reply.status is Status.OK:
                self.kept_steps.append(file.step)
            self.newest = None

    def tick(self, now_s: float, committed: int, outbox: Outbox) -> None:
        """Speak of it once its step is committed."""
        file = self.newest
        if file is not None and file.step <= committed:
            if now_s - self._due.at_s >= self._due.pause_s(self.options):
                self._names[outbox.post(file, self._due, now_s)] = file.file
                if len(self._names) > ASKED_MAX:
                    del self._names[min(self._names)]
