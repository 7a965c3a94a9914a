"""Random states in checkpoints: every rank goes on where it was, new ranks begin somewhere of their own."""

from __future__ import annotations

import random

import numpy
import torch
from antdt.strategies.allreduce import AllReduceReplica, randomness
from torch import nn

from tests.helpers.allreduce import each, generation_of, mean_loss, replica, take


class Noisy(nn.Module):  # type: ignore[misc]
    """Draws from every generator there is."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = 1 + random.random() + numpy.random.rand() + random.gauss(0, 1)
        return self.body(nn.functional.dropout(x, 0.5)) * scale


def steps(member: AllReduceReplica, count: int) -> None:
    with generation_of([member]):
        for number in range(count):
            x = torch.rand(4, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            take(member, 4)
            member.backward(mean_loss(member, x, x[:, :3]), 4)
            member.step()


def drawn() -> tuple[float, float, float]:
    return float(torch.rand(())), random.random(), float(numpy.random.rand())


def test_a_run_that_is_resumed_from_a_file_ends_bit_by_bit_like_one_that_never_stopped() -> None:
    one, other = (replica(build=Noisy, optimizer=torch.optim.Adam, seed=seed) for seed in (1, 2))
    torch.manual_seed(5)
    steps(one, 3)
    with generation_of([one]):
        file = one.snapshot(one.gather_random())
    steps(one, 4)
    drawn()
    other.restore(file)
    steps(other, 4)
    assert torch.equal(one.model.body.weight, other.model.body.weight)


def test_random_states_are_gathered_from_all_ranks_and_travel_with_an_adoption() -> None:
    members = [replica(seed=1), replica(seed=1)]
    with generation_of(members):
        states = each(2, lambda rank: members[rank].gather_random())
        assert states[0] == states[1]
        assert len(states[0]) == 2
        file = members[0].snapshot(states[0])
    there = drawn()
    newcomers = [replica(seed=3), replica(seed=4), replica(seed=5)]
    newcomers[0].restore(file)
    assert drawn() == there, "rank 0 goes on where rank 0 was"
    with generation_of(newcomers, source=0):
        pass
    handed_on = newcomers[2].snapshot()
    newcomers[0].restore(handed_on)
    assert drawn() == there, "as long as no step was made, whoever has the file's state has its random states"


def test_a_rank_that_was_not_there_gets_a_seed_of_its_own_and_always_the_same() -> None:
    states = [randomness.pack([])]
    firsts = []
    for rank in (0, 1, 2, 1):
        randomness.take_over(states, rank, [])
        firsts.append(drawn())
    assert len(set(firsts)) == 3
    assert firsts[1] == firsts[3]


def test_members_that_were_seeded_alike_part_always_to_the_same_places_and_an_abort_keeps_that() -> None:
    def first(*salt: object) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        member = replica(seed=1)
        random.seed(1)
        numpy.random.seed(1)
        member.diverge(*salt)
        drawn_first = drawn()
        numpy.random.seed(1)
        member.abort()
        return drawn_first, (float(torch.rand(())), drawn_first[1], drawn_first[2])

    lives = [first("w0", 1, 3), first("w1", 0, 1), first("w1", 1, 4), first("w1", 0, 1)]
    assert len({draws for life, _ in lives for draws in life}) == 9
    assert lives[1] == lives[3]
    assert all(life == after for life, after in lives), "an abort leads back to where it was"
