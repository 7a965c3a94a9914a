"""A table of rows by number, for sparse features: under parameter servers each row lies on one of them, and travels
only where a batch uses it.

Owns what a script sees of it. Must not know servers: whoever connects it gives it somewhere to look rows up.
"""

from __future__ import annotations

import os
from typing import Protocol

import torch
from antdt_schemas.errors import UsageError
from torch import nn
from torch.nn import functional

from antdt.strategies.ps.tables import first_values


class Rows(Protocol):
    """Where rows are. Called by the thread that owns the model."""

    def look_up(self, table: Embedding, unique: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Rows (n, width) of these ascending, unique ids (n,), to be trained on where gradients are made. ids: as the
        script has them.
        """


class Embedding(nn.Module):  # type: ignore[misc]
    """`forward(ids)`, of any shape of whole numbers from 0 to rows - 1, gives rows of shape (*ids.shape, width).

    In a job with servers (`antdt launch --servers N`) no worker holds the table: `weight` is empty, a forward pulls the
    rows that it needs, and their gradients are pushed. A row comes into being when it is first trained; before that it
    is what follows from seed, table and number. Behind the loop the table is put together on each worker, if it takes
    `whole_bytes_max` at most: then `weight` is all of it.

    Without servers it is a plain table, as torch.nn.Embedding, whose `weight` has all rows.

    std: of the first values, which are normal. seed: of these; drawn from torch's generator, so torch.manual_seed(s)
    gives the same everywhere.
    """

    def __init__(
        self, rows: int, width: int, *, std: float = 0.01, seed: int | None = None, whole_bytes_max: int = 1 << 30
    ) -> None:
        super().__init__()
        if rows < 1 or width < 1 or std < 0:
            raise UsageError(f"antdt.Embedding({rows}, {width}, std={std}): rows and width are at least 1, std 0.")
        self.rows, self.width, self.std, self.whole_bytes_max = rows, width, std, whole_bytes_max
        self.seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
        self._source: Rows | None = None
        self.is_remote = _has_servers()
        ids = torch.arange(0 if self.is_remote else rows, device="cpu")
        self.weight = nn.Parameter(first_values(self.seed, "", ids, width, std).to(torch.get_default_device()))

    def connect(self, source: Rows | None) -> None:
        """Rows are looked up there; None: nowhere any more."""
        self._source = source

    def hold(self, weight: torch.Tensor) -> None:
        """From now on this is all of it (rows, width)."""
        assert weight.shape == (self.rows, self.width), weight.shape
        self.is_remote, self._source = False, None
        self.weight = nn.Parameter(weight)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows by number. Raises UsageError where there is no such row, or nobody to ask."""
        if not self.is_remote:
            return functional.embedding(ids, self.weight)
        if self._source is None:
            raise UsageError(
                f"The rows of this antdt.Embedding({self.rows}, {self.width}) are on parameter servers, which are "
                "asked in the loop over the Agent only; behind it all are here if whole_bytes_max lets them."
            )
        unique, inverse = torch.unique(ids, return_inverse=True)
        unique = unique.cpu()  # servers are asked in CPU memory; the rows go where the numbers are
        if unique.numel() and not 0 <= int(unique[0]) <= int(unique[-1]) < self.rows:
            raise UsageError(f"Row {int(unique[-1])} or {int(unique[0])} is not among {self.rows} of antdt.Embedding.")
        return functional.embedding(inverse, self._source.look_up(self, unique.long(), ids).to(ids.device))

    def extra_repr(self) -> str:
        """As torch's modules are shown."""
        return f"{self.rows}, {self.width}{', on servers' if self.is_remote else ''}"


def _has_servers() -> bool:
    """Whether this process was started by a launch with servers."""
    return os.environ.get("ANTDT_SERVERS", "0") not in ("", "0")
