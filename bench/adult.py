"""Who earns more, by the census of 1994: the click model of `bench.mitigation`, `--data adult:DIR`. Each field of a row
is the number of a row in one table, which is spread over the servers where there are some.

DIR holds adult-train.csv and adult-test.csv, as published (UCI, "Adult"). Numbers are cut into ranges of as many rows.
"""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import antdt
import torch
from torch import nn
from torch.utils.data import TensorDataset

NUMBERS = (0, 2, 4, 10, 11, 12)
FIELDS, BUCKETS, WIDTH = 14, 10, 8
UNKNOWN = 0  # the first number of each field


def load(folder: Path, samples: int) -> tuple[TensorDataset, TensorDataset, int]:
    """(x (n, 14) of row numbers, y (n,) 0. or 1.) of the first `samples` to train on and all to test, and how many rows
    the table has.
    """
    train, test = (_rows(folder / f"adult-{part}.csv") for part in ("train", "test"))
    known: list[dict[str, int]] = []
    cuts: list[list[float]] = []
    for field in range(FIELDS):
        values = [row[field] for row in train]
        kinds = sorted(set(values)) if field not in NUMBERS else []
        known.append({value: number for number, value in enumerate(kinds, 1)})
        numbers = sorted(map(float, values)) if field in NUMBERS else []
        cuts.append(sorted({numbers[len(numbers) * b // BUCKETS] for b in range(1, BUCKETS)}) if numbers else [])
    sizes = [len(cuts[f]) + 1 if f in NUMBERS else len(known[f]) + 1 for f in range(FIELDS)]
    first = [sum(sizes[:f]) for f in range(FIELDS)]

    def numbered(row: Sequence[str]) -> list[int]:
        own = (
            bisect_right(cuts[f], float(row[f])) if f in NUMBERS else known[f].get(row[f], UNKNOWN)
            for f in range(FIELDS)
        )
        return [base + number for base, number in zip(first, own, strict=True)]

    def made(rows: list[list[str]]) -> TensorDataset:
        x = torch.tensor([numbered(row) for row in rows])
        return TensorDataset(x, torch.tensor([float(row[FIELDS].startswith(">50K")) for row in rows]))

    return made(train[:samples]), made(test), sum(sizes)


def _rows(path: Path) -> list[list[str]]:
    with path.open(encoding="ascii", newline="") as file:
        rows = [row for row in csv.reader(file, skipinitialspace=True) if len(row) == FIELDS + 1]
    if not rows:
        raise SystemExit(f"{path} has no rows of {FIELDS + 1} fields: adult:DIR is the folder of the published files.")
    return rows


class Earner(nn.Module):  # type: ignore[misc]
    """The logarithm of the odds."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = antdt.Embedding(rows, WIDTH, std=0.3)
        self.head = nn.Sequential(nn.Linear(FIELDS * WIDTH, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (n, 14); the result: (n,)."""
        out: torch.Tensor = self.head(self.table(x).flatten(1)).squeeze(1)
        return out


def accuracy(model: nn.Module, test: TensorDataset) -> float:
    """The share of rows of which it says the right thing; always to say no is right in 0.764 of them."""
    x, y = test.tensors
    with torch.no_grad():
        return float(((model(x) > 0) == (y > 0.5)).float().mean())
