"""What the processes of a job serve: their own figures, of a job in memory, as Prometheus sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from time import monotonic
from types import SimpleNamespace
from typing import Any

import antdt.launch.figures as of_launch
from antdt.host import whereabouts
from antdt.launch.slots import Last, Rules, Slots
from antdt_schemas import codec, records
from antdt_schemas.exporting import Exporter
from antdt_schemas.figures import Figures
from antdt_schemas.topics import MEASUREMENTS, STEPS
from antdt_streams.controller import service as controller
from antdt_streams.ledger.figures import LedgerFigures
from antdt_streams.ledger.life import Life, Moment
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.monitor import service as monitor
from antdt_streams.runtime.figures import RuntimeFigures
from antdt_streams.runtime.memory import MemoryDriver, MemoryStore, MemoryTopics
from antdt_streams.runtime.partitions import Partitions, Policy
from antdt_streams.runtime.service import Batch, Bounds, Observer, Raw, Service
from antdt_streams.storage.rows import Identity
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.ledger import SPEC
from tests.helpers.memory_ledger import JOB, LOG_ID, MemoryBroker, MemoryCache, MemoryLog, MemoryReplies, ports_of
from tests.replay.control_loop import Loop

WORKERS = ("w0", "w1")


class NoShelf:
    """There is no snapshot, and none is kept."""

    def newest(self, partition: int) -> None: ...

    def write(
        self, partition: int, topic_id: str, next_offset: int, rows: Mapping[bytes, bytes], timeout_s: Any
    ) -> None: ...


class Processor:
    """A stream processor that has taken these records, and its figures. left: how many more are in its topic."""

    def __init__(self, service: Service, inputs: list[Any], left: int = 0) -> None:
        assert service.figures is not None
        self.observer: Observer = service.figures()
        self.driver = MemoryDriver(service, JOB, MemoryTopics())
        owner = Partitions(
            service, Identity(JOB, "memory"), MemoryStore(), self.driver, NoShelf(), Policy(), self.observer
        )
        owner.begin(0, 1, Bounds(0, 0))
        raws = [Raw(codec.encode(one) if not isinstance(one, bytes) else one, 1000 + n) for n, one in enumerate(inputs)]
        owner.take(Batch(0, 0, raws, 1))
        source: Any = SimpleNamespace(known_ends=lambda: {0: len(raws) + left}, turned_s=monotonic())
        self.partitions, self.runtime = owner, RuntimeFigures(owner, source)

    def written(self, kind: type) -> list[Any]:
        topic = self.driver.service.outputs[kind]
        return self.driver.topics.records(topic, JOB)


def ledger_figures(requests: list[records.Request], known_end: int | None = None) -> tuple[LedgerFigures, Life]:
    """Of a ledger that has led a job from its first request to the last of these, and waits for more."""
    broker = MemoryBroker()
    log, cache_, replies = MemoryLog(broker), MemoryCache(MemoryStore()), MemoryReplies()
    options = LedgerOptions()
    clock = iter(float(second) for second in range(1_000_000))
    life = Life(JOB, LOG_ID, ports_of(broker, log, cache_, replies, lambda: 0.0, "a", options), options)
    end = len(requests) if known_end is None else known_end
    measured = LedgerFigures(lambda: end, lambda: len(replies.dead), lambda: next(clock))
    for request in requests:
        broker.send(request)
    for moment in life.run():
        measured.look(life, moment)
        if moment is Moment.IDLE:
            break
    return measured, life


def join(worker: str) -> records.Request:
    spec = replace(SPEC, workers_min=1)
    return records.Request(worker, f"{worker}.0", 1, records.Join("worker", "h", 1, "n", "", 0, spec), b"")


def launch_figures() -> Figures:
    slots, pages = Slots(WORKERS, "run", Rules()), {worker: whereabouts.Page() for worker in WORKERS}
    for worker in WORKERS:
        slots.start(worker)
    slots.on_exit("w0", -9, 1.0, Last())
    told = of_launch.standing(slots, pages)
    return lambda: of_launch.families(told)


@cache
def samples() -> dict[str, list[tuple[str, Mapping[str, str], float]]]:
    """service -> (name, labels, value) of each sample in what it serves."""
    loop = Loop.of(lambda number, now_s: 3.0 if number == 3 and now_s > 2 else 1.0).run(300)
    watching = Processor(monitor.service(), list(loop.records))
    deciding = Processor(controller.service("adjust-bs"), watching.written(records.Measurement))
    ledger, _ = ledger_figures([join(worker) for worker in WORKERS])
    served: dict[str, tuple[Figures, ...]] = {
        "ledger": (ledger,),
        "monitor": (watching.runtime, watching.observer),
        "controller": (deciding.runtime, deciding.observer),
        "launch": (launch_figures(),),
    }
    return {service: scraped(JOB, service, *figures) for service, figures in served.items()}


def scraped(job: str, service: str, *figures: Figures) -> list[tuple[str, Mapping[str, str], float]]:
    """What a scrape of these figures gives, through the text that Prometheus reads."""
    from prometheus_client import generate_latest

    text = generate_latest(Exporter(job, service, *figures).registry).decode()
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def served() -> dict[str, set[str]]:
    """Name of each metric that some process serves -> its labels."""
    out: dict[str, set[str]] = {}
    for found in samples().values():
        for name, labels, _ in found:
            out.setdefault(name, set()).update(labels)
    return out


TOPICS = {"monitor": STEPS.suffix, "controller": MEASUREMENTS.suffix}
