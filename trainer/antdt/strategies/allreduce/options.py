"""What a script states of AllReduce. Must not know how any of it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from antdt_schemas.errors import UsageError

from antdt.strategies.base import Here, Strategy, without_servers

if TYPE_CHECKING:
    import torch


# The default interval is that of models up to this size; larger ones are compared seldomer in proportion.
COMPARED_EVERY, COMPARED_SIZE_BYTES = 32, 8 * 2**20


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """backend: of the gradients; "nccl" needs one CUDA device per member. host: own address for the connections of the
    collectives, as peers reach it; empty: that of this process's store.

    op_timeout_s is the last resort only: a hung member is found by its heartbeat, and a shorter limit would end members
    that are merely slow. leave_timeout_s: how long to wait for operations to end once the generation is closed.
    form_timeout_s bounds one attempt to form, form_patience_s all attempts in a row.
    """

    backend: Literal["gloo", "nccl"] = "gloo"
    host: str = ""
    form_timeout_s: float = 5.0
    form_patience_s: float = 120.0
    op_timeout_s: float = 1800.0
    leave_timeout_s: float = 0.05


@dataclass(frozen=True, slots=True)
class AllReduce:
    """The strategy as a script states it.

    compositions: "inline" in the first bucket (no collective of its own, but on CUDA a device sync), "gather" beside
    it, "auto": inline on the CPU, gather on CUDA. overlap: reduce while backward runs. pending_max: applied steps that
    may await their commit; whoever drives the strategy waits before there are more.

    compare_every: parameters and buffers are compared in every so many steps, the first few of a generation, before a
    checkpoint and at the end; 0 never. Where it is left out the interval grows with the model, so that comparing costs
    less than a thousandth of the steps: 32, and 640 for 40 million parameters. The optimizer's numbers (learning rates
    and the like) are in every step.
    on_nonfinite: what becomes of a step whose reduced gradient is not finite. skips_max: so many of them in a row end
    the run. generation: how members meet.

    deterministic: "bitwise" for a model that is the same to the last bit for any number of workers, splits, deaths and
    plans, on machines whose kernels give the same bits; for audits. Steps are then made of units of unit_size samples,
    which members take whole and compute one by one, with random numbers that follow from the job's seed and the unit;
    their gradients are added up in one order. All members get all of them, so it costs memory and traffic for as many
    gradients as a step has units. Buffers must not change in a step (no BatchNorm that learns), and what needs a step's
    whole batch at once (agent.gather, agent.apply(optimizer)) is refused. A unit that kills workers is not cut up to
    find the sample: the launch ends when its restarts are used up, and says what was at hand.
    """

    first_bucket_size_bytes: int = 2**20
    bucket_size_bytes: int = 25 * 2**20
    compositions: Literal["auto", "inline", "gather"] = "auto"
    overlap: bool = True
    pending_max: int = 4096
    compare_every: int | None = None
    on_nonfinite: Literal["skip", "raise"] = "skip"
    skips_max: int = 100
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    deterministic: Literal["", "bitwise"] = ""
    unit_size: int = 8
    has_common_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.on_nonfinite not in ("skip", "raise") or (self.compare_every or 0) < 0 or self.skips_max < 1:
            raise UsageError('AllReduce: on_nonfinite is "skip" or "raise", compare_every >= 0, skips_max >= 1.')
        if self.deterministic not in ("", "bitwise") or self.unit_size < 1:
            raise UsageError('AllReduce: deterministic is "bitwise" or empty, unit_size >= 1.')

    @property
    def compares(self) -> bool:
        """Whether the members' models are compared at all."""
        return self.compare_every != 0

    def compared_every(self, size_bytes: int) -> int:
        """Steps between two comparisons, where what is trained has this size; 0 never."""
        if self.compare_every is not None:
            return self.compare_every
        return COMPARED_EVERY * max(1, -(-size_bytes // COMPARED_SIZE_BYTES))

    @property
    def name(self) -> str:
        """That of the job's records: other units are another strategy."""
        return f"allreduce/unit={self.unit_size}" if self.deterministic else "allreduce"

    def placed(self, servers: int, *, alone: bool) -> AllReduce:
        """As it is: workers meet each other."""
        without_servers("AllReduce", servers)
        return self

    def member(self, model: torch.nn.Module, optimizer: Any, here: Here) -> Strategy:
        """One worker's part in it: a replica of the model, and where its members meet."""
        from antdt.strategies.allreduce.member import AllReduceMember  # which needs these options

        return AllReduceMember(model, optimizer, self, here)
