"""Rows of a table on a server: where they lie, how they begin, and that they are stepped as torch would step them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from antdt.strategies.ps.index import MISSING, KeyIndex, PlainIndex
from antdt.strategies.ps.layout import Table, servers_of
from antdt.strategies.ps.tables import Rows, first_values
from antdt_schemas.errors import UsageError


@pytest.mark.parametrize("index", [PlainIndex(100_000), KeyIndex(16)])
def test_every_id_is_found_where_it_was_put_while_the_index_grows(index: Any) -> None:
    rng = np.random.default_rng(0)
    known: dict[int, int] = {}
    for _ in range(60):
        ids = np.unique(rng.integers(0, 100_000, 300))
        found = index.find(ids)
        assert [known.get(one, MISSING) for one in ids.tolist()] == found.tolist()
        new = ids[found == MISSING]
        places = np.arange(len(known), len(known) + len(new))
        index.insert(new, places)
        known.update(zip(new.tolist(), places.tolist(), strict=True))
    assert len(known) > 10_000


def test_no_insertion_moves_the_whole_index() -> None:
    index = KeyIndex(2**16)
    moved, at = [], 0
    for _ in range(600):
        ids = np.arange(at, at + 200, dtype=np.int64)
        before = index._moved
        index.insert(ids, ids)
        moved.append(index._moved - before)
        at += 200
    assert max(moved) == 4 * 200
    assert index.find(np.arange(at, dtype=np.int64)).tolist() == list(range(at))


def test_first_values_follow_from_the_row_alone() -> None:
    ids = torch.arange(2_000)
    values = first_values(1, "users", ids, 7, 0.5)
    assert torch.equal(first_values(1, "users", ids[37:40], 7, 0.5), values[37:40])
    assert not torch.equal(first_values(1, "items", ids, 7, 0.5), values)
    assert not torch.equal(first_values(2, "users", ids, 7, 0.5), values)
    assert abs(values.mean().item()) < 0.02
    assert abs(values.std().item() - 0.5) < 0.02
    assert torch.corrcoef(values.T).fill_diagonal_(0).abs().max() < 0.1


def test_rows_lie_on_all_servers_alike() -> None:
    for servers in (2, 3, 5):
        counts = torch.bincount(servers_of(torch.arange(0, 40_000, 4), servers), minlength=servers)
        assert counts.min() > 0.9 * counts.max()


def table(kind: str, settings: dict[str, Any], rows: int = 50) -> Rows:
    return Rows(Table("t", rows, 6, 1.0, 3, 0, 0), kind, settings, 0, 1)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        (torch.optim.Adagrad, {"initial_accumulator_value": 0.1}),
        (torch.optim.Adam, {"weight_decay": 0.01}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.Adam, {"maximize": True}),
    ],
)
def test_rows_are_stepped_as_torch_steps_them(kind: Any, more: dict[str, Any]) -> None:
    ids = torch.arange(0, 50, 2)
    weight = torch.nn.Parameter(first_values(3, "t", ids, 6, 1.0))
    optimizer = kind([weight], lr=0.1, **more)
    rows = table(kind.__name__, optimizer.param_groups[0])
    for step in range(5):
        gradient = torch.randn(len(ids), 6, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient * 0.5
        optimizer.step()
        halves = [(0.5, ids[:15], gradient[:15].clone()), (0.5, ids[10:], gradient[10:].clone())]
        halves[1][2][:5] = 0  # rows that both bring are added up
        rows.step(halves, 1.0)
        assert torch.allclose(rows.values(ids), weight.detach(), atol=1e-5)
    absent = torch.tensor([1, 49])
    assert torch.equal(rows.values(absent), first_values(3, "t", absent, 6, 1.0))
    assert rows.count == len(ids)


def test_a_table_of_a_billion_rows_takes_what_is_touched() -> None:
    rows = table("Adam", torch.optim.Adam([torch.zeros(1)]).param_groups[0], 10**9)
    ids = torch.tensor([0, 5, 999_999_999])
    rows.step([(1.0, ids, torch.ones(3, 6))], 1.0)
    assert torch.allclose(rows.values(ids), first_values(3, "t", ids, 6, 1.0) - 1e-3, atol=1e-6)
    again = table("Adam", torch.optim.Adam([torch.zeros(1)]).param_groups[0], 10**9)
    again.load(*(part.clone() for part in rows.saved))
    assert torch.equal(again.values(ids), rows.values(ids))


def test_what_is_no_row_of_ours_is_refused() -> None:
    rows = table("SGD", torch.optim.SGD([torch.zeros(1)], lr=0.1).param_groups[0])
    assert "rows 0 to 49" in rows.refuse(torch.tensor([3, 50]))
    assert "rows 0 to 49" in rows.refuse(torch.tensor([-1, 3]))
    assert "ascending" in rows.refuse(torch.tensor([3, 3]))
    assert rows.refuse(torch.tensor([3, 4])) == rows.refuse(torch.tensor([], dtype=torch.int64)) == ""
    with pytest.raises(UsageError, match="amsgrad"):
        table("Adam", torch.optim.Adam([torch.zeros(1)], amsgrad=True).param_groups[0])
