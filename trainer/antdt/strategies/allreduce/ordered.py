"""Gradients whose sum has one order: that of the units of a step, whoever computes which.

A float sum depends on its order, so with plain AllReduce other numbers of workers and other splits differ in their last
digits. Here each unit's gradient is kept by itself; all members get all of them, and add them up one after the other,
beginning at zero. It costs memory and traffic for as many gradients as a step has units: it is for audits.

Knows parameters and a generation; must not know what a unit is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import Parameter

from antdt.strategies.allreduce.buckets import Kept, all_finite, kept_of, put_back
from antdt.strategies.allreduce.rendezvous import Generation


class OrderedGradients:
    """In place of ReducedGradients. Invariant: a parameter has a gradient between a unit's first backward and its end
    only, and behind `finish`.
    """

    def __init__(self, groups: Sequence[Sequence[Parameter]]) -> None:
        self._groups, self._params = groups, [param for group in groups for param in group]
        self._generation: Generation
        self.reset()

    def connect(self, generation: Generation) -> None:
        """For the steps of this generation."""
        self._generation = generation
        self.reset()

    def disconnect(self) -> None:
        """Leaves the model as an ordinary one."""
        self.reset()

    def renounce(self) -> None:
        """What is on its way is written into tensors of this step alone."""

    def reset(self) -> None:
        """No gradients; ready for the next step."""
        self._clear()
        self._units: list[list[torch.Tensor]] = []  # of each unit: one flat tensor a group, on the CPU
        self._used: list[list[bool]] = []
        self._flight: list[tuple[torch.Tensor, Any]] = []
        self._totals: list[torch.Tensor] = []
        self.first_at: float | None = None

    def _clear(self) -> None:
        for param in self._params:
            param.grad = None
        self._kept: Kept = []

    @property
    def touched(self) -> bool:
        """Some parameter got a gradient in this step."""
        return any(any(used) for used in self._used) or any(grad is not None for grad, _ in self._kept)

    def expect(self, last: bool) -> None:
        """Before each backward. Raises UsageError where somebody else has made or changed gradients."""
        if not self._totals:
            put_back(self._params, self._kept)

    def done(self, last: bool) -> None:
        """After each backward."""
        if not self._totals:
            self._kept = kept_of(self._params)

    def end_unit(self) -> None:
        """No other backward of this unit follows."""
        self._units.append([self._flat(group) for group in self._groups])
        self._used.append([param.grad is not None for param in self._params])
        self._clear()
        self.first_at = time.perf_counter()

    def _flat(self, group: Sequence[Parameter]) -> torch.Tensor:
        parts = [
            torch.zeros(param.numel(), dtype=param.dtype, device="cpu")
            if param.grad is None
            else param.grad.reshape(-1).cpu()
            for param in group
        ]
        return torch.cat(parts)

    def launch_rest(self) -> None:
        """All units go to all members."""
        generation, world = self._generation, self._generation.world
        users = (
            sum(map(torch.tensor, self._used))
            if self._used
            else torch.zeros(len(self._params), dtype=torch.int64, device="cpu")
        )
        mine = torch.cat(
            [torch.tensor([len(self._units)], device="cpu"), torch.as_tensor(users, dtype=torch.int64, device="cpu")]
        )
        said = torch.empty(world, 1 + len(self._params), dtype=torch.int64, device="cpu")
        self._wait(said, mine)
        self._counts, self._users = said[:, 0].tolist(), said[:, 1:].sum(0).tolist()
        most = max(self._counts)
        for at in range(len(self._groups)):
            units = [unit[at] for unit in self._units]
            like = self._flat(self._groups[at]) if not units else units[0]
            row = torch.zeros(most, like.numel(), dtype=like.dtype, device="cpu")
            for number, unit in enumerate(units):
                row[number] = unit
            rows = torch.empty(world, row.numel(), dtype=like.dtype, device="cpu")
            work = generation.gather(rows, row.reshape(-1)) if world > 1 else None
            self._flight.append((rows if world > 1 else row.reshape(1, -1), work))

    def _wait(self, rows: torch.Tensor, row: torch.Tensor) -> None:
        if self._generation.world == 1:
            rows.copy_(row)
        else:
            self._generation.wait(self._generation.gather(rows, row))

    def finish(self, factor: float) -> None:
        """Waits for everything; each gradient is then the sum times `factor`, None where no member used it."""
        used = iter(self._users)
        for group, (rows, work) in zip(self._groups, self._flight, strict=True):
            if work is not None:
                self._generation.wait(work)
            total = torch.zeros(sum(param.numel() for param in group), dtype=rows.dtype, device="cpu")
            for count, row in zip(self._counts, rows.view(len(self._counts), -1, len(total)), strict=True):
                for unit in row[:count]:
                    total += unit
            total *= factor
            self._totals.append(total)
            for param, part in zip(group, total.split([param.numel() for param in group]), strict=True):
                param.grad = part.view_as(param).to(param.device) if next(used) else None

    def is_finite(self) -> bool:
        """Whether the finished gradients are; the same on all members."""
        return all_finite(self._totals)

    def own_is_finite(self) -> bool:
        """Whether this member's part of them was."""
        return all_finite([part for unit in self._units for part in unit])
