"""Figures of the Monitor: where the time of steps goes, and how the workers stand. Bounded, however many these are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from antdt_schemas.figures import Family, Histogram, Kind, Metric
from antdt_schemas.records import Measurement, NodeClass, NodeMeasurement, StepBatch

SLOWEST = 10
PHASES = ("data", "compute", "communication", "wait")

STEP = Metric("antdt_step_seconds", Kind.HISTOGRAM, "Where the time of a worker's step goes, all workers.", ("phase",))
STEPS = Metric("antdt_worker_steps_total", Kind.COUNTER, "Steps of all workers: of one step, one each.")
SAMPLES = Metric("antdt_worker_samples_total", Kind.COUNTER, "Samples in these steps.")
DROPPED = Metric(
    "antdt_dropped_steps_total", Kind.COUNTER, "Steps whose timings workers could not send: they are missing here."
)
CLASSES = Metric("antdt_worker_class", Kind.GAUGE, "How many workers are of each class.", ("class",))
SAMPLE = Metric(
    "antdt_worker_sample_seconds",
    Kind.GAUGE,
    f"Own seconds a sample of the {SLOWEST} slowest workers; all of them are in the topic measurements.",
    ("worker",),
)
SLOWNESS = Metric(
    "antdt_worker_slowness_ratio", Kind.GAUGE, "How many times slower than its kind, of the same workers.", ("worker",)
)
SEVERITY_MAX = 20.0  # of which this is half a billion
RATE = Metric("antdt_samples_per_second", Kind.GAUGE, "Of all workers together in the newest window; 0 if unknown.")
WINDOW_STEP = Metric("antdt_window_step_seconds", Kind.GAUGE, "Of a step in the newest window; 0 while unknown.")
WINDOW = Metric("antdt_window", Kind.GAUGE, "Number of the newest window that was measured.")
PLAN = Metric("antdt_plan_in_effect", Kind.GAUGE, "Number of the plan that the newest steps were made under.")


class MonitorFigures:
    """What came of the records of this process's life."""

    def __init__(self) -> None:
        self._phases = {phase: Histogram() for phase in PHASES}
        self._steps = self._samples = self._dropped = 0
        self._dropped_of: dict[str, int] = {}
        self._newest: Measurement | None = None

    def observe(self, record: StepBatch, outputs: Sequence[Measurement]) -> None:
        if record.role == "worker":
            columns = (record.data_s, record.compute_s, record.communication_s, record.wait_s)
            for histogram, column in zip(self._phases.values(), columns, strict=True):
                for seconds in column:
                    histogram.observe(seconds)
            self._steps += len(record.step)
            self._samples += sum(record.batch_size)
        self._note_dropped(record)
        if outputs:
            self._newest = outputs[-1]

    def _note_dropped(self, record: StepBatch) -> None:
        """A worker says how many it has dropped in all its life; the newest life counts on from nothing."""
        if record.dropped or record.worker in self._dropped_of:
            before = self._dropped_of.get(record.worker, 0)
            self._dropped += record.dropped - before if record.dropped >= before else record.dropped
            self._dropped_of[record.worker] = record.dropped

    def __call__(self) -> list[Family]:
        found: list[Family] = [
            (STEP, {(phase,): histogram for phase, histogram in self._phases.items()}),
            STEPS.of(self._steps),
            SAMPLES.of(self._samples),
            DROPPED.of(self._dropped),
        ]
        newest = self._newest
        nodes = [node for node in newest.nodes if node.role == "worker"] if newest is not None else []
        counts = Counter(node.node_class for node in nodes)
        slowest = sorted(nodes, key=_slowness, reverse=True)[:SLOWEST]
        return [
            *found,
            (CLASSES, {(str(kind),): counts[kind] for kind in NodeClass}),
            (SAMPLE, {(node.worker,): node.seconds_per_sample for node in slowest}),
            (SLOWNESS, {(node.worker,): math.exp(min(node.severity, SEVERITY_MAX)) for node in slowest}),
            RATE.of(newest.samples_per_s if newest is not None else 0.0),
            WINDOW_STEP.of(newest.step_s if newest is not None else 0.0),
            WINDOW.of(newest.window if newest is not None else 0),
            PLAN.of(newest.plan if newest is not None else 0),
        ]


def _slowness(node: NodeMeasurement) -> tuple[float, float]:
    return node.severity, node.seconds_per_sample
