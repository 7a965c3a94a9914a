"""Streams by position: what is read, skipped and left over."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from antdt.data.sources import source_of
from antdt_schemas.errors import UsageError
from antdt_schemas.ranges import Range
from torch.utils.data import IterableDataset


class Numbers(IterableDataset[int]):
    def __init__(self, size: int) -> None:
        self.size, self.given = size, 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.size):
            self.given += 1
            yield number


def read(source: Any, start: int, length: int, epoch: int = 0) -> list[int]:
    return list(source.fetch([Range(0, 0, epoch, start, length)]))


def test_it_is_read_once_an_epoch_whatever_is_skipped() -> None:
    stream = Numbers(30)
    source = source_of(stream, size=30, collate=list)
    assert read(source, 4, 3) == [4, 5, 6]
    assert read(source, 9, 2) == [9, 10]
    assert stream.given == 11
    assert read(source, 2, 1) == [2], "back to the beginning"
    assert read(source, 0, 2, epoch=1) == [0, 1]
    assert stream.given == 11 + 3 + 2


def test_less_than_was_stated_ends_it_and_more_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match=r"gave 4 samples for positions \[6, 12\), its size was stated as 12"):
        read(source_of(Numbers(10), size=12, collate=list), 6, 6)
    source = source_of(Numbers(30), size=12, collate=list)
    with caplog.at_level(logging.WARNING, "antdt"):
        for epoch in (0, 1):
            assert read(source, 6, 6, epoch) == [6, 7, 8, 9, 10, 11]
    assert [r.getMessage() for r in caplog.records] == [
        "The data set has more than the size=12 samples that were stated: what comes behind them is in no epoch."
    ]
    caplog.clear()
    assert read(source_of(Numbers(12), size=12, collate=list), 0, 12) == list(range(12))
    assert not caplog.records
