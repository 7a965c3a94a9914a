"""What a step takes in a loop that is somebody else's, seen through hooks of its model and its optimizer.

    behind the last step ── data ─▶ forward ── compute ─▶ first bucket ── communication ─▶ optimizer ─▶ next step

Own compute ends where the first gradients are whole: from there on, replicas that reduce gradients wait for each other,
and all of them take as long as the slowest. Nothing that is computed is changed, copied or waited for; on a device that
computes behind the host's back, times are the host's. Must not know who is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import distributed, nn

from antdt.host import whereabouts
from antdt.host.whereabouts import At
from antdt.worker.telemetry import StepTiming

BUCKET_BYTES = 1 << 20  # DistributedDataParallel's first one


class Order(Protocol):
    """Which samples are trained on: told of each batch, and has the hash of them all; empty: not known."""

    lineage: bytes

    def took(self) -> None:
        """One more batch is trained on."""


class Measuring:
    """The steps of one process. tell: takes each of them, with no generation. order: of its samples, if it is known.

    A forward pass counts while gradients are recorded and the model trains: evaluation is nobody's step, and the time
    that it took is nobody's either.
    """

    def __init__(
        self,
        tell: Callable[[StepTiming], None],
        order: Order | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.step, self.order = 0, order
        self._tell, self._clock, self._page = tell, clock, whereabouts.mine()
        self._handles: list[Any] = []
        self._bytes_all = 0
        self._since: float | None = None  # the end of the last step, or of what came between
        self._begin()

    def _begin(self) -> None:
        self._data_s = self._compute_s = 0.0
        self._samples = self._micro_batches = self._bytes = 0
        self._forward: float | None = None
        self._bucket: float | None = None
        self._gradient: float | None = None
        self._end: float | None = None

    # -- hooks

    def attach(self, model: nn.Module | None, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Look at this model, or at batches that are told by `batch` where it is None, and at these optimizers: a step
        ends with the last of them.
        """
        optimizers = list(optimizers)
        if model is not None:
            self._handles.append(model.register_forward_pre_hook(self._on_forward, with_kwargs=True))
        held = [p for o in optimizers for group in o.param_groups for p in group["params"] if p.requires_grad]
        for param in held:
            self._bytes_all += param.numel() * param.element_size()
            self._handles.append(param.register_post_accumulate_grad_hook(self._on_gradient))
        self._handles.append(optimizers[0].register_step_pre_hook(lambda *_: self.backward_over()))
        self._handles.append(optimizers[-1].register_step_post_hook(lambda *_: self.step_over()))

    def detach(self) -> None:
        """Leave everything as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _on_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and module.training:
            self.batch(samples_of((args, kwargs)))
        else:
            self.elsewhere()

    def _on_gradient(self, param: torch.Tensor) -> None:
        self._gradient = now = self._clock()
        if self._bucket is None and self._forward is not None:
            self._bytes += param.numel() * param.element_size()
            if self._bytes >= min(BUCKET_BYTES, self._bytes_all):
                self._bucket = now

    # -- what happens

    def batch(self, samples: int) -> None:
        """A forward pass for so many samples begins. A second one before any backward is of the same batch."""
        now = self._clock()
        if self._forward is not None:
            if self._gradient is None or self._gradient < self._forward:
                self._samples = max(self._samples, samples)
                return
            self._compute_s += self._gradient - self._forward  # a micro-batch, of which nothing is reduced yet
            self._since = self._gradient
        if self._since is not None:
            self._data_s += now - self._since
        self._forward, self._bucket, self._bytes, self._since = now, None, 0, None
        self._samples, self._micro_batches = self._samples + samples, self._micro_batches + 1
        self._page.enter(At.COMPUTING)
        if self.order is not None:
            self.order.took()

    def elsewhere(self) -> None:
        """The loop does something else than a step: the time since its last one is no step's."""
        self._since = None

    def backward_over(self) -> None:
        """The optimizer begins."""
        if self._forward is not None and self._gradient is not None and self._gradient >= self._forward:
            self._end = self._clock()

    def step_over(self) -> None:
        """The optimizer has stepped."""
        now = self._clock()
        if self._forward is None:
            return
        end = now if self._end is None else self._end
        shared = self._bucket is not None and distributed.is_available() and distributed.is_initialized()
        own_end = self._bucket if shared and distributed.get_world_size() > 1 and self._bucket is not None else end
        self._compute_s += own_end - self._forward + (now - end)
        self.step += 1
        lineage = self.order.lineage if self.order is not None else b""
        times = self._data_s, self._compute_s, max(0.0, end - own_end), 0.0
        parts = max(1, self._micro_batches)
        self._tell(StepTiming(0, self.step, self._samples, 0, *times, parts, lineage))
        self._begin()
        self._since = now
        self._page.enter(At.LOADING)


def samples_of(batch: Any) -> int:
    """Length of the first dimension of the first tensor in it; 0 where there is none."""
    if isinstance(batch, torch.Tensor):
        return int(batch.shape[0]) if batch.dim() else 0
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    for part in parts:
        found = samples_of(part)
        if found:
            return found
    return 0
