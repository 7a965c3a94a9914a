"""A run as its topics show it: progress from the shard log, rates from the steps, plans from the decisions."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

from antdt_schemas import codec, records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError
from antdt_schemas.topics import DECISIONS, MEASUREMENTS, SHARD_LOG, STEPS, Topic

from antdt_streams.ledger.core.fold import Fold
from antdt_streams.reader import TopicReader

STEPS_KEPT = 8
EVERYTHING = 1 << 40


@dataclass(slots=True)
class WorkerView:
    """The newest steps of one worker."""

    batch_size: int = 0
    step: int = 0
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
        self.fold = Fold()
        self.workers: dict[str, WorkerView] = {}
        self.decisions: list[records.Decision] = []
        self.failure: AntdtError | None = None
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
                    for raw in reader.poll(0.0):
                        with self.lock:
                            self._take(topic.record, raw.offset, raw.value)
        except AntdtError as error:
            self.failure = error
        finally:
            for _, reader in readers:
                reader.__exit__()

    def stop(self) -> None:
        """End the thread."""
        self._halt.set()
        self.join(5)

    def _take(self, kind: type, offset: int, value: bytes) -> None:
        if kind is records.Entry:
            self.fold.read(offset, value)
        elif kind is records.StepBatch:
            self._steps(codec.decode(value, records.StepBatch))
        elif kind is records.Measurement:
            for node in codec.decode(value, records.Measurement).nodes:
                self.workers.setdefault(node.worker, WorkerView()).node_class = str(node.node_class)
        else:
            decision = codec.decode(value, records.Decision)
            if not self.decisions or decision.plan > self.decisions[-1].plan:
                self.decisions.append(decision)

    def _steps(self, batch: records.StepBatch) -> None:
        view = self.workers.setdefault(batch.worker, WorkerView())
        for i, step in enumerate(batch.step):
            view.step, view.batch_size = step, batch.batch_size[i]
            view.wait_s = batch.wait_s[i]
            if batch.batch_size[i]:
                view.own_s.append((batch.batch_size[i], batch.data_s[i] + batch.compute_s[i]))
