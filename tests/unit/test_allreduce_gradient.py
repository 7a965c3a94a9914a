"""The weighted gradient is that of the mean over the global batch, whatever the split."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from antdt.strategies.allreduce import AllReduce, AllReduceReplica
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.helpers.allreduce import (
    each,
    generation_of,
    mean_loss,
    record_gradients,
    replica,
    same,
    state_of,
    take,
)

Round = list[list[int]]  # micro-batch sizes of each member
UNEVEN: list[Round] = [
    [[3], [5], [1]],
    [[2, 2, 1], [4], []],  # accumulation on one member, none on another
    [[], [], []],  # nobody has a sample
    [[], [], [6]],
    [[1, 1], [2, 3, 1], [4, 4]],
    [[8], [], []],
]


def batch_of(samples: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(samples, 6, generator=generator, dtype=torch.float64)
    y = torch.rand(samples, 3, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def train(members: list[AllReduceReplica], rounds: list[Round], data: list[Any], reference: int) -> list[list[int]]:
    """Every member's own thread runs the loop that a user writes. Returns the totals each member saw."""

    def loop(rank: int) -> list[int]:
        member, totals = members[rank], []
        for parts, (x, y) in zip(rounds, data, strict=True):
            ends = [sum(sum(part) for part in parts[:r]) for r in range(len(parts) + 1)]
            at = ends[rank]
            take(member, sum(parts[rank]), reference=reference)
            for index, size in enumerate(parts[rank]):
                loss = mean_loss(member, x[at : at + size], y[at : at + size])
                member.backward(loss, size, last=index == len(parts[rank]) - 1)
                at += size
            result = member.step()
            assert result.applied == (result.total > 0)
            totals.append(result.total)
        return totals

    return each(len(members), loop)


def train_alone(member: AllReduceReplica, data: list[Any]) -> None:
    """Plain PyTorch on the global batch."""
    for x, y in data:
        if len(x):
            member.optimizer.zero_grad()
            mean_loss(member, x, y).backward()
            member.optimizer.step()


def check(rounds: list[Round], dtype: torch.dtype, tolerance: float, options: AllReduce | None = None) -> None:
    world = len(rounds[0])
    members = [replica(dtype, options=options) for _ in range(world)]
    alone = replica(dtype)
    found = [record_gradients(member) for member in members]
    expected = record_gradients(alone)
    generator = torch.Generator().manual_seed(3)
    data = [batch_of(sum(sum(part) for part in parts), dtype, generator) for parts in rounds]
    with generation_of(members):
        totals = train(members, rounds, data, reference=8)
    train_alone(alone, data)

    assert totals == [[len(x) for x, _ in data]] * world
    applied = sum(bool(len(x)) for x, _ in data)
    assert [member.step_number for member in members] == [applied] * world
    for member in members[1:]:
        assert same(state_of(members[0]), state_of(member)), "replicas are not bit-equal"
    assert len(found[0]) == len(expected) == applied
    for ours, theirs in zip(found[0], expected, strict=True):
        assert {n for n, g in ours.items() if g is None} == {n for n, g in theirs.items() if g is None}
        scale = max(g.abs().max() for g in theirs.values() if g is not None)
        worst = max((ours[n] - g).abs().max() for n, g in theirs.items() if g is not None)
        assert worst <= tolerance * scale


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("compositions", ["inline", "gather"])
def test_gradient_is_that_of_the_global_batch(dtype: torch.dtype, tolerance: float, compositions: Any) -> None:
    options = AllReduce(first_bucket_size_bytes=128, bucket_size_bytes=512, compositions=compositions)
    check(UNEVEN, dtype, tolerance, options)


def test_gradient_without_overlap_is_the_same() -> None:
    check(UNEVEN, torch.float64, 1e-12, AllReduce(128, 512, overlap=False))


def test_gradient_in_one_bucket_is_the_same() -> None:
    check(UNEVEN, torch.float64, 1e-12, AllReduce())


def test_a_member_alone_trains_as_plain_pytorch() -> None:
    check([[[8]], [[3, 4, 2]], [[]], [[1]]], torch.float64, 1e-12)


sizes = st.lists(st.integers(1, 4), max_size=3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4).flatmap(lambda world: st.lists(st.lists(sizes, min_size=world, max_size=world), max_size=3)))
def test_any_split_gives_the_same_gradient(rounds: list[Round]) -> None:
    check(rounds or [[[1], [2]]], torch.float64, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_carry_compositions_exactly(dtype: torch.dtype) -> None:
    members = [replica(dtype) for _ in range(3)]
    token = [2**63 - 1, -(2**63), -1]

    def loop(rank: int) -> Any:
        members[rank].take([(rank, token[rank], 0, 10 * rank, 2)], 2, 0, False, 6)
        x, y = torch.rand(2, 6).to(dtype), torch.rand(2, 3).to(dtype)
        members[rank].backward(mean_loss(members[rank], x, y), 2)
        return members[rank].step()

    with generation_of(members):
        results = each(3, loop)
    for result in results:
        assert [tuple(row.ranges[0]) for row in result.rows] == [(r, token[r], 0, 10 * r, 2) for r in range(3)]
    assert same(state_of(members[0]), state_of(members[2]))


class Normed(nn.Module):  # type: ignore[misc]
    """BatchNorm, a constant that must stay as it is, and a buffer that no state holds."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1) + 0.1)
        self.calls = nn.Buffer(torch.zeros(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1  # a module may put a new tensor in a buffer's place
        return self.head(self.norm(self.body(x)))


def test_batchnorm_statistics_are_the_mean_weighted_by_samples() -> None:
    members = [replica(build=Normed) for _ in range(3)]
    parts = [[3, 2], [7], []]
    generator = torch.Generator().manual_seed(4)
    data = [[batch_of(size, torch.float64, generator) for size in part] for part in parts]
    alone = [copy.deepcopy(member.model) for member in members]
    for model, batches in zip(alone, data, strict=True):
        for x, _ in batches:
            model(x)

    def loop(rank: int) -> None:
        take(members[rank], sum(parts[rank]))
        for index, (x, y) in enumerate(data[rank]):
            members[rank].backward(mean_loss(members[rank], x, y), len(x), last=index == len(data[rank]) - 1)
        members[rank].step()

    mask = members[0].model.mask.clone()
    with generation_of(members):
        each(3, loop)
    for name in ("running_mean", "running_var"):
        expected = sum(w * getattr(m.norm, name) for w, m in zip((5 / 12, 7 / 12, 0), alone, strict=True))
        torch.testing.assert_close(getattr(members[0].model.norm, name), expected, rtol=1e-12, atol=1e-14)
    assert members[2].model.norm.num_batches_tracked == 2, "the largest"
    assert torch.equal(members[2].model.mask, mask), "constants stay, bit by bit"
    assert [member.model.calls[0].item() for member in members] == [2, 1, 0], "not part of the state"
    for left, right in pairwise(members):
        assert same(state_of(left), state_of(right))
