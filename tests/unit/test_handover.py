"""A model on its way to other members and to a file: whole, as it was, and never in memory once more."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from antdt.files import checkpoint
from antdt.strategies.allreduce import handover
from antdt.strategies.allreduce.state import parse
from torch import nn

from tests.helpers.allreduce import each, generation_of, replica, same, state_of
from tests.unit.test_allreduce_steps import one_step

LARGE_BYTES = 2**22


class Wide(nn.Module):  # type: ignore[misc]
    """Large, but for what a step has to do with it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(LARGE_BYTES // 8 // 64, 64)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) + self.rows.weight[0, :3]


class Image(nn.Module):  # type: ignore[misc]
    """Weights that do not lie in memory as they are counted, buffers of other types, one weight by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
        self.head, self.norm = nn.Linear(6, 3), nn.BatchNorm1d(6)
        self.tied = nn.Linear(6, 3, bias=False)
        self.tied.weight = self.head.weight
        self.mask = nn.Buffer(torch.ones(40, dtype=torch.bool))
        self.coarse = nn.Buffer(torch.ones(40, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tied(self.norm(x)) + self.head(x) + self.conv.weight.sum()


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly every tensor travels apart, and most in several pieces."""
    monkeypatch.setattr(handover, "APART_SIZE_BYTES", 16)
    monkeypatch.setattr(handover, "PIECE_SIZE_BYTES", 160)


@pytest.mark.usefixtures("in_pieces")
def test_a_newcomer_takes_over_every_tensor_however_it_lies_in_memory() -> None:
    members = [replica(build=Image, optimizer=torch.optim.AdamW, seed=seed) for seed in (1, 2)]
    with generation_of(members[:1]):
        one_step(members[0])
    before = state_of(members[0])
    with generation_of(members, source=0):
        assert same(before, state_of(members[0]))
        assert same(before, state_of(members[1]))
        kept = (one.optimizer.state[one.model.conv.weight]["exp_avg"].stride() for one in members)
        assert len(set(kept)) == 1
        members[0].model.conv.weight.data.zero_()
        assert members[1].model.conv.weight.any(), "nothing is shared"
        members[0].model.load_state_dict(members[1].model.state_dict())
        each(2, lambda rank: one_step(members[rank]))
        assert same(state_of(members[0]), state_of(members[1]))


@pytest.mark.usefixtures("in_pieces")
def test_what_is_on_its_way_is_of_the_step_that_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that leaves goes on, while the last piece may still be sent."""
    member, sent = replica(), list[torch.Tensor]()
    monkeypatch.setattr(handover, "_exchange", lambda generation, source, piece: sent.append(piece))
    tensor = member.model.head.weight.detach()
    before, member.rank = tensor.clone(), 0
    handover._send(member, tensor)  # type: ignore[arg-type]
    tensor.zero_()
    assert torch.equal(torch.cat(sent).view(tensor.dtype), before.flatten())


@contextmanager
def without_a_copy() -> Iterator[None]:
    """Not of tensors, whose memory is torch's own: of bytes."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < LARGE_BYTES / 2, f"{peak:,} bytes"


def test_neither_saving_nor_loading_nor_trying_it_makes_bytes_of_the_whole(tmp_path: Path) -> None:
    members = [replica(build=Wide, optimizer=torch.optim.AdamW, seed=seed) for seed in (1, 2)]
    with generation_of(members[:1]):
        one_step(members[0])
    acts: list[Callable[[], Any]] = [
        members[0].load_back,
        lambda: checkpoint.write(tmp_path, "a.pt", members[0].save),
        lambda: checkpoint.read(tmp_path, "a.pt", "job").close(),
    ]
    for act in acts:
        with without_a_copy():
            act()
    with without_a_copy(), generation_of(members, source=0):
        pass
    assert same(state_of(members[0]), state_of(members[1]))
    with checkpoint.read(tmp_path, "a.pt", "job") as file:
        assert parse(file).progress.step == 1
    assert (tmp_path / "a.pt").stat().st_size > 3 * LARGE_BYTES
