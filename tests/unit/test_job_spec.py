"""What cannot work is said before anybody is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from antdt.data.sources import source_of
from antdt.job import AgentOptions, Schedule, spec_of
from antdt.strategies.allreduce import AllReduce
from antdt_schemas import records
from antdt_schemas.errors import UsageError
from torch.utils.data import TensorDataset


@pytest.mark.parametrize(
    ("given", "samples", "said"),
    [
        ({"batch_size": 0}, 10, "batch_size=0"),
        ({"batch_size": 2}, 10, "batch_size=2 is less than one sample for each of the 3 workers"),
        ({"epochs": 0}, 10, "epochs=0"),
        ({}, 2, "2 samples for 3 workers"),
    ],
)
def test_what_cannot_work_is_said(given: dict[str, int], samples: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        spec(samples, AgentOptions(), **{"batch_size": 8, "epochs": 1, "workers": 3, **given})


def test_shards_are_an_eighth_of_an_even_share_unless_it_is_said() -> None:
    assert spec(100, AgentOptions(), batch_size=64, epochs=1, workers=2).shard_size == 4
    assert spec(100, AgentOptions(shard_size=7), batch_size=64, epochs=1, workers=2).shard_size == 7


def spec(samples: int, options: AgentOptions, **given: int) -> records.JobSpec:
    data: Any = TensorDataset(torch.zeros(samples, 1))
    return spec_of(Schedule(seed=0, **given), data, source_of(data), options, AllReduce())
