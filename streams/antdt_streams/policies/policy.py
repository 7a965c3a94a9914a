"""What a policy is: what it sees, what it may propose, what it may remember."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from antdt_schemas.records import Action, Assignment, NodeClass

Memory = Mapping[str, Any]
"""What a policy remembers: JSON values, nothing else. It is a row of the Controller's state."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as it is now; a KILL_RESTART has its `incarnation` as target. `seconds_per_sample` is None while
    unknown, `rate_error` is its relative standard error; `batch_size` is what it takes a step, `batch_size_max` what it
    can hold, 0 while that is not known.
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


@dataclass(frozen=True, slots=True)
class ClusterView:
    """All nodes of the current generation, by name, and what the Controller has already asked for.

    `urgent` is true in the middle of a window; `pending` while the newest plan is not in effect yet.
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


@dataclass(frozen=True, slots=True)
class Proposal:
    """One action, absolute. What is left None stays as it is; `reason` is one sentence for people."""

    action: Action
    reason: str
    predicted_gain: float = 0.0
    assignments: tuple[Assignment, ...] | None = None
    learning_rate_factor: float | None = None
    backup_workers: int | None = None
    target: str = ""


@runtime_checkable
class Policy(Protocol):
    """Pure: the same view and memory give the same proposals, in every process.

    A change of behaviour is a new `version`: decisions carry it, so that they can be derived again.
    """

    @property
    def name(self) -> str:
        """Short name, as decisions carry it."""

    @property
    def version(self) -> int:
        """Version of the rules, from 1."""

    def decide(self, view: ClusterView, memory: Memory) -> tuple[tuple[Proposal, ...], Memory]:
        """Proposals in the order they are to be carried out, and what to remember."""
