"""Rows that come with the answer to a push: what the next batch will look up is guessed, what is computed is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import antdt
import pytest
import torch
from antdt.strategies.base import Part
from antdt.strategies.ps.fields import Field, field_of, ids_in, leaves_of
from antdt.strategies.ps.layout import layout_of
from antdt.strategies.ps.looking_up import TRIES_MAX, LookedUp
from antdt.strategies.ps.member import ServedMember
from antdt.strategies.ps.options import ParameterServer
from antdt.strategies.ps.parts import Buffer
from antdt.strategies.ps.tables import first_values
from antdt_schemas.ranges import Range
from torch import nn
from torch.nn import functional

from tests.unit.test_ps_members import Cluster, assert_equal, sparse

X = torch.tensor([[3, 11, 5], [4, 12, 5], [9, 13, 6], [3, 10, 7]])


@pytest.mark.parametrize(
    ("ids", "field"),
    [
        (X, Field(1)),
        (X.reshape(-1), Field(1)),
        (X[:, 1], Field(1, 1, 2)),
        (X[:, :1], Field(1, 0, 1)),
        (X[:, 1:], Field(1, 1, 3)),
        (X[:, 2].to(torch.int32), Field(1, 2, 3)),
        (torch.tensor([1, 0, 1, 1]), Field(0)),
        (X[:, 1] % 7, None),
        (X[:2, 1], None),
        (torch.empty(0, dtype=torch.int64), None),
        (torch.tensor(3), None),
    ],
)
def test_the_numbers_of_a_table_are_found_in_a_batch_wherever_they_are(ids: torch.Tensor, field: Field | None) -> None:
    batch = {"clicked": torch.tensor([1.0, 0, 1, 1]), "rest": [(X, "a name"), torch.zeros(4, 2)]}
    leaves = leaves_of(batch)
    assert len(leaves) == 3
    assert field_of(leaves, ids) == field
    if field is not None:
        assert ids_in(leaves, field).tolist() == ids.reshape(-1).tolist()
        assert ids_in(leaves_of([batch["clicked"], X[:1]]), field).dtype == torch.int64
        assert len(ids_in([], field)) == 0


class Table(nn.Module):
    """Two tables of 50 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.ads = antdt.Embedding(50, 2), antdt.Embedding(20, 2)


class Servers:
    """In place of them: a row is its number and the version. `asked`: each time, which rows."""

    def __init__(self, model: nn.Module) -> None:
        layout = layout_of(model, torch.optim.SGD(model.parameters(), lr=1.0))
        self.version, self.asked = 0, list[tuple[str, list[int]]]()
        self.looked_up = LookedUp(model, layout.tables, self.ask)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.stack([ids.float(), torch.full((len(ids),), float(self.version))], 1)

    def ask(self, table: str, ids: torch.Tensor) -> torch.Tensor:
        self.asked.append((table, ids.tolist()))
        return self.rows(ids)

    def contribute(self, forward: Callable[[], Any], batch: Any, *following: Any) -> dict[str, list[int]]:
        """One contribution, which makes a version; returns the rows that came with its answer."""
        self.looked_up.see(batch, lambda: following)
        forward()
        wanted = self.looked_up.upcoming()
        self.looked_up.forget()
        self.version += 1
        self.looked_up.hold(wanted, {name: self.rows(ids) for name, ids in wanted.items()})
        return {name: ids.tolist() for name, ids in wanted.items()}


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Table, Servers]]:
    monkeypatch.setenv("ANTDT_SERVERS", "1")
    model = Table()
    made = Servers(model)
    made.looked_up.connect()
    yield model, made
    made.looked_up.disconnect()


def both(model: Table, x: torch.Tensor, version: int) -> None:
    """Looks up, and sees that each row is what it is at this version."""
    for table, column in ((model.users, 0), (model.ads, 1)):
        found = table(x[:, column])
        assert found.tolist() == [[float(one), float(version)] for one in x[:, column].tolist()]


def batch_of(seed: int) -> torch.Tensor:
    return torch.randint(20, (6, 2), generator=torch.Generator().manual_seed(seed))


def test_what_the_next_batch_looks_up_comes_with_the_answer(servers: tuple[Table, Servers]) -> None:
    model, made = servers
    batches = [batch_of(seed) for seed in range(6)]
    for step, (x, following) in enumerate(pairwise(batches)):
        both_here = made.contribute(lambda x=x, step=step: both(model, x, step), [x, x[:, :1].float()], [following, 0])
        assert both_here == {
            "users": sorted(set(following[:, 0].tolist())),
            "ads": sorted(set(following[:, 1].tolist())),
        }
    assert [name for name, _ in made.asked] == ["users", "ads"], "of the first batch only"
    assert made.looked_up.asked == sum(len(ids) for _, ids in made.asked) < made.looked_up.held


def test_what_was_not_foreseen_is_asked_for_and_what_is_of_another_version_is_not_used(
    servers: tuple[Table, Servers],
) -> None:
    model, made = servers
    first, second = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 6], [7, 8]])
    made.contribute(lambda: both(model, first, 0), first, second)
    other = torch.tensor([[5, 6], [9, 8]])
    made.asked.clear()
    made.contribute(lambda: both(model, other, 1), other, second)
    assert made.asked == [("users", [9])], "only that one"
    made.version += 1
    made.looked_up.hold({}, {})  # a pull, after it was idle
    made.asked.clear()
    both(model, second, made.version)
    assert made.asked == [("users", [5, 7]), ("ads", [6, 8])]


def test_rows_that_are_looked_up_twice_have_the_gradients_of_both(servers: tuple[Table, Servers]) -> None:
    model, made = servers
    x = torch.tensor([[1, 2], [1, 4]])
    for _ in range(2):  # asked for, and held
        made.looked_up.see(x, lambda: [x])
        (model.users(x[:, 0]).sum() + 2 * model.users(x[:1, 0]).sum()).backward()
        ids, grads = made.looked_up.gradients()["users"]
        assert (ids.tolist(), grads.tolist()) == ([1], [[4.0, 4.0]])
        wanted = made.looked_up.upcoming()
        made.looked_up.forget()
        made.looked_up.hold(wanted, {name: made.rows(ids) for name, ids in wanted.items()})
    assert len(made.asked) == 2


def test_a_wrong_guess_is_given_up_and_what_is_computed_is_not_sought_for_ever(servers: tuple[Table, Servers]) -> None:
    model, made = servers
    alike = torch.tensor([[3, 3], [4, 4]])  # the first column will do for the second one, this once
    other = torch.tensor([[1, 7], [2, 8]])
    assert made.contribute(lambda: model.users(alike[:, 1]), alike, other) == {"users": [1, 2]}
    assert made.contribute(lambda: model.users(other[:, 1]), other, alike + 1) == {"users": [4, 5]}
    assert made.contribute(lambda: model.users(other[:, 1]), other, other) == {"users": [7, 8]}
    for _ in range(TRIES_MAX + 1):
        made.contribute(lambda: model.ads((7 * other[:, 0]) % 20), other, other)
    assert made.looked_up._tries["ads"] == TRIES_MAX
    beyond = torch.tensor([[1, 7], [2, 70]])
    assert made.contribute(lambda: model.users(other[:, 1]), other, beyond) == {"users": [7]}, "there is no row 70"
    with torch.no_grad():
        model.users(torch.tensor([30, 31]))  # what is only looked at teaches nothing
    assert made.contribute(lambda: model.users(other[:, 1]), other, other) == {"users": [7, 8]}


# -- over real sockets


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters that end with the test."""
    monkeypatch.setenv("ANTDT_SERVERS", "2")
    made: list[Cluster] = []

    def make(**options: Any) -> Cluster:
        made.append(Cluster(sparse, ParameterServer(**options)))
        made[-1].begin()
        return made[-1]

    yield make
    for one in made:
        one.end()


IDS = torch.randint(50, (96, 4), generator=torch.Generator().manual_seed(2))
LABELS = torch.randint(3, (96,), generator=torch.Generator().manual_seed(3))


def contribute(worker: ServedMember, samples: range, following: range) -> bool:
    """One contribution of these samples; whether it is in a version."""
    batch = [IDS[list(samples)], LABELS[list(samples)]]
    worker.announce(Part([Range(1, 7, 0, samples.start, len(samples))], 0, len(samples)))
    worker.look_ahead(batch, lambda: [[IDS[list(following)], LABELS[list(following)]]])
    worker.backward(functional.cross_entropy(worker.model(batch[0]), batch[1]), len(samples))
    return worker.finish(lambda _: None).applied


def alone(monkeypatch: pytest.MonkeyPatch, batches: Sequence[range]) -> nn.Module:
    """What one process makes of it."""
    monkeypatch.setenv("ANTDT_SERVERS", "0")
    model, optimizer, _ = sparse()
    table: Any = model.table
    with torch.no_grad():
        table.weight.copy_(first_values(table.seed, "table", torch.arange(50), 6, 0.1))
    for batch in batches:
        optimizer.zero_grad()
        functional.cross_entropy(model(IDS[list(batch)]), LABELS[list(batch)]).backward()
        optimizer.step()
    return model


def whole(here: Cluster, worker: ServedMember, steps: int) -> nn.Module:
    here.stop()
    parts = [bytes(one._serving().state.snapshot(Buffer())) for one in here.servers]
    worker.assemble(parts, steps, worker.lineage)
    return worker.model


def test_synchronous_workers_with_rows_ahead_make_the_steps_of_one_process(
    cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = cluster()
    workers = [here.worker("w0"), here.worker("w1")]
    parts = [[range(8 * step, 8 * step + 3), range(8 * step + 3, 8 * step + 8)] for step in range(12)]
    with ThreadPoolExecutor(2) as pool:
        for now, following in zip(parts, [*parts[1:], parts[0]], strict=True):
            assert all(pool.map(contribute, workers, now, following))
    for worker in workers:
        first = len(IDS[list(parts[0][workers.index(worker)])].unique())
        assert worker._looked_up.asked == first, "of the first batch only"
        assert worker._looked_up.held > 10 * first / 2
    assert_equal(whole(here, workers[0], 12), alone(monkeypatch, [range(8 * step, 8 * step + 8) for step in range(12)]))


def test_who_comes_late_is_answered_with_the_rows_that_it_computes_on_anew(
    cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = cluster(backup=1)
    for one in here.servers:
        one.obey([], 0, 1, 1.0)
    fast, slow = here.worker("w0"), here.worker("w1")
    assert contribute(fast, range(0, 8), range(8, 16))
    assert not contribute(slow, range(8, 16), range(16, 24)), "its version went without it"
    asked = slow._looked_up.asked
    assert contribute(slow, range(8, 16), range(16, 24))
    assert slow._looked_up.asked == asked, "the rows came with the word that it was late"
    assert slow.step_number == 2
    assert_equal(whole(here, slow, 2), alone(monkeypatch, [range(0, 8), range(8, 16)]))
