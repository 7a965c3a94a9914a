"""The order of an epoch and its inverse: every sample is at one position, and is found there."""

from __future__ import annotations

import pytest
import torch
from antdt.data.sources import permute
from antdt_schemas.order import FEISTEL, SAMPLED, SEQUENTIAL, Order, Permutation
from hypothesis import given
from hypothesis import strategies as st

SIZES = 2_000
HUGE = 10**12


def test_positions_of_all_samples_of_every_size() -> None:
    """Of each size another seed and epoch; of the smallest several."""
    for size in range(1, SIZES + 1):
        for seed in range(3 if size <= 64 else 1):
            order = Permutation.of(seed + size, size % 7, size)
            samples = range(size) if size <= 64 else range(size % 13, size, 13)
            assert all(order(order.position(sample)) == sample for sample in samples), (size, seed)
    whole = Permutation.of(3, 1, SIZES)
    assert sorted(map(whole, range(SIZES))) == list(range(SIZES))
    assert [whole.position(whole(at)) for at in range(SIZES)] == list(range(SIZES))


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6), st.integers(1, HUGE), st.data())
def test_a_sample_is_found_where_it_is(seed: int, epoch: int, size: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, size - 1))
    order = Permutation.of(seed, epoch, size)
    assert order.position(order(at)) == at
    assert 0 <= order.position(at) < size and order(order.position(at)) == at


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(1, HUGE**2 >> 18), st.data())
def test_many_at_once_are_where_each_is(seed: int, epoch: int, size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    order, positions = Permutation.of(seed, epoch, size), range(start, min(size, start + 300))
    assert permute(order, torch.tensor(positions)).tolist() == list(map(order, positions))


@given(st.integers(0, 99), st.integers(0, 9), st.integers(1, 500), st.data())
def test_the_order_of_a_job(seed: int, epoch: int, size: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, size - 1))
    shuffled, plain = Order(FEISTEL, seed, size), Order(SEQUENTIAL, seed, size)
    assert (plain.sample(epoch, at), plain.position(epoch, at)) == (at, at)
    assert shuffled.sample(epoch, at) == Permutation.of(seed, epoch, size)(at)
    assert shuffled.position(epoch, shuffled.sample(epoch, at)) == at


@pytest.mark.parametrize("outside", [-1, 10])
def test_outside_of_the_data_there_is_nothing(outside: int) -> None:
    with pytest.raises(AssertionError):
        Permutation.of(0, 0, 10).position(outside)


def test_a_list_that_only_workers_have_is_asked_for_nothing() -> None:
    order = Order(f"{SAMPLED}/0", 0, 10)
    assert not order.is_known
    for ask in (order.sample, order.position):
        with pytest.raises(AssertionError):
            ask(0, 1)
