"""Room for the gradients of what is trained, by all members alike.

Must not know how a step is made.
"""

from __future__ import annotations

from typing import Any

import torch
from antdt_schemas.errors import UsageError

from antdt.strategies.allreduce.buckets import LocalGradients, ReducedGradients, partition
from antdt.strategies.allreduce.holding import Holding
from antdt.strategies.allreduce.ordered import OrderedGradients


class LaidOut(Holding):
    """A part of AllReduceReplica. Invariant: in a generation all members have the same buckets, as what is trained
    comes with the model.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._gradients: ReducedGradients | LocalGradients | OrderedGradients | None = None
        self._frozen: list[torch.nn.Parameter] = []
        self._inline = False
        self._compared_every = 0

    def _lay_out(self) -> None:
        """Room for the gradients of what is trained now."""
        generation = self._attached()
        trained = [param for param in self.model.parameters() if param.requires_grad]
        if not trained:
            raise UsageError("All parameters are frozen: at least one must have requires_grad=True.")
        kind: Any = LocalGradients if generation.world == 1 else ReducedGradients
        if self.options.deterministic:
            kind = OrderedGradients
        same = len(trained) == len(self._trained) and all(a is b for a, b in zip(trained, self._trained, strict=True))
        if not (same and isinstance(self._gradients, kind)):
            if self._gradients is not None:
                self._gradients.disconnect()
            groups = partition(trained, self.options.first_bucket_size_bytes, self.options.bucket_size_bytes)
            self._gradients = kind(groups, self.options.overlap) if kind is ReducedGradients else kind(groups)
        size_bytes = sum(int(param.numel() * param.element_size()) for param in trained)
        self._trained, self._compared_every = trained, self.options.compared_every(size_bytes)
        self._frozen = [param for param in self.model.parameters() if not param.requires_grad]
        self._inline = self._rides_inline()
        if isinstance(self._gradients, ReducedGradients):
            self._gradients.connect(generation, self._inline)
        elif isinstance(self._gradients, OrderedGradients):
            self._gradients.connect(generation)

    def adopt(self, source_rank: int) -> bool:
        """See Holding. What is trained comes with the model."""
        taken = super().adopt(source_rank)
        if taken:
            self._lay_out()
        return taken

    def _rides_inline(self) -> bool:
        if self.options.deterministic:
            return False
        if self.options.compositions == "auto":
            return str(self._trained[-1].device.type) == "cpu"
        return self.options.compositions == "inline"
