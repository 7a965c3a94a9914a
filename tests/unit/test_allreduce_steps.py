"""Plans, the end, aborted steps, adoption, and what is refused."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from antdt.strategies.allreduce import AllReduce, AllReduceReplica, GenerationClosed, ReplicasDiffer
from antdt_schemas.errors import UsageError
from antdt_schemas.lineage import ROOT, next_lineage
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.helpers.allreduce import Net, each, generation_of, mean_loss, replica, same, state_of, take

EARLY = "body.weight"  # reached last: by then other buckets are on their way


def one_step(member: AllReduceReplica, samples: int = 2, **announced: Any) -> Any:
    take(member, samples, **announced)
    if samples:
        generator = torch.Generator().manual_seed(member.step_number)
        x = torch.rand(samples, 6, generator=generator, dtype=torch.float64)
        member.backward(mean_loss(member, x, x[:, :3]), samples)
    return member.step()


class Dropping(Net):
    """Draws random numbers and has statistics: both must come back after an abort."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.seen = nn.Buffer(torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(1)
        return super().forward(nn.functional.dropout(self.norm(x), 0.5))


def test_all_members_switch_the_plan_at_the_same_step_whenever_they_read_it() -> None:
    members = [replica() for _ in range(3)]
    read_at = [1, 4, 2]  # the step from which each member has read plan 5
    told: list[list[int]] = [[], [], []]

    def loop(rank: int) -> list[int]:
        member, plans = members[rank], []
        for step in range(6):
            take(member, 2, plan_seen=5 if step >= read_at[rank] else 0)
            x = torch.rand(2, 6, dtype=torch.float64)
            member.backward(mean_loss(member, x, x[:, :3]), 2)
            member.step(on_plan=told[rank].append)
            plans.append(member.plan)
        return plans

    with generation_of(members):
        assert each(3, loop) == [[0, 0, 0, 0, 5, 5]] * 3
    assert told == [[5]] * 3, "told once"
    assert [made.plan for made in members[0].pending] == [0, 0, 0, 0, 5, 5]


def test_a_plan_that_is_read_within_a_step_counts_for_it_until_the_row_has_left() -> None:
    members = [replica() for _ in range(2)]

    def loop(rank: int) -> list[int]:
        member, plans = members[rank], []
        for step in range(2):
            take(member, 2)
            x = torch.rand(2, 6, dtype=torch.float64)
            loss = mean_loss(member, x, x[:, :3])
            if step == 0 and rank == 0:
                member.backward(loss, 2)
                member.see(7)  # too late: the row is on its way
            else:
                member.see(7)
                member.backward(loss, 2)
            member.step()
            plans.append(member.plan)
        return plans

    with generation_of(members):
        assert each(2, loop) == [[0, 7], [0, 7]]


def test_who_adopts_a_model_takes_over_its_plan() -> None:
    first, second = replica(), replica()
    with generation_of([first]):
        take(first, 2, plan_seen=5)
        x = torch.rand(2, 6, dtype=torch.float64)
        first.backward(mean_loss(first, x, x[:, :3]), 2)
        first.step()
    with generation_of([first, second], source=0):
        assert (second.step_number, second.plan) == (1, 5)


def test_a_plan_is_in_effect_for_the_very_step_that_agrees_on_it() -> None:
    member = replica(optimizer=lambda params: torch.optim.SGD(params, lr=0.1))

    def freeze(_: int) -> None:
        member.optimizer.param_groups[0]["lr"] = 0.0

    with generation_of([member]):
        before = state_of(member)
        take(member, 2, plan_seen=1)
        x = torch.rand(2, 6, dtype=torch.float64)
        member.backward(mean_loss(member, x, x[:, :3]), 2)
        member.step(on_plan=freeze)
    assert torch.equal(before["model.head.weight"], member.model.head.weight)


@pytest.mark.parametrize("samples", [(0, 0, 0), (2, 0, 3)])
def test_the_end_told_to_one_member_reaches_all_in_the_same_round(samples: tuple[int, ...]) -> None:
    members = [replica() for _ in range(3)]
    with generation_of(members):
        results = each(3, lambda rank: one_step(members[rank], samples[rank], ended=rank == 1))
        assert [result.ended for result in results] == [True] * 3
        assert not any(r.ended for r in each(3, lambda rank: one_step(members[rank], samples[rank])))


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("compositions", ["inline", "gather"])
def test_a_round_without_samples_changes_nothing(world: int, compositions: Any) -> None:
    options = AllReduce(128, 512, compositions=compositions)
    members = [replica(optimizer=torch.optim.AdamW, options=options) for _ in range(world)]
    with generation_of(members):
        each(world, lambda rank: one_step(members[rank]))
        before = [state_of(member) for member in members]
        results = each(world, lambda rank: one_step(members[rank], 0))
        assert [(r.total, r.applied) for r in results] == [(0, False)] * world
        assert all(same(kept, state_of(member)) for kept, member in zip(before, members, strict=True))
        each(world, lambda rank: one_step(members[rank]))
    assert members[0].step_number == 2


def test_step_number_lineage_and_pending_follow_the_compositions() -> None:
    members = [replica() for _ in range(2)]

    def loop(rank: int) -> None:
        for step in range(3):
            members[rank].take([(10 * step + rank, 99, 0, step, 1)], 1, 0, False, 2)
            x = torch.rand(1, 6, dtype=torch.float64)
            members[rank].backward(mean_loss(members[rank], x, x[:, :3]), 1)
            members[rank].step()

    with generation_of(members):
        each(2, loop)
    expected = ROOT
    for step in range(3):
        expected = next_lineage(expected, step + 1, (10 * step, 0, step, 1, 10 * step + 1, 0, step, 1))
    assert [member.lineage for member in members] == [expected, expected]
    assert [made.step for made in members[1].pending] == [1, 2, 3]
    members[1].drop_pending(2)
    assert [made.step for made in members[1].pending] == [3]


def test_first_bucket_ends_the_own_compute() -> None:
    members = [replica() for _ in range(2)]

    def act(rank: int) -> Any:
        take(members[rank], 2 * rank)
        if rank:
            x = torch.rand(2, 6, dtype=torch.float64)
            members[rank].backward(mean_loss(members[rank], x, x[:, :3]), 2)
        return members[rank].first_bucket_at

    with generation_of(members):
        nothing, ready = each(2, act)
    assert nothing is None
    assert ready is not None


@pytest.mark.parametrize("where", ["after take", "in backward", "before step"])
@pytest.mark.parametrize("compositions", ["inline", "gather"])
def test_a_closed_generation_leads_back_to_the_last_applied_step(where: str, compositions: Any) -> None:
    options = AllReduce(128, 512, compositions=compositions)
    members = [replica(build=Dropping, optimizer=torch.optim.Adam, options=options) for _ in range(3)]
    with generation_of(members) as generations:
        each(3, lambda rank: one_step(members[rank], 2 + rank))
        before, random = [state_of(member) for member in members], torch.get_rng_state()

        def tell_everybody(*_: Any) -> None:
            for generation in generations:
                generation.close()

        def begin(rank: int) -> None:
            take(members[rank], 2)
            if where != "after take" or rank < 2:
                x = torch.rand(2, 6, dtype=torch.float64)
                members[rank].backward(mean_loss(members[rank], x, x[:, :3]), 2)

        def act(rank: int) -> None:
            """The third member gets so far; then everybody is told, and the others cannot finish the step."""
            if rank == 2:
                if where == "in backward":
                    early = dict(members[2].model.named_parameters())[EARLY]
                    early.register_post_accumulate_grad_hook(tell_everybody)
                with suppress(GenerationClosed):
                    begin(2)
                tell_everybody()
            else:
                with pytest.raises(GenerationClosed):  # noqa: PT012 - told at any point of it
                    begin(rank)
                    members[rank].step()
            members[rank].abort()

        each(3, act)
    assert torch.equal(torch.get_rng_state(), random)
    for kept, member in zip(before, members, strict=True):
        assert same(kept, state_of(member)), "not the state of the last applied step"

    survivors = members[:2]
    with generation_of(survivors, source=0):
        each(2, lambda rank: one_step(survivors[rank]))
    assert [member.step_number for member in survivors] == [2, 2]
    assert same(state_of(survivors[0]), state_of(survivors[1]))


def test_abort_brings_back_random_numbers_and_every_buffer() -> None:
    member = replica(build=Dropping)
    with generation_of([member]):
        one_step(member)
        before, random, seen = state_of(member), torch.get_rng_state(), member.model.seen.clone()
        take(member, 2)
        x = torch.rand(2, 6, dtype=torch.float64)
        member.backward(mean_loss(member, x, x[:, :3]), 2)
        assert not torch.equal(random, torch.get_rng_state())
        assert not torch.equal(before["model.norm.running_mean"], member.model.norm.running_mean)
        member.abort()
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(seen, member.model.seen)
    assert same(before, state_of(member))


def test_an_aborted_step_can_be_repeated_bit_by_bit() -> None:
    """What the repetition gives is what an undisturbed run gives."""
    members = [replica(build=Dropping), replica(build=Dropping)]
    x = torch.rand(4, 6, dtype=torch.float64)
    for member, aborts in zip(members, (0, 2), strict=True):
        torch.manual_seed(8)
        for _ in range(aborts):
            with generation_of([member]):
                take(member, 4)
                member.backward(mean_loss(member, x, x[:, :3]), 4, last=False)
                member.abort()
        with generation_of([member]):
            take(member, 4)
            member.backward(mean_loss(member, x, x[:, :3]), 4)
            member.step()
    left, right = (state_of(member) for member in members)
    assert all(torch.equal(left[key], right[key]) for key in left if key.startswith(("model.", "optimizer.")))


def test_newcomers_and_members_a_step_behind_adopt_with_pending_compositions() -> None:
    members = [replica(optimizer=torch.optim.AdamW) for _ in range(3)]
    with generation_of(members):
        each(3, lambda rank: one_step(members[rank]))
        behind = members[1].snapshot()
        each(3, lambda rank: one_step(members[rank]))
    members[1].restore(behind)
    members[2] = replica(optimizer=torch.optim.AdamW, seed=2)
    assert (members[1].step_number, members[2].step_number) == (1, 0)
    ahead = state_of(members[0])
    with generation_of(members, source=0):
        assert [[made.step for made in member.pending] for member in members] == [[1, 2]] * 3
        assert all(same(ahead, state_of(member)) for member in members)
        each(3, lambda rank: one_step(members[rank]))
    assert all(same(state_of(members[0]), state_of(member)) for member in members)


def test_equal_members_send_nothing_but_new_ones_start_from_one_model() -> None:
    members = [replica(seed=1), replica(seed=2)]
    with generation_of(members):
        assert each(2, lambda rank: members[rank].adopt(1)) == [True, True]
        assert same(state_of(members[0]), state_of(members[1]))
        each(2, lambda rank: one_step(members[rank]))
        assert each(2, lambda rank: members[rank].adopt(0)) == [False, False]


def test_an_adoption_that_breaks_off_overwrites_nothing() -> None:
    members = [replica(seed=1), replica(seed=2)]
    with generation_of(members) as generations:
        before = state_of(members[1])

        def act(rank: int) -> None:
            if rank == 1:
                with pytest.raises(GenerationClosed):
                    members[1].adopt(0)
            else:  # the source vanishes after it has announced itself
                generations[0].leave()

        each(2, act)
        assert same(before, state_of(members[1]))
        assert not members[1].void


def test_a_state_that_cannot_be_loaded_whole_leaves_a_void_one_that_is_never_a_source() -> None:
    members = [replica(seed=1), replica(seed=2)]

    def fail(*_: Any) -> None:
        raise MemoryError

    hook = members[1].optimizer.register_load_state_dict_pre_hook(fail)
    with pytest.raises(MemoryError):
        members[1].restore(members[0].snapshot())
    hook.remove()
    assert members[1].void
    with generation_of(members):
        with pytest.raises(AssertionError, match="valid state"):
            each(2, lambda rank: members[rank].adopt(1))
        each(2, lambda rank: members[rank].adopt(0))
        assert not members[1].void
        assert same(state_of(members[0]), state_of(members[1]))


def test_a_failing_optimizer_voids_the_state() -> None:
    member = replica()

    def fail(*_: Any) -> None:
        raise MemoryError

    member.optimizer.register_step_post_hook(fail)
    with generation_of([member]):
        with pytest.raises(MemoryError):
            one_step(member)
        assert member.void
        member.abort()
        assert member.void, "an abort cannot repair it"


def test_a_snapshot_comes_back_bit_by_bit() -> None:
    member, other = (replica(optimizer=torch.optim.AdamW, seed=seed) for seed in (1, 2))
    with generation_of([member]):
        one_step(member)
        one_step(member)
    other.restore(member.snapshot())
    assert same(state_of(member), state_of(other))


def test_replicas_that_differ_apply_nothing() -> None:
    members = [replica() for _ in range(2)]
    with generation_of(members):
        members[1].lineage = b"another history."
        before = [state_of(member)["model.head.weight"] for member in members]

        def act(rank: int) -> None:
            with pytest.raises(ReplicasDiffer):
                one_step(members[rank])

        each(2, act)
        # Only then: whoever leaves first would end the exchange in which the other one finds out.
        each(2, lambda rank: members[rank].abort())
    assert all(torch.equal(kept, m.model.head.weight) for kept, m in zip(before, members, strict=True))


def test_optimizers_with_a_closure_are_refused() -> None:
    with pytest.raises(UsageError, match="LBFGS"):
        replica(optimizer=torch.optim.LBFGS)


def test_models_without_trainable_parameters_are_refused() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(UsageError, match="trainable"):
        AllReduceReplica(model.requires_grad_(False), optimizer)


def test_parameters_outside_the_model_are_refused() -> None:
    model, stray = nn.Linear(2, 2), nn.Parameter(torch.zeros(1))
    with pytest.raises(UsageError, match="one module"):
        AllReduceReplica(model, torch.optim.SGD([*model.parameters(), stray]))


def test_unfreezing_makes_the_members_meet_anew_with_room_for_the_gradients() -> None:
    members = [replica() for _ in range(2)]
    alone = replica()
    for ones in ([alone], members):
        with generation_of(ones):
            each(len(ones), lambda rank, ones=ones: one_step(ones[rank], 2))
            for member in ones:
                member.model.frozen.requires_grad_(True)

            def unfrozen(rank: int, ones: Any = ones) -> None:
                with pytest.raises(GenerationClosed, match="unfrozen"):
                    take(ones[rank], 2)

            each(len(ones), unfrozen)
        for member in ones:
            member.abort()
        with generation_of(ones, source=0):
            each(len(ones), lambda rank, ones=ones: one_step(ones[rank], 2))
            assert ones[0].model.frozen.weight.requires_grad
    assert same(state_of(members[0]), state_of(members[1]))
    torch.testing.assert_close(members[0].model.state_dict(), alone.model.state_dict())
    assert not torch.equal(alone.model.frozen.weight, replica().model.frozen.weight), "nothing trains it"


def test_what_is_frozen_comes_with_the_model() -> None:
    members = [replica() for _ in range(2)]
    members[0].model.frozen.requires_grad_(True)
    members[0].model.head.requires_grad_(False)
    with generation_of(members, source=0):
        assert members[1].model.frozen.weight.requires_grad
        assert not members[1].model.head.weight.requires_grad
        each(2, lambda rank: one_step(members[rank], 2))
    assert same(state_of(members[0]), state_of(members[1]))


def test_members_that_train_other_parameters_in_one_step_are_named() -> None:
    members = [replica() for _ in range(2)]
    with generation_of(members):
        members[1].model.side.requires_grad_(False)

        def act(rank: int) -> None:
            with pytest.raises(ReplicasDiffer, match="trained parameters by name"):
                one_step(members[rank])

        each(2, act)
        each(2, lambda rank: members[rank].abort())


class Sparse(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3, sparse=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table(x[:, 0].long())


class Repeated(nn.Module):  # type: ignore[misc]
    """One layer under two re-entrant checkpoints: autograd accumulates twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_()
        for _ in range(2):
            x = checkpoint(self.body, x, use_reentrant=True)
        return self.head(x)


def each_refuses(members: list[AllReduceReplica], match: str) -> None:
    def act(rank: int) -> None:
        with pytest.raises(UsageError, match=match):
            one_step(members[rank])
        members[rank].abort()

    each(len(members), act)


def test_sparse_gradients_are_refused() -> None:
    members = [replica(build=Sparse) for _ in range(2)]
    with generation_of(members):
        each_refuses(members, "sparse=False")


def test_a_gradient_after_its_bucket_left_is_refused_and_possible_without_overlap() -> None:
    members = [replica(build=Repeated) for _ in range(2)]
    with generation_of(members):
        each_refuses(members, "overlap=False")
    options = AllReduce(128, 512, overlap=False)
    members = [replica(build=Repeated, options=options) for _ in range(2)]
    alone = replica(build=Repeated)
    with generation_of(members):
        each(2, lambda rank: one_step(members[rank], 4))
    with generation_of([alone]):
        one_step(alone, 4)
    torch.testing.assert_close(members[0].model.body.weight, alone.model.body.weight, rtol=1e-12, atol=1e-14)


def test_calls_in_the_wrong_order_are_bugs() -> None:
    member = replica()
    with pytest.raises(AssertionError, match="attach"):
        take(member, 1)
    with generation_of([member]):
        with pytest.raises(AssertionError, match="take first"):
            member.step()
        take(member, 2)
        with pytest.raises(AssertionError, match="still open"):
            take(member, 2)
        with pytest.raises(AssertionError, match="0 of 2"):
            member.step()
        with pytest.raises(AssertionError, match="between two steps"):
            member.snapshot()
