"""One server's rows of a table: [values | state of the optimizer] side by side, one behind the other as they come.

Rules
    A row comes into being with its first gradient. Until then it has its first value, which follows from the seed, the
    table's name and its id alone: it does not matter who asks for it, when, or how often.
    The rows lie in memory that is reserved for as many as there can be, and taken from the machine as they are touched:
    nothing is ever moved because a table grows.

Must not know workers, versions or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from antdt_schemas.errors import UsageError

from antdt.strategies.ps.index import Ids, index_of, missing_of, zeros
from antdt.strategies.ps.layout import Table, mixed, servers_of
from antdt.strategies.ps.rules import rule_of


def first_values(seed: int, table: str, ids: torch.Tensor, width: int, std: float) -> torch.Tensor:
    """Normally distributed values of shape (len(ids), width), float32, each from the seed, the table, its row and its
    column (Box and Muller, of a counter that is mixed).
    """
    if std == 0.0 or len(ids) == 0:
        return torch.zeros(len(ids), width, device="cpu")
    pairs = np.arange(1, (width + 1) // 2 + 1, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
    rows = mixed(ids.numpy().astype(np.uint64) ^ np.uint64(_salt(seed, table)))
    words = mixed(rows[:, None] + pairs[None, :])
    above = ((words >> np.uint64(40)).astype(np.float32) + 1) / np.float32(2**24)
    angle = (words & np.uint64(0xFFFFFF)).astype(np.float32) * np.float32(2 * np.pi / 2**24)
    radius = np.sqrt(np.float32(-2) * np.log(above)) * np.float32(std)
    out = np.empty((len(ids), 2 * len(pairs)), np.float32)
    out[:, 0::2], out[:, 1::2] = radius * np.cos(angle), radius * np.sin(angle)
    return torch.from_numpy(np.ascontiguousarray(out[:, :width]))


@lru_cache(maxsize=256)
def _salt(seed: int, table: str) -> int:
    return int.from_bytes(blake2b(f"{seed}/{table}".encode(), digest_size=8).digest(), "big")


class Rows:
    """settings: the group of the script's optimizer that the table is in. `count`: rows that have had a gradient."""

    def __init__(self, table: Table, optimizer: str, settings: dict[str, Any], part: int, servers: int) -> None:
        self.table, self.settings, self.count = table, settings, 0
        self._part, self._servers = part, servers
        self.rule = rule_of(optimizer, settings)
        self.stride = table.width + self.rule.state(table.width, settings)
        try:
            words = zeros(
                (table.rows * self.stride + 1) // 2, in_large_pages=True
            )  # of 64 bits, which hold two numbers
            numbers = words.view(np.float32)[: table.rows * self.stride]
            self._slab = torch.from_numpy(numbers).view(table.rows, self.stride)
            # Whole rows are taken and put as records: in half the time that torch takes for it.
            self._records = numbers.view(np.dtype((np.void, 4 * self.stride)))
            self._ids = zeros(table.rows)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"The table {table.name} of {table.rows:,} rows of {self.stride} numbers cannot be reserved ({error}): "
                "let the system reserve memory before it is used (vm.overcommit_memory=1), or make the table smaller."
            ) from error
        self._index = index_of(table.rows)

    def refuse(self, ids: torch.Tensor) -> str:
        """Why these ids are not rows of ours in ascending order, each once; empty if they are."""
        numbers = ids.numpy()
        if not len(numbers):
            return ""
        if numbers[0] < 0 or numbers[-1] >= self.table.rows:
            return f"table {self.table.name} has rows 0 to {self.table.rows - 1}, and was asked for others"
        if not (numbers[1:] > numbers[:-1]).all():
            return f"ids of table {self.table.name} are not in ascending order"
        if self._servers > 1 and not bool((servers_of(ids, self._servers) == self._part).all()):
            return f"ids of table {self.table.name} are those of another server"
        return ""

    def values(self, ids: torch.Tensor) -> torch.Tensor:
        """Of these rows, float32 of shape (len(ids), width), in memory of its own."""
        numbers = ids.numpy()
        places = self._index.find(numbers)
        missing = missing_of(places)
        if len(missing):
            places[missing] = 0
        if self.stride == self.table.width:
            out = self._taken(places)
        else:
            out = self._slab[:, : self.table.width].index_select(0, torch.from_numpy(places))
        if len(missing):
            absent = torch.from_numpy(missing)
            out.index_copy_(0, absent, self._first(ids.index_select(0, absent)))
        return out

    def _taken(self, places: Ids) -> torch.Tensor:
        """Whole rows, in memory of their own."""
        return torch.from_numpy(self._records.take(places).view(np.float32)).view(len(places), self.stride)

    def step(self, gradients: Sequence[tuple[float, torch.Tensor, torch.Tensor]], factor: float) -> None:
        """One step by the sum of these (times, ids, gradients), with the learning rate times `factor`. It uses the
        gradients up: what is left of them means nothing.

        Raises UsageError if there are more rows than the table has.
        """
        ids, grads = merged(gradients)
        if not len(ids):
            return
        places = self._places(ids)
        rows = self._taken(places)
        self.rule.step(rows, grads, self.settings, float(self.settings["lr"]) * factor)
        np.put(self._records, places, rows.numpy().view(self._records.dtype))

    def _places(self, ids: torch.Tensor) -> Ids:
        """Where they are; those that are not there yet come into being."""
        numbers = ids.numpy()
        places = self._index.find(numbers)
        missing = missing_of(places)
        if len(missing):
            new = numbers[missing]
            places[missing] = np.arange(self.count, self.count + len(new))
            self._append(torch.from_numpy(new))
            self._index.insert(new, places[missing])
        return places

    def _append(self, ids: torch.Tensor) -> None:
        end = self.count + len(ids)
        width = self.table.width
        self._slab[self.count : end, :width] = self._first(ids)
        if first := self.rule.first(self.settings):
            self._slab[self.count : end, width:] = first
        self._ids[self.count : end] = ids.numpy()
        self.count = end

    def _first(self, ids: torch.Tensor) -> torch.Tensor:
        table = self.table
        return first_values(table.seed, table.name, ids, table.width, table.std)

    # -- files

    @property
    def saved(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids, and their rows with state; views that the next step changes."""
        return torch.from_numpy(self._ids[: self.count]), self._slab[: self.count]

    def load(self, ids: torch.Tensor, rows: torch.Tensor) -> None:
        """The inverse, into a table that has no rows yet."""
        assert self.count == 0, "a table that is in use"
        self.count = len(ids)
        self._slab[: self.count] = rows
        self._ids[: self.count] = ids.numpy()
        self._index = index_of(self.table.rows, self.count)
        self._index.insert(ids.numpy(), np.arange(self.count))


def merged(gradients: Iterable[tuple[float, torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, each once, and the sums of their gradients, which are made where the gradients lie: nobody reads a message
    again, and a copy of it costs a fifth of a step.
    """
    some = [(ids, grads if times == 1.0 else grads.mul_(times)) for times, ids, grads in gradients if len(ids)]
    if len(some) <= 1:
        return some[0] if some else (torch.empty(0, dtype=torch.int64, device="cpu"), torch.empty(0, 0, device="cpu"))
    ids, place = torch.unique(torch.cat([ids for ids, _ in some]), return_inverse=True)
    grads = torch.cat([grads for _, grads in some])
    sums = torch.zeros(len(ids), grads.shape[1], device="cpu")
    sums.scatter_add_(0, place[:, None].expand_as(grads), grads)
    return ids, sums
