"""A run as its topics show it: progress from the shard log, rates from the steps, plans from the decisions."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.topics import DECISIONS, MEASUREMENTS, SHARD_LOG, STEPS, Topic

from antdt_streams.kafka.reader import Raw, TopicReader, decoded
from antdt_streams.ledger.core.fold import Fold, Verdict

STEPS_KEPT = 8
EVERYTHING = 1 << 40


@dataclass(slots=True)
class WorkerView:
    """The newest steps of one worker. batch_size: the most it took in one step under the plan."""

    batch_size: int = 0
    plan: int = 0
    node_class: str = "unknown"
    own_s: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=STEPS_KEPT))
    wait_s: float = 0.0

    @property
    def samples_per_s(self) -> float:
        """Samples a second of own time."""
        seconds = sum(s for _, s in self.own_s)
        return sum(n for n, _ in self.own_s) / seconds if seconds else 0.0


class Watch(threading.Thread):
    """Follows the topics of a job until told to stop. Read `fold`, `workers`, `decisions` under `lock`."""

    def __init__(self, connection: Connection, job: str) -> None:
        super().__init__(name=f"watch-{job}", daemon=True)
        self.connection, self.job = connection, job
        self.lock = threading.Lock()
        self.fold = Fold(cached=False)
        self.workers: dict[str, WorkerView] = {}
        self.decisions: list[records.Decision] = []
        self.failure: BaseException | None = None
        self.first_ms: int | None = None
        self.now_ms = 0
        self.done_by_s: list[int] = []
        self._halt = threading.Event()

    def run(self) -> None:
        """Poll the four topics in turn."""
        readers: list[tuple[Topic, TopicReader]] = []
        try:
            for topic in (SHARD_LOG, STEPS, MEASUREMENTS, DECISIONS):
                reader = TopicReader(self.connection, self.job, topic)
                readers.append((topic, reader))
                reader.follow(EVERYTHING)
            while not self._halt.wait(0.1):
                for topic, reader in readers:
                    raws = reader.poll(0.0)
                    with self.lock:
                        self._take(topic, raws)
        except BaseException as error:  # noqa: BLE001  whoever reads this raises it
            self.failure = error
        finally:
            for _, reader in readers:
                reader.__exit__()

    def stop(self) -> None:
        """End the thread."""
        self._halt.set()
        if self.is_alive():
            self.join(5)

    def _take(self, topic: Topic, raws: list[Raw]) -> None:
        if topic is SHARD_LOG:
            for raw in raws:
                if self.fold.read(raw.offset, raw.value) is Verdict.COUNTED:
                    self._progress(self.fold.entry)
            return
        record: Any
        for _, record in decoded(raws, topic.record):
            if isinstance(record, records.StepBatch):
                self._steps(record)
            elif isinstance(record, records.Measurement):
                for node in record.nodes:
                    self.workers.setdefault(node.worker, WorkerView()).node_class = str(node.node_class)
            elif not self.decisions or record.plan > self.decisions[-1].plan:
                self.decisions.append(record)

    def _progress(self, body: records.EntryBody | None) -> None:
        """Samples in the model at the end of each second, by the broker's clock."""
        state = self.fold.state
        if not isinstance(body, records.Cycle) or state is None:
            return
        if self.first_ms is None and any(isinstance(event, records.Leased) for event in body.events):
            self.first_ms = body.now_ms
        if self.first_ms is not None and any(isinstance(event, records.Committed) for event in body.events):
            self.now_ms = body.now_ms
            second = max(0, body.now_ms - self.first_ms) // 1000
            while len(self.done_by_s) <= second:
                self.done_by_s.append(self.done_by_s[-1] if self.done_by_s else 0)
            self.done_by_s[second] = state.shards.committed_total

    @property
    def train_s(self) -> float:
        """Seconds from the first lease to the newest commit, as the audit counts them."""
        return 0.0 if self.first_ms is None or not self.now_ms else (self.now_ms - self.first_ms) / 1000

    @property
    def speeds(self) -> list[int]:
        """Samples in each whole second so far."""
        return [b - a for a, b in pairwise([0, *self.done_by_s])]

    def _steps(self, batch: records.StepBatch) -> None:
        view = self.workers.setdefault(batch.worker, WorkerView())
        for i in range(len(batch.step)):
            size, same = batch.batch_size[i], batch.plan[i] == view.plan
            view.plan, view.batch_size = batch.plan[i], max(size, view.batch_size if same else 0)
            view.wait_s = batch.wait_s[i]
            if size:
                view.own_s.append((size, batch.data_s[i] + batch.compute_s[i]))
