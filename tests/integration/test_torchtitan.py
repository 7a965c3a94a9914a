"""torchtitan's own data loader, watched: its batches, and where it goes on, are what they are without us.

`make adapters` installs it; without it this is skipped. Its Trainer wants accelerators: the loader is all of it here.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from antdt.adapters.torchtitan import Noted
from torch.utils.data import IterableDataset

pytestmark = pytest.mark.adapters
dataloader = pytest.importorskip("torchtitan.components.dataloader", reason="`make adapters` installs torchtitan")


class Text(IterableDataset[Any]):  # type: ignore[misc]
    """Tokens of one of two ranks; it can say where it is, and go on there."""

    def __init__(self, rank: int) -> None:
        self.rank, self.at = rank, 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            tokens = torch.arange(8) + 1000 * self.rank + 8 * self.at
            self.at += 1
            yield {"input": tokens[:-1]}, tokens[1:]

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def loader_of(rank: int) -> Any:
    return dataloader.ParallelAwareDataloader(Text(rank), dp_rank=rank, dp_world_size=2, batch_size=4)


def taken(loader: Any, count: int) -> list[torch.Tensor]:
    """So many batches, as the Trainer takes them."""
    batches = iter(loader)
    out = []
    for _ in range(count):
        inputs, labels = next(batches)
        out.append(torch.cat([inputs["input"], labels], 1))
    return out


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_batches_are_the_loader_s_own_and_the_hash_tells_them_apart() -> None:
    plain, watched, again, other = loader_of(0), Noted(loader_of(0)), Noted(loader_of(0)), Noted(loader_of(1))
    assert same(taken(watched, 5), taken(plain, 5))
    taken(again, 5)
    taken(other, 5)
    assert watched.lineage == again.lineage != other.lineage
    taken(again, 1)
    assert again.lineage != watched.lineage


def test_it_goes_on_where_a_checkpoint_says_with_us_or_without() -> None:
    whole = taken(loader_of(1), 7)
    watched = Noted(loader_of(1))
    batches = iter(watched)
    for _ in range(3):
        next(batches)
    state = watched.state_dict()
    assert set(state) == {"dp_rank_1", "world_size"}, "as torchtitan's checkpoints have it"
    assert pickle.loads(state["dp_rank_1"])
    for loader in (loader_of(1), Noted(loader_of(1))):
        loader.load_state_dict(state)
        assert same(taken(loader, 4), whole[3:])


def test_what_is_asked_of_it_by_name_is_asked_of_the_loader() -> None:
    loader = loader_of(1)
    watched = Noted(loader)
    assert (watched.dp_rank, watched.dp_world_size, watched.batch_size) == (1, 2, 4)
    assert isinstance(loader, dataloader.BaseDataLoader)
