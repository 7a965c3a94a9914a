"""What a policy is: what it sees, what it may propose, what it may remember."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from antdt_schemas.errors import UsageError
from antdt_schemas.records import Action, Assignment, Effect, NodeClass

WORKER, SERVER = "worker", "server"

Memory = Mapping[str, Any]
"""What a policy remembers: JSON values, nothing else. It is a row of the Controller's state."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as it is now; a KILL_RESTART has its `incarnation` as target. `seconds_per_sample` is None while
    unknown (of a server: seconds of service for a byte), `rate_error` is its relative standard error; `batch_size` is
    what it takes a step, `batch_size_max` what it can hold, 0 while that is not known. severity: log of how many times
    as slow as expected it is. fixed_s: seconds that a micro-batch costs whatever its size. busy: share of its time that
    was its own work.
    """

    worker: str
    incarnation: str
    group: str
    node_class: NodeClass
    severity: float
    seconds_per_sample: float | None
    rate_error: float | None
    fixed_s: float
    batch_size: int
    accumulation: int
    persistent_windows: int
    batch_size_max: int = 0
    role: str = WORKER
    stage: int = 0
    busy: float = 0.0

    @property
    def step_s(self) -> float:
        """Predicted seconds of its own work in a step; 0 while its rate is unknown."""
        rate = self.seconds_per_sample
        return 0.0 if rate is None else self.fixed_s * self.accumulation + self.batch_size * rate

    @property
    def expected_s_per_sample(self) -> float | None:
        """Its rate if it were as fast as expected of it."""
        rate = self.seconds_per_sample
        return None if rate is None else rate * math.exp(-max(self.severity, 0.0))


@dataclass(frozen=True, slots=True)
class ClusterView:
    """All nodes of the current generation, by name, and what the Controller has already asked for.

    `urgent` is true in the middle of a window; `pending` while the newest plan is not in effect yet. batch_size: the
    global batch that a plan has asked for last; 0: none has. strategy: the job's, empty while not known. step_s:
    seconds of a step as measured, all waiting included; samples_per_s: of all workers together; both 0 while not known.
    effects: what has come of earlier decisions, the newest last. busy: why the cluster has no room for a node that is
    started again, empty where it has. restarting: workers that were ordered to be started again, by whomever, and are
    not back; restarted_ms: when the last one was ordered, 0 if none was; restart_s: seconds that this has taken lately,
    0 while not known.
    """

    window: int
    generation: int
    last_step: int
    now_ms: int
    urgent: bool
    pending: bool
    plan: int
    nodes: tuple[NodeView, ...]
    rotating: bool
    structural: tuple[str, ...]
    loss: float
    learning_rate_factor: float
    backup_workers: int
    batch_size: int = 0
    strategy: str = ""
    step_s: float = 0.0
    samples_per_s: float = 0.0
    effects: tuple[Effect, ...] = ()
    busy: str = ""
    restarting: tuple[str, ...] = ()
    restart_s: float = 0.0
    restarted_ms: int = 0

    @property
    def workers(self) -> tuple[NodeView, ...]:
        return tuple(node for node in self.nodes if node.role == WORKER)

    @property
    def servers(self) -> tuple[NodeView, ...]:
        return tuple(node for node in self.nodes if node.role == SERVER)


CHANGES = {
    Action.ADJUST_BS: "assignments",
    Action.ADJUST_LR: "learning_rate_factor",
    Action.BACKUP_WORKERS: "backup_workers",
}
"""What of the plan an action changes. An action that is not here leaves the plan as it is."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One action, absolute. What is left None stays as it is; `reason` is one sentence for people.

    learning_rate_factor: from the step on at which the plan comes into force, the learning rates that the script and
    its scheduler set are multiplied by it. 1.0 takes an earlier one back. batch_size: the global batch of all workers
    together, with an ADJUST_BS (whose assignments then say in which proportion they take it); it is in force from the
    step on that the shard log says, which is a moment later. What learning rates make of it is the script's
    (`AgentOptions.learning_rate_with_batch`): the factor here may come into force at another step. backup_workers:
    under AllReduce it comes with assignments, in which so many have 0 samples.

    Raises:
        UsageError: the action does not say what it changes, or changes what it must leave.
    """

    action: Action
    reason: str
    predicted_gain: float = 0.0
    assignments: tuple[Assignment, ...] | None = None
    learning_rate_factor: float | None = None
    backup_workers: int | None = None
    target: str = ""
    batch_size: int | None = None

    def __post_init__(self) -> None:
        names = (*CHANGES.values(), "batch_size")
        named = [name for name in names if getattr(self, name) is not None]
        sized = self.action is Action.ADJUST_BS and self.batch_size is not None
        if self.action in CHANGES and CHANGES[self.action] not in named and not sized:
            raise UsageError(f"A proposal of {self.action} says nothing of {CHANGES[self.action]}.")
        if self.action not in CHANGES and named:
            raise UsageError(
                f"A proposal of {self.action} leaves the plan as it is: propose {named[0]} by its own action."
            )
        if self.learning_rate_factor is not None and not 0.0 < self.learning_rate_factor < math.inf:
            raise UsageError(f"learning_rate_factor={self.learning_rate_factor}: take a finite number above 0.")
        if self.batch_size is not None and (self.batch_size < 1 or self.action is not Action.ADJUST_BS):
            raise UsageError(f"batch_size={self.batch_size}: take 1 or more, with the action ADJUST_BS.")
        if self.backup_workers is not None and self.backup_workers < 0:
            raise UsageError(f"backup_workers={self.backup_workers}: take 0 or more.")


def spared(view: ClusterView) -> tuple[Assignment, ...]:
    """Workers that take part with no samples, as they stay where a plan is about the others."""
    return tuple(Assignment(n.worker, 0, 1) for n in view.workers if not n.batch_size and view.backup_workers)


@runtime_checkable
class Policy(Protocol):
    """Pure: the same view and memory give the same proposals, in every process.

    A change of behaviour is a new `version`: decisions carry it, so that they can be derived again. A policy that has
    parameters is made of them, `MyPolicy(parameters)`, a frozen dataclass with a default for each field, and has them
    as `parameters`; a change at run time makes another object. strategies: what names of strategies that it can work
    under begin with; a policy without them works under all.
    """

    @property
    def name(self) -> str:
        """Short name, as decisions carry it."""

    @property
    def version(self) -> int:
        """Version of the rules, from 1."""

    def decide(self, view: ClusterView, memory: Memory) -> tuple[tuple[Proposal, ...], Memory]:
        """Proposals in the order they are to be carried out, and what to remember."""
