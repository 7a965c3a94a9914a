"""A gradient that is not finite: skipped by all alike, its author named, and no state of it kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from antdt.strategies.allreduce import AllReduce, AllReduceReplica
from antdt.strategies.allreduce.buckets import SMALL_SIZE, LocalGradients
from antdt.strategies.allreduce.state import parse
from antdt_schemas.errors import NotFinite, UsageError
from antdt_schemas.lineage import next_lineage

from tests.helpers.allreduce import each, generation_of, mean_loss, replica, same, state_of, take
from tests.unit.test_allreduce_gradient import Normed

SIZES = [(3, torch.float32), (SMALL_SIZE, torch.float32), (5, torch.float64), (7, torch.float32), (1, torch.float32)]
SIZES += [(2, torch.bfloat16), (4, torch.float32)]


def learn(member: AllReduceReplica, factor: float = 1.0, samples: int = 2) -> Any:
    """factor: what the loss is multiplied by."""
    take(member, samples)
    if samples:
        generator = torch.Generator().manual_seed(member.step_number)
        x = torch.rand(samples, 6, generator=generator, dtype=torch.float64).to(member.model.head.weight.dtype)
        member.backward(mean_loss(member, x, x[:, :3]) * factor, samples)
    return member.step()


def model_of(member: AllReduceReplica) -> dict[str, Any]:
    return {n: v for n, v in state_of(member).items() if n.startswith(("model.", "optimizer."))}


@pytest.mark.parametrize("compositions", ["inline", "gather"])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_the_step_counts_and_nothing_else_changes(factor: float, overlap: bool, compositions: Any) -> None:
    options = AllReduce(128, 512, compositions=compositions, overlap=overlap)
    members = [replica(build=Normed, optimizer=torch.optim.AdamW, options=options) for _ in range(3)]
    called: list[int] = []
    for member in members:
        member.optimizer.register_step_post_hook(lambda *_, m=member: called.append(m.step_number))
    with generation_of(members):
        each(3, lambda rank: learn(members[rank]))
        before, lineage = [model_of(member) for member in members], members[0].lineage
        results = each(3, lambda rank: learn(members[rank], factor if rank == 1 else 1.0, 2 * (rank < 2)))
        assert [(r.applied, r.total, r.skipped) for r in results] == [(True, 4, ("rank 1",))] * 3
        assert all(same(kept, model_of(member)) for kept, member in zip(before, members, strict=True))
        assert [m.model.calls[0].item() for m in members] == [1, 1, 1], "buffers that no state holds, too"
        flat = [v for row in results[0].rows for r in row.ranges for v in (r.lease, r.epoch, r.start, r.length)]
        assert [m.lineage for m in members] == [next_lineage(lineage, 2, flat)] * 3, "of the composition only"
        assert [m.pending[-1].skipped for m in members] == [("rank 1",)] * 3
        assert members[0].pending[0].skipped is None
        after = each(3, lambda rank: learn(members[rank]))
    assert [r.skipped for r in after] == [None] * 3
    assert [m.step_number for m in members] == [3] * 3
    assert sorted(called) == [0, 0, 0, 2, 2, 2], "no hook of the optimizer"
    assert same(model_of(members[0]), model_of(members[2]))
    assert parse(members[0].snapshot()).progress.pending == tuple(members[2].pending)


def test_a_skipped_step_leaves_no_trace_in_what_is_learned_later() -> None:
    members, others = [replica(build=Normed) for _ in range(2)], [replica(build=Normed) for _ in range(2)]
    with generation_of(members):
        each(2, lambda rank: learn(members[rank], float("nan") if rank == 0 else 1.0))
        for member in members:
            member.step_number -= 1  # the same samples for both
        each(2, lambda rank: learn(members[rank]))
    with generation_of(others):
        each(2, lambda rank: learn(others[rank]))
    assert same(model_of(members[0]), model_of(others[0]))


def test_an_overflow_that_no_worker_made_alone_has_no_author() -> None:
    members = [replica(torch.float16, options=AllReduce(128, 512)) for _ in range(2)]

    def spoil(member: AllReduceReplica) -> None:
        for param in member.model.head.parameters():
            param.register_hook(lambda grad: torch.full_like(grad, 60_000.0))

    with generation_of(members):
        for member in members:
            spoil(member)
        results = each(2, lambda rank: learn(members[rank]))
    assert [r.skipped for r in results] == [()] * 2
    assert all(torch.isfinite(param).all() for param in members[0].model.parameters())


def test_large_gradients_whose_sum_overflows_are_finite() -> None:
    members = [replica(torch.float32) for _ in range(2)]
    with generation_of(members):
        for member in members:
            for group in member.optimizer.param_groups:
                group["lr"] = 0.0
            member.model.body.weight.register_hook(lambda grad: torch.full_like(grad, 5e37))
        results = each(2, lambda rank: learn(members[rank]))
    assert [r.skipped for r in results] == [None, None]


@pytest.mark.parametrize("bad", range(6))
def test_a_worker_alone_finds_it_in_whichever_gradient_it_is(bad: int) -> None:
    """Small ones and large ones, of two types, one of them sparse and one that got none."""
    params = [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for size, dtype in SIZES]
    gradients = LocalGradients([params])
    for param in params[:-1]:
        param.grad = torch.ones_like(param)
    params[3].grad = torch.ones_like(params[3]).to_sparse()
    assert gradients.is_finite()
    grad = params[bad].grad
    assert grad is not None
    (grad._values() if grad.is_sparse else grad)[-1] = float("-inf")
    assert not gradients.is_finite()


@pytest.mark.parametrize("micro", [1, 2])
def test_a_worker_alone_skips_as_well(micro: int) -> None:
    member = replica(build=Normed)
    with generation_of([member]):
        before = model_of(member)
        take(member, 4)
        for number in range(micro):
            x = torch.rand(4 // micro, 6, dtype=torch.float64)
            loss = mean_loss(member, x, x[:, :3]) * (float("nan") if number == 0 else 1.0)
            member.backward(loss, 4 // micro, last=number == micro - 1)
        assert member.step().skipped == ("rank 0",)
        assert same(before, model_of(member))
        assert learn(member).skipped is None


@pytest.mark.parametrize("world", [1, 2])
def test_all_raise_where_that_was_asked_for(world: int) -> None:
    members = [replica(options=AllReduce(128, 512, on_nonfinite="raise")) for _ in range(world)]

    def act(rank: int) -> None:
        with pytest.raises(NotFinite, match=rf"gradient of step 1 is not finite \(by rank {world - 1}\)"):
            learn(members[rank], float("nan") if rank == world - 1 else 1.0)

    with generation_of(members):
        each(world, act)
        each(world, lambda rank: members[rank].abort())
    assert [m.step_number for m in members] == [0] * world


def test_steps_that_are_skipped_in_a_row_are_bounded_and_the_count_travels_with_the_model() -> None:
    options = AllReduce(128, 512, skips_max=3)
    members = [replica(options=options) for _ in range(2)]
    with generation_of(members):
        each(2, lambda rank: learn(members[rank], float("nan")))
        each(2, lambda rank: learn(members[rank]))
        for _ in range(2):
            each(2, lambda rank: learn(members[rank], float("nan")))
    members = [members[0], replica(seed=2, options=options)]

    def act(rank: int) -> None:
        with pytest.raises(NotFinite, match=r"3 steps in a row up to step 5 .* \(the last one by rank 1\)"):
            learn(members[rank], float("nan") if rank else 1.0)

    with generation_of(members, source=0):
        each(2, act)
        each(2, lambda rank: members[rank].abort())


def test_a_model_that_is_not_finite_is_named_and_never_kept() -> None:
    members = [replica() for _ in range(2)]
    with generation_of(members):
        each(2, lambda rank: learn(members[rank]))
        for member in members:  # as a step with a finite gradient and an infinite learning rate does
            with torch.no_grad():
                member.model.side.bias[1] = float("inf")

        def act(rank: int) -> None:
            with pytest.raises(NotFinite, match=r"After step 1 parameter side\.bias .* not finite.*rollback"):
                members[rank].verify()
            with pytest.raises(NotFinite, match=r"side\.bias"):
                learn(members[rank], float("nan"))
            members[rank].abort()

        each(2, act)


def test_buffers_that_are_infinite_by_design_are_no_fault_but_statistics_are() -> None:
    member = replica(build=Normed)  # has a mask with minus infinity
    with generation_of([member]):
        learn(member)
        member.verify()
        member.optimizer.register_step_post_hook(lambda *_: member.model.norm.running_mean.fill_(float("nan")))
        learn(member)
        with pytest.raises(NotFinite, match=r"buffer norm\.running_mean"):
            member.verify()


@pytest.mark.parametrize("wrong", [{"on_nonfinite": "ignore"}, {"skips_max": 0}, {"compare_every": -1}])
def test_options_that_mean_nothing_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="AllReduce"):
        AllReduce(**wrong)
