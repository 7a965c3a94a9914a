"""What the shard log shows while it is written: committed steps with the time they were seen, and who leads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError
from antdt_schemas.topics import SHARD_LOG

from antdt_streams.kafka.reader import TopicReader
from antdt_streams.ledger.core.fold import Fold, Verdict

POLL_S = 0.02


class Progress(threading.Thread):
    """Follows the log of a job from its start. A broker that is away is waited for; `stop` ends it."""

    def __init__(self, connection: Connection, job: str) -> None:
        super().__init__(name=f"progress-{job}", daemon=True)
        self._reader = TopicReader(connection, job, SHARD_LOG)
        self._fold = Fold(cached=False)
        self._halt = threading.Event()
        self._changed = threading.Condition()
        self.step = self.commits = self.rollbacks = self.leaders = 0
        self.generation = self.members = self.source_step = 0
        self.committed_at_s = 0.0
        self.leader = ""
        self.failure: AntdtError | None = None

    def run(self) -> None:
        """Read until told to stop."""
        self._reader.follow(1 << 40)
        try:
            while not self._halt.is_set():
                for raw in self._reader.poll(POLL_S):
                    if self._fold.read(raw.offset, raw.value) is not Verdict.VOID:
                        self._take(self._fold.entry, monotonic())
        except AntdtError as error:
            self.failure = error
        finally:
            self._reader.__exit__()

    def _take(self, body: records.EntryBody | None, now_s: float) -> None:
        with self._changed:
            if isinstance(body, records.Leader):
                self.leader = body.owner
                self.leaders += 1
            elif isinstance(body, records.Cycle):
                for event in body.events:
                    if isinstance(event, records.Committed):
                        self.step, self.committed_at_s = event.step, now_s
                        self.commits += 1
                    elif isinstance(event, records.RolledBack):
                        self.step = event.step
                        self.rollbacks += 1
                    elif isinstance(event, records.Granted):
                        self.generation, self.members = event.generation, len(event.members)
                        self.source_step = event.committed if event.source_step is None else event.source_step
            self._changed.notify_all()

    def wait(self, true: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something came that makes `true` so; False if it does not in time."""
        with self._changed:
            return self._changed.wait_for(true, timeout_s)

    @property
    def leader_pid(self) -> int | None:
        """Process id of the leader, where it runs on this machine."""
        pid = self.leader.rpartition(":")[2]
        return int(pid) if pid.isdigit() else None

    def stop(self) -> None:
        """End the thread."""
        self._halt.set()
        self.join(5)
