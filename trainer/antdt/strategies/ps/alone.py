"""A script for parameter servers in a process without a job: that steps the optimizer, and the same is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from antdt.strategies.allreduce import AllReduce
from antdt.strategies.allreduce.member import AllReduceMember
from antdt.strategies.base import Here, Strategy
from antdt.strategies.once import Once
from antdt.strategies.ps.refusals import refuse


@dataclass(frozen=True, slots=True)
class InOneProcess(AllReduce):
    """AllReduce of one worker."""

    def member(self, model: torch.nn.Module, optimizer: Any, here: Here) -> Strategy:
        """The whole of it."""
        return OneProcess(model, optimizer, self, here)


class OneProcess(AllReduceMember):
    """See AllReduceMember."""

    def accompany(self, once: Once) -> None:
        """What servers could not do is not to be found out later."""
        refuse(self.model, self.optimizer, once)
        super().accompany(once)
