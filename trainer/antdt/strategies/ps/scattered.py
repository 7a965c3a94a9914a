"""Rows of a table, split by the server that they lie on, and put together again.

Must not know what the numbers are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from antdt.strategies.ps.layout import servers_of


class Scattered(NamedTuple):
    """total: of all ids. ids: those of each server, in ascending order. places: where each of them was; empty where
    one server has all.
    """

    total: int
    ids: tuple[torch.Tensor, ...]
    places: tuple[torch.Tensor, ...]

    def of(self, server: int, values: torch.Tensor) -> torch.Tensor:
        """The rows of the ids of a server, contiguous."""
        return values.index_select(0, self.places[server]) if self.places else values.contiguous()

    def together(self, found: Mapping[int, torch.Tensor], width: int) -> torch.Tensor:
        """The inverse: rows of all ids, of what each server has given; where one has all of them, as it has come."""
        if not self.places:
            return found[0] if found else torch.empty(0, width, device="cpu")
        out = torch.empty(self.total, width, device="cpu")
        for server, values in found.items():
            out.index_copy_(0, self.places[server], values)
        return out


def scattered(ids: torch.Tensor, servers: int) -> Scattered:
    """ids: in ascending order, int64."""
    if servers == 1:
        return Scattered(len(ids), (ids.contiguous(),), ())
    of = servers_of(ids, servers)
    places = tuple(torch.nonzero(of == server).reshape(-1) for server in range(servers))
    return Scattered(len(ids), tuple(ids.index_select(0, at) for at in places), places)
