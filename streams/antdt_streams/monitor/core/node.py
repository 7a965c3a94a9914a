"""What is remembered of one node: its track (grows with every record) and its health (judged with every window).

Owns their rows. Both are bounded: open samples by the horizon, the rest by the options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any, NamedTuple, TypeVar

from antdt_schemas.records import NodeClass

WORKER, SERVER = "worker", "server"
DERIVED = {"derived": True}


class Sample(NamedTuple):
    """One step of one node, as one of its micro-batches: samples, and seconds of own work, barrier wait excluded.
    taken: samples of the whole step; wall_s: all of its seconds.
    """

    step: int
    batch_size: float
    own_s: float
    taken: int = 0
    wall_s: float = 0.0


class Point(NamedTuple):
    """A window's medians: samples a step and own seconds a step."""

    batch_size: float
    own_s: float


@dataclass(slots=True)
class Track:
    """Where a node is and what it measured lately. `ring` holds the samples since its last change of rate.

    batch_size_max: what it can hold, as it says itself; 0: not known.
    """

    worker: str
    incarnation: str
    former: str
    hardware: str
    generation: int
    role: str = WORKER
    stage: int = 0
    records: int = 0
    record_first: int = -1
    last_step: int = -1
    plan: int = 0
    plan_batch: int = 0
    warmed: int = 0
    rejected: int = 0
    strays: int = 0
    ahead: bool = False
    known: bool = False
    open: list[Sample] = field(default_factory=list)
    ring: list[Sample] = field(default_factory=list)
    batch_size_max: int = 0
    # Derived from the ring, never stored.
    values: list[float] = field(default_factory=list, metadata=DERIVED)
    values_fixed_s: float = field(default=math.nan, metadata=DERIVED)

    @property
    def group(self) -> str:
        """Role and stage: only members of a group are compared."""
        return f"{self.role}.{self.stage}" if self.stage else self.role

    @property
    def pool(self) -> str:
        """Nodes of one pool share fixed costs and may be compared: group and declared hardware."""
        return f"{self.group}|{self.hardware}"

    def begin(self, generation: int) -> None:
        """Go on in a newer generation, whose steps may begin again further back."""
        self.generation, self.record_first, self.last_step, self.records = generation, -1, -1, 0
        self.ahead = False
        self.open.clear()

    def note_plan(self, plan: int, batch_size: int) -> None:
        """The size under a plan is the largest one taken under it: the last step of an epoch may be short."""
        self.plan_batch = max(self.plan_batch if plan == self.plan else 0, batch_size)
        self.plan = plan

    def restart(self, incarnation: str, generation: int, hardware: str) -> Track:
        """The track of a new incarnation: only what was counted stays."""
        known = self.role, self.stage
        return Track(self.worker, incarnation, self.incarnation, hardware, generation, *known, rejected=self.rejected)


@dataclass(slots=True)
class Health:
    """How a node compares with itself and with the others; logarithms of seconds a sample throughout.

    `base` is provisional until `settled`; `blind` and `warm` count windows in which the node is not judged.
    """

    base: float | None = None
    settled: bool = False
    base_s: float = 1.0
    base_fixed_s: float = 0.0
    warm: int = 0
    blind: int = 0
    silent: int = 0
    residuals: list[float] = field(default_factory=list)
    flags: list[bool] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    before: Point | None = None
    node_class: NodeClass = NodeClass.UNKNOWN
    severity: float = 0.0
    since_window: int = 0

    @property
    def usual(self) -> float:
        """Its median residual: how much slower than its baseline it has been lately."""
        return median(self.residuals) if self.residuals else 0.0


T = TypeVar("T")


def push(ring: list[T], item: T, size: int) -> None:
    """Append and keep the newest `size`."""
    ring.append(item)
    if len(ring) > size:
        del ring[: len(ring) - size]


STORED = {kind: tuple(f.name for f in fields(kind) if not f.metadata) for kind in (Track, Health)}


def to_row(value: Track | Health) -> list[Any]:
    """Fields in their order; the layout is part of the state's format number."""
    return [getattr(value, name) for name in STORED[type(value)]]


def track_from_row(row: Sequence[Any]) -> Track:
    track = Track(*row)
    track.open = [Sample(*x) for x in track.open]
    track.ring = [Sample(*x) for x in track.ring]
    return track


def health_from_row(row: Sequence[Any]) -> Health:
    health = Health(*row)
    health.points = [Point(*x) for x in health.points]
    health.before = Point(*health.before) if health.before else None
    health.node_class = NodeClass(health.node_class)
    return health
