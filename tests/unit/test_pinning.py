"""Batches in page-locked memory. No GPU is asked: a list of places stands for what would be pinned."""

from __future__ import annotations

import random
import warnings
from collections import UserDict, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from antdt.data.pinning import Pinning, pinning_of
from antdt.data.sources import source_of
from antdt_schemas.ranges import Range
from torch.utils.data import TensorDataset, default_collate

from tests.helpers.loading import Stream, same

Pair = namedtuple("Pair", "x y")


class Memory:
    """Stands for page-locked memory: all that was ever given out, and how often something was copied into it."""

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []
        self.copies = 0

    def empty(self, size: Any, *, dtype: torch.dtype, device: str, pin_memory: bool) -> torch.Tensor:
        """As torch.empty."""
        assert pin_memory and device == "cpu", "whatever the default device is"
        self.given.append(torch.empty(size, dtype=dtype))
        return self.given[-1]

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """As Tensor.pin_memory."""
        if self.holds(tensor):
            return tensor
        self.copies += 1
        self.given.append(tensor.clone())
        return self.given[-1]

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether it lies there."""
        return any(tensor.data_ptr() == one.data_ptr() for one in self.given)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Where tensors go that are pinned."""
    made = Memory()

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        return made.pin(tensor)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return made


def tensors(batch: Any) -> list[torch.Tensor]:
    """All in it."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    values = batch.values() if hasattr(batch, "values") else batch if isinstance(batch, list | tuple) else ()
    return [tensor for value in values for tensor in tensors(value)]


@pytest.mark.parametrize(
    ("sample", "copies"),
    [
        (lambda n: torch.full((2, 3), n), 0),
        (lambda n: (torch.tensor(n), np.full(3, n), f"n{n}"), 0),
        (lambda n: {"image": torch.ones(4) * n, "parts": [Pair(torch.zeros(1), np.ones(2) * n)]}, 0),
        (lambda n: {"number": n, "share": n / 7}, 2),
        (lambda n: torch.ones(2, dtype=torch.float64 if n else torch.float32), 1),
        (lambda _: torch.nn.Parameter(torch.ones(2)), 1),
    ],
)
def test_samples_are_put_together_where_they_shall_lie(
    memory: Memory, sample: Callable[[int], Any], copies: int
) -> None:
    """The same as torch's collate gives, all of it pinned; only what torch makes of numbers is copied."""
    samples = [sample(n) for n in range(5)]
    batch = Pinning(memory.empty).collate(None)(samples)
    assert same(batch, default_collate(samples))
    assert all(map(memory.holds, tensors(batch)))
    assert memory.copies == copies


def test_what_a_collate_fn_gives_is_pinned_wherever_it_is(memory: Memory) -> None:
    class Own:
        pinned = False

        def pin_memory(self) -> Own:
            self.pinned = True
            return self

    x, own = torch.ones(3), Own()
    batch = Pinning(memory.empty).collate(lambda _: UserDict(a=(x, "text"), b=[{"c": x}, Pair(x, own)], d=None))([1])
    assert type(batch) is UserDict
    assert [type(part) for part in batch["b"]] == [dict, Pair]
    assert batch["a"][1] == "text"
    assert len(tensors(batch)) == 3
    assert all(map(memory.holds, tensors(batch)))
    assert own.pinned


def test_what_several_numbers_share_is_copied_apart(memory: Memory) -> None:
    share, image = torch.rand(()), torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    batch = Pinning(memory.empty).collate(lambda _: {"share": share.expand(4), "image": image})([1])
    assert batch["share"].tolist() == [float(share)] * 4
    assert batch["share"].is_contiguous()
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)


def test_every_kind_of_data_set(memory: Memory) -> None:
    whole = TensorDataset(torch.randn(50, 2, 3), torch.arange(50), torch.ones(50, dtype=torch.complex64).conj())
    for dataset in (whole, [(torch.ones(2) * n, n) for n in range(50)], Stream()):
        found = []
        for pinning in (None, Pinning(memory.empty)):
            random.seed(1)
            source = source_of(dataset, seed=3, size=50, pinning=pinning)
            found.append(source.fetch([Range(1, 1, 0, 3, 7), Range(1, 1, 0, 40, 5)]))
        assert same(*found), type(dataset)
        assert all(map(memory.holds, tensors(found[1])))


def test_without_a_gpu_there_is_one_warning() -> None:
    with pytest.warns(UserWarning, match="no accelerator is here") as said:
        assert pinning_of(True, lambda: False) is None
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pinning_of(False, lambda: False) is None
        assert pinning_of(True, lambda: True) is not None
