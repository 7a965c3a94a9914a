"""What a script states of AllReduce. Must not know how any of it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from antdt_schemas.errors import UsageError

from antdt.strategies.base import Here, Strategy

if TYPE_CHECKING:
    import torch


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
    checkpoint and at the end; 0 never. The optimizer's numbers (learning rates and the like) are in every step.
    on_nonfinite: what becomes of a step whose reduced gradient is not finite. skips_max: so many of them in a row end
    the run. generation: how members meet.
    """

    first_bucket_size_bytes: int = 2**20
    bucket_size_bytes: int = 25 * 2**20
    compositions: Literal["auto", "inline", "gather"] = "auto"
    overlap: bool = True
    pending_max: int = 4096
    compare_every: int = 32
    on_nonfinite: Literal["skip", "raise"] = "skip"
    skips_max: int = 100
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    name: ClassVar[str] = "allreduce"
    has_common_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.on_nonfinite not in ("skip", "raise") or self.compare_every < 0 or self.skips_max < 1:
            raise UsageError('AllReduce: on_nonfinite is "skip" or "raise", compare_every >= 0, skips_max >= 1.')

    def member(self, model: torch.nn.Module, optimizer: Any, here: Here) -> Strategy:
        """One worker's part in it: a replica of the model, and where its members meet."""
        from antdt.strategies.allreduce.member import AllReduceMember  # which needs these options

        return AllReduceMember(model, optimizer, self, here)
