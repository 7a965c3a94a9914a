"""What is measured and decided; and what services write of records that they could not take, and of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What a worker measured in some steps, one column per quantity (topic steps, keyed by worker)."""

    worker: str
    incarnation: str
    generation: int
    node: str
    hardware: str
    number: int
    dropped: int
    step: tuple[int, ...]
    batch_size: tuple[int, ...]
    plan: tuple[int, ...]
    data_s: tuple[float, ...]
    compute_s: tuple[float, ...]
    communication_s: tuple[float, ...]
    wait_s: tuple[float, ...]
    batch_size_max: int = 0
    role: str = "worker"
    stage: int = 0
    strategy: str = ""
    micro_batches: tuple[int, ...] = ()
    order: str = ""
    lineage: bytes = b""


@dataclass(frozen=True, slots=True)
class Cause:
    """The record that made the service write this one; readers drop repeats by it."""

    partition: int
    offset: int
    index: int


class NodeClass(StrEnum):
    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    TRANSIENT = "transient"
    PERSISTENT = "persistent"
    DETERMINISTIC = "deterministic"
    LEADER = "leader"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class NodeMeasurement:
    worker: str
    incarnation: str
    group: str
    node_class: NodeClass
    severity: float
    seconds_per_sample: float
    rate_error: float
    fixed_s: float
    batch_size: int
    persistent_windows: int
    rejected: int
    batch_size_max: int = 0
    role: str = "worker"
    stage: int = 0
    busy: float = 0.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the Monitor knows after a window (or a jump), absolute (topic measurements): one record for all nodes, so
    that nobody decides on half of a window.
    """

    cause: Cause
    window: int
    urgent: bool
    generation: int
    last_step: int
    plan: int
    nodes: tuple[NodeMeasurement, ...]
    rotating: bool
    structural: tuple[str, ...]
    loss: float
    first_offset: int
    last_offset: int
    strategy: str = ""
    step_s: float = 0.0
    samples_per_s: float = 0.0


class Action(StrEnum):
    NONE = "NONE"
    ADJUST_BS = "ADJUST_BS"
    ADJUST_LR = "ADJUST_LR"
    BACKUP_WORKERS = "BACKUP_WORKERS"
    KILL_RESTART = "KILL_RESTART"


@dataclass(frozen=True, slots=True)
class Assignment:
    worker: str
    batch_size: int
    accumulation: int


class Verdict(StrEnum):
    UNCLEAR = "unclear"
    HELPED = "helped"
    NO_EFFECT = "no_effect"
    HARMED = "harmed"
    NOT_CARRIED_OUT = "not_carried_out"


@dataclass(frozen=True, slots=True)
class Effect:
    """What has come of an earlier decision, as measured."""

    decision: Cause
    action: Action
    plan: int
    worker: str
    predicted_gain: float
    measured_gain: float
    gain_error: float
    windows: int
    in_effect_step: int
    delay_s: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Decision:
    """What the Controller commands, absolute (topic decisions). An Agent reads the topic from its start; the newest
    plan counts. author: who ordered it; empty: the policy did.
    """

    cause: Cause
    plan: int
    action: Action
    assignments: tuple[Assignment, ...]
    learning_rate_factor: float
    backup_workers: int
    target: str
    policy: str
    policy_version: int
    reason: str
    predicted_gain: float
    evidence_first: int
    evidence_last: int
    batch_size: int = 0
    parameters: str = ""
    effect: Effect | None = None
    author: str = ""


class Cluster(StrEnum):
    UNCHANGED = "unchanged"
    BUSY = "busy"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Steering:
    """What an operator, or a scheduler, tells a Controller (topic measurements, which it reads in one order). stack:
    the worker or server whose stacks its launcher is to send, which reads of it in the answer. restart: the incarnation
    that is to be started again. promote: the policy that decides from here on, with these parameters and no other ones.
    """

    author: str
    policy: str = ""
    parameters: tuple[Parameter, ...] = ()
    cluster: Cluster = Cluster.UNCHANGED
    busy_s: float = 0.0
    reason: str = ""
    stack: str = ""
    restart: str = ""
    promote: str = ""


@dataclass(frozen=True, slots=True)
class Stack:
    """The Python stacks of a worker, as its launcher found them for an operator (topic steps, keyed by worker).

    asked: offset of the Steering that asked. pid: 0 where it has no process. text: each thread by its name, with the
    innermost call first; problem: why there is none.
    """

    worker: str
    incarnation: str
    asked: int
    launcher: str
    pid: int
    phase: str
    phase_s: float
    detail: str
    text: str
    cut_bytes: int
    problem: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that a service could not decode or accept (topic dead-letters)."""

    service: str
    topic: str
    partition: int
    offset: int
    reason: str
    payload: bytes
    payload_size: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One part of a service's state at a position of its input (topic snapshots, keyed by service, slot and part).
    Only ever a short cut: the input is the truth.
    """

    service: str
    topic_id: str
    partition: int
    next_offset: int
    part: int
    parts: int
    digest: bytes
    rows: bytes
