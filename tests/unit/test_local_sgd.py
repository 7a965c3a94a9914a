"""Local training with periodic averaging: the averages, what an abort leads back to, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from antdt.strategies.allreduce import AllReduce, GenerationClosed, ReplicasDiffer
from antdt.strategies.base import Here
from antdt.strategies.local import LocalSGD
from antdt.strategies.local.member import LocalMember
from antdt.strategies.once import Once
from antdt_schemas.errors import NotFinite, UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.helpers.allreduce import STRANDED_SOON, Net, each, generation_of, mean_loss, same, state_of, take

# Of one member in one period: the micro-batches of each step of its optimizer.
Period = list[list[int]]
EXCHANGE = AllReduce(128, 512, generation=STRANDED_SOON)
HERE = Here("127.0.0.1", lambda: "127.0.0.1")
UNEVEN: list[list[Period]] = [
    [[[3], [3]], [[2], [5]], [[1], [1]]],
    [[[2, 2, 1], [4]], [[3]], []],  # accumulation, fewer steps, nothing at all
    [[], [], []],
    [[], [], [[6], [2]]],
]


class Normed(Net):
    """With statistics, and a count."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(x))


def adam(params: Any) -> Any:
    return torch.optim.Adam(params, lr=0.01)


def local(
    every: int = 2,
    *,
    optimizer: Callable[[Any], Any] = adam,
    build: Callable[[], nn.Module] = Net,
    exchange: AllReduce = EXCHANGE,
) -> LocalMember:
    torch.manual_seed(1)
    model = build().to(torch.float64)
    member = LocalSGD(every, exchange).member(model, optimizer(model.parameters()), HERE)
    assert isinstance(member, LocalMember)
    return member


def data_of(rank: int, period: int, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1_000 * rank + 10 * period + step)
    x = torch.rand(size, 6, generator=generator, dtype=torch.float64)
    return x, torch.rand(size, 3, generator=generator, dtype=torch.float64)


def go(member: LocalMember, rank: int, number: int, period: Period) -> None:
    """A member's steps of its own."""
    for at, step in enumerate(period):
        x, y = data_of(rank, number, at, sum(step))
        parts = list(zip(x.split(step), y.split(step), strict=True)) if step else []
        for index, (a, b) in enumerate(parts, 1):
            member.backward(mean_loss(member, a, b), len(a), last=index == len(parts))


def samples_of(period: Period) -> int:
    return sum(map(sum, period))


def one_period(member: LocalMember, rank: int, number: int, period: Period) -> Any:
    take(member, samples_of(period))
    go(member, rank, number, period)
    return member.step()


class ByHand:
    """Plain PyTorch: a model and an optimizer for each member, averaged in plain sight."""

    def __init__(self, member: LocalMember, world: int, optimizer: Callable[[Any], Any]) -> None:
        self.models = [copy.deepcopy(member.model) for _ in range(world)]
        self.optimizers = [optimizer(model.parameters()) for model in self.models]

    def period(self, number: int, periods: list[Period]) -> None:
        before = copy.deepcopy(self.models[0].state_dict())
        for rank, (model, optimizer, period) in enumerate(zip(self.models, self.optimizers, periods, strict=True)):
            for at, step in enumerate(period):
                x, y = data_of(rank, number, at, sum(step))
                optimizer.zero_grad()
                for a, b in zip(x.split(step), y.split(step), strict=True):
                    (((model(a) - b) ** 2).sum(1).sum() / len(x)).backward()
                optimizer.step()
        weights = [samples_of(period) for period in periods]
        states = [model.state_dict() for model in self.models]
        for name, value in before.items():
            if not sum(weights):
                continue
            if value.is_floating_point():
                value = sum(w * state[name] for w, state in zip(weights, states, strict=True)) / sum(weights)
            else:
                value = max(state[name] for state in states)
            for state in states:
                state[name].copy_(value)


def check(rounds: list[list[Period]], optimizer: Callable[[Any], Any], build: Callable[[], nn.Module] = Net) -> None:
    world = len(rounds[0])
    members = [local(3, optimizer=optimizer, build=build) for _ in range(world)]
    expected = ByHand(members[0], world, optimizer)
    with generation_of(members):
        for number, periods in enumerate(rounds):
            expected.period(number, periods)
            results = each(world, lambda rank, n=number, p=periods: one_period(members[rank], rank, n, p[rank]))
            assert {result.total for result in results} == {sum(map(samples_of, periods))}
            states = [member.model.state_dict() for member in members]
            for name, value in expected.models[0].state_dict().items():
                torch.testing.assert_close(states[0][name], value, rtol=1e-12, atol=1e-12)
            assert all(same(states[0], state) for state in states[1:]), "not one model, bit by bit"
    applied = sum(bool(sum(map(samples_of, periods))) for periods in rounds)
    assert [(member.step_number, len(member.pending)) for member in members] == [(applied, applied)] * world
    for member, theirs in zip(members, expected.optimizers, strict=True):
        ours, found = member.optimizer.state_dict()["state"], theirs.state_dict()["state"]
        assert ours.keys() == found.keys()
        for key, values in found.items():
            torch.testing.assert_close(ours[key], values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("optimizer", [adam, lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)])
def test_an_average_is_that_of_models_which_were_trained_apart(world: int, optimizer: Any) -> None:
    check([periods[:world] for periods in UNEVEN], optimizer)


def test_statistics_are_averaged_with_the_model() -> None:
    check([[[[4], [4]], [[3], [2]], []], [[[2]], [[4]], [[5]]]], adam, Normed)


def test_averages_after_each_step_of_plain_sgd_are_steps_of_the_global_batch() -> None:
    def plain(params: Any) -> Any:
        return torch.optim.SGD(params, lr=0.1)

    members, alone = [local(1, optimizer=plain) for _ in range(3)], local(1, optimizer=plain)
    with generation_of(members), generation_of([alone]):
        for number in range(4):
            data = [data_of(rank, number, 0, size) for rank, size in enumerate((2, 5, 1))]
            each(3, lambda rank, n=number: one_period(members[rank], rank, n, [[(2, 5, 1)[rank]]]))
            x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
            take(alone, 8)
            alone.backward(mean_loss(alone, x, y), 8)
            alone.step()
    for ours, theirs in zip(members[0].model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


steps = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=2), max_size=3)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3).flatmap(lambda world: st.lists(st.lists(steps, min_size=world, max_size=world), max_size=3)))
def test_any_split_is_averaged_rightly(rounds: list[list[Period]]) -> None:
    check(rounds or [[[[1]]]], adam)


def full(members: list[LocalMember], number: int, period: Period | None = None) -> list[Any]:
    chosen = period or [[2], [3]]
    return each(len(members), lambda rank: one_period(members[rank], rank, number, chosen))


@pytest.mark.parametrize("where", ["before a step", "between two", "in accumulation", "before the average"])
def test_a_period_that_ends_in_its_midst_leads_back_to_the_last_average(where: str) -> None:
    members = [local(build=Normed) for _ in range(3)]
    with generation_of(members) as generations:
        full(members, 0)
        before, random = [state_of(member) for member in members], torch.get_rng_state()

        def act(rank: int) -> None:
            """The third member dies so far in; the others have made all of their own steps."""
            if rank == 2:
                take(members[2], 5)
                done = {"before a step": [], "between two": [[2]], "in accumulation": [[2]]}.get(where, [[2], [3]])
                go(members[2], 2, 1, done)
                if where == "in accumulation":
                    x, y = data_of(2, 1, 1, 2)
                    members[2].backward(mean_loss(members[2], x, y), 2, last=False)
                for generation in generations:
                    generation.close()
            else:
                with pytest.raises(GenerationClosed):
                    one_period(members[rank], rank, 1, [[2], [3]])
            members[rank].abort()

        each(3, act)
        assert not any(member.is_open for member in members)
    assert torch.equal(torch.get_rng_state(), random)
    for kept, member in zip(before, members, strict=True):
        assert same(kept, state_of(member)), "not the state of the last average"

    survivors, undisturbed = members[:2], [local(build=Normed) for _ in range(3)]
    with generation_of(undisturbed):
        full(undisturbed, 0)
    with generation_of(survivors, source=0), generation_of(undisturbed[:2]):
        full(survivors, 1)
        full(undisturbed[:2], 1)
    for ours, theirs in zip(survivors, undisturbed, strict=False):
        left, right = state_of(ours), state_of(theirs)
        assert all(torch.equal(left[key], right[key]) for key in left if key.startswith(("model.", "optimizer.")))


def test_who_is_told_in_its_own_steps_that_the_generation_is_over_stops_at_once() -> None:
    member = local(100)
    with generation_of([member]) as (generation,):
        take(member, 200)
        go(member, 0, 0, [[2]])
        generation.close()
        with pytest.raises(GenerationClosed):
            go(member, 0, 0, [[2]])
        member.abort()
    assert member.step_number == 0


def test_members_keep_their_moments_and_who_joins_takes_over_those_of_the_source() -> None:
    members = [local() for _ in range(3)]
    old, late = members[:2], members[2]
    with generation_of(old):
        full(old, 0)
        assert each(2, lambda rank: old[rank].adopt(0)) == [False, False], "they hold one model"
        left, right = (state_of(member)["optimizer.2.exp_avg"] for member in old)
        assert not torch.equal(left, right)
    with generation_of(members, source=1):
        assert all(same(state_of(members[1]), state_of(member)) for member in (members[0], late))
        full(members, 1)
    assert [member.step_number for member in members] == [2, 2, 2]


def test_a_file_brings_back_average_optimizer_and_rates() -> None:
    member, other = local(), local()
    with generation_of([member]):
        full([member], 0)
        member.rates.factor = 0.5
        data = member.snapshot()
        kept = state_of(member)
        full([member], 1)
    with generation_of([other]):
        other.restore(data)
        assert same(state_of(other) | {"progress": 0}, kept | {"progress": 0})
        assert (other.step_number, other.lineage, other.rates.factor) == (1, kept["progress"][1], 0.5)
        take(other, 2)
        go(other, 0, 1, [[2]])
        other.abort()  # what is restored is what an abort leads back to
        assert same(state_of(other) | {"progress": 0}, kept | {"progress": 0})
    stranger = local(optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    with (
        generation_of([stranger]),
        pytest.raises(UsageError, match=r"is LocalSGD\(Adam\), this one is LocalSGD\(SGD\)"),
    ):
        stranger.restore(data)


def test_an_average_that_is_not_finite_is_skipped_by_all_alike() -> None:
    members = [local() for _ in range(2)]
    with generation_of(members):
        full(members, 0)
        before = [state_of(member) for member in members]

        def act(rank: int) -> Any:
            take(members[rank], 4)
            go(members[rank], rank, 1, [[2]])
            x, y = data_of(rank, 1, 1, 2)
            members[rank].backward(mean_loss(members[rank], x, y) * (float("nan") if rank else 1.0), 2)
            return members[rank].step()

        assert [result.skipped for result in each(2, act)] == [("rank 1",)] * 2
        for kept, member in zip(before, members, strict=True):
            assert same(kept | {"progress": 0}, state_of(member) | {"progress": 0})
            assert member.step_number == 2
        full(members, 2)
    assert same(members[0].model.state_dict(), members[1].model.state_dict())


def test_where_no_average_may_be_skipped_it_ends_the_run() -> None:
    member = local(exchange=replace(EXCHANGE, on_nonfinite="raise"))
    with generation_of([member]):
        take(member, 2)
        x, y = data_of(0, 0, 0, 2)
        member.backward(mean_loss(member, x, y) * float("inf"), 2)
        with pytest.raises(NotFinite):
            member.step()
        member.abort()


def test_a_schedule_by_the_number_of_averages_is_one_for_all_whoever_has_no_sample() -> None:
    members = [local() for _ in range(2)]
    for member in members:

        def decay(*_: Any, member: LocalMember = member) -> None:
            member.optimizer.param_groups[0]["lr"] = 0.01 / (1 + member.step_number)

        member.optimizer.optimizer.register_step_pre_hook(decay)
    with generation_of(members):
        for number in range(4):
            parts = [[[2], [2]], [] if number == 1 else [[3], [1]]]
            each(2, lambda rank, n=number, p=parts: one_period(members[rank], rank, n, p[rank]))
    assert [member.step_number for member in members] == [4, 4]


def halve(optimizer: Any, *_: Any) -> None:
    optimizer.param_groups[0]["lr"] *= 0.5


def test_a_schedule_that_has_run_on_apart_is_found() -> None:
    members = [local() for _ in range(2)]
    for member in members:
        member.optimizer.optimizer.register_step_post_hook(halve)
    with generation_of(members):
        full(members, 0)
        each(2, lambda rank: one_period(members[rank], rank, 1, [[2]] if rank else [[2], [2]]))
        full(members, 2)
        with pytest.raises(ReplicasDiffer, match="lr"):
            full(members, 3)


def test_the_factor_of_a_plan_is_in_the_steps_of_the_next_period() -> None:
    member = local(optimizer=lambda params: torch.optim.SGD(params, lr=0.5))
    found: list[float] = []
    member.optimizer.optimizer.register_step_post_hook(lambda o, *_: found.append(o.param_groups[0]["lr"]))

    def halve(_: int) -> None:
        member.rates.factor = 0.5

    with generation_of([member]):
        take(member, 4, plan_seen=1)
        go(member, 0, 0, [[2], [2]])
        member.step(on_plan=halve)
        full([member], 1)
    assert member.optimizer.param_groups[0]["lr"] == 0.5
    assert member.plan == 1
    assert found == [0.5, 0.5, 0.5, 0.5], "hooks see the script's rate"
    before = {name: p.clone() for name, p in member.model.named_parameters()}
    with generation_of([member]):
        take(member, 2)
        x, y = data_of(0, 2, 0, 2)
        loss = mean_loss(member, x, y)
        (grad,) = torch.autograd.grad(loss, [member.model.head.weight], retain_graph=True)
        member.backward(loss, 2)
        member.step()
    torch.testing.assert_close(member.model.head.weight, before["head.weight"] - 0.25 * grad)


@pytest.fixture
def open_step() -> Iterator[LocalMember]:
    member = local()
    with generation_of([member]):
        take(member, 4)
        go(member, 0, 0, [[2]])
        yield member
        with suppress(GenerationClosed):
            member.abort()
    member.detach()


def test_nobody_else_steps_the_optimizer_or_clips(open_step: LocalMember) -> None:
    with pytest.raises(UsageError, match=r"agent.step\(loss\) steps the optimizer itself"):
        open_step.optimizer.optimizer.step()
    with pytest.raises(UsageError, match=r"antdt.Agent\(..., clip_grad_norm=1.0\)"):
        nn.utils.clip_grad_norm_(open_step.model.parameters(), 1.0)


def test_gradients_of_the_script_are_refused(open_step: LocalMember) -> None:
    x, y = data_of(0, 0, 1, 2)
    mean_loss(open_step, x, y).backward()
    with pytest.raises(UsageError, match=r"called loss.backward\(\)"):
        open_step.backward(mean_loss(open_step, x, y), 2)


def test_a_loss_of_another_model_is_refused(open_step: LocalMember) -> None:
    x, y = data_of(0, 0, 1, 2)
    with pytest.raises(UsageError, match="depends on no trainable parameter of the Agent's model"):
        open_step.backward(((Net().double()(x) - y) ** 2).sum(1).mean(), 2)


def test_clipping_in_a_hook_is_that_of_own_steps() -> None:
    member = local(optimizer=lambda params: torch.optim.SGD(params, lr=1.0))
    params = list(member.model.parameters())
    member.optimizer.optimizer.register_step_pre_hook(lambda *_: [nn.utils.clip_grad_norm_(params, 1e-3), None][1])
    with generation_of([member]):
        before = [param.clone() for param in params]
        full([member], 0)
    gone = torch.cat([(a - b).flatten() for a, b in zip(before, params, strict=True)]).norm()
    assert 0 < gone <= 2.001e-3, "two steps"


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_a_period_is_a_number_of_steps(every: Any) -> None:
    with pytest.raises(UsageError, match="whole number of steps, at least 1"):
        LocalSGD(every)


def test_another_period_is_another_strategy_of_the_job() -> None:
    assert (LocalSGD(8).name, LocalSGD(every=4).name) == ("local-sgd/every=8", "local-sgd/every=4")


# -- what the Agent owns, and a step in parts


def one_alone(**once: Any) -> LocalMember:
    member = local(2, optimizer=sgd)
    scheduler = once.pop("scheduler", None)
    member.accompany(Once(None if scheduler is None else scheduler(member.optimizer.optimizer), **once))
    return member


def sgd(params: Any) -> Any:
    return torch.optim.SGD(params, lr=0.1)


def test_own_steps_are_clipped_and_averages_are_not() -> None:
    member = one_alone(clip_grad_norm=0.01)
    by_hand = copy.deepcopy(member.model)
    optimizer = sgd(by_hand.parameters())
    with generation_of([member]):
        one_period(member, 0, 0, [[3], [2, 2]])
        member.abort()
    member.detach()
    for at, size in enumerate((3, 4)):
        x, y = data_of(0, 0, at, size)
        optimizer.zero_grad()
        (((by_hand(x) - y) ** 2).sum(1).sum() / size).backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.01)
        optimizer.step()
    torch.testing.assert_close(member.model.state_dict(), by_hand.state_dict(), rtol=1e-9, atol=1e-12)


def test_losses_have_weights_and_come_one_by_one() -> None:
    """Of one step: a batch that weighs nothing, one of two losses, and one that weighs more than it has samples."""
    member = one_alone()
    by_hand = copy.deepcopy(member.model)
    optimizer = sgd(by_hand.parameters())
    (a, b, c), (d, e, f) = zip(*(data_of(0, 0, step, 2) for step in range(3)), strict=True)
    with generation_of([member]):
        take(member, 6)
        member.backward(mean_loss(member, a, d), 2, last=False, weight=0.0)
        member.backward(mean_loss(member, b, e), 2, last=False, weight=3.0, through=False)
        member.backward(member.model(b).square().mean(), 2, last=False, weight=3.0, through=False)
        member.through(2, last=False)
        member.backward(mean_loss(member, c, f), 2, weight=5.0)
        member.step()
        member.abort()
    member.detach()

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ((by_hand(x) - y) ** 2).sum(1).mean()

    optimizer.zero_grad()
    ((3 * (loss(b, e) + by_hand(b).square().mean()) + 5 * loss(c, f)) / 8).backward()
    optimizer.step()
    torch.testing.assert_close(member.model.state_dict(), by_hand.state_dict(), rtol=1e-9, atol=1e-12)


def test_a_scheduler_is_stepped_with_each_average_and_goes_back_with_it() -> None:
    member = one_alone(scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5))
    with generation_of([member]):
        for number in range(2):
            one_period(member, 0, number, [[2], [2]])
        assert member.once.schedulers[0].last_epoch == 2
        saved = member.snapshot()
        one_period(member, 0, 2, [[2]])
        member.abort()
    member.restore(saved)
    assert member.once.schedulers[0].last_epoch == 2
    assert member.optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    member.detach()


@pytest.mark.parametrize(
    ("act", "call"),
    [
        (lambda member: member.skip(2, "no"), "agent.skip"),
        (lambda member: member.reduce(), "agent.reduce"),
        (lambda member: member.update([member.optimizer]), r"agent.apply\(optimizer\)"),
        (lambda member: member.exchange(torch.ones(()), inside=True), "waits for other workers"),
    ],
)
def test_what_is_for_steps_that_all_make_together_is_refused(act: Callable[[LocalMember], Any], call: str) -> None:
    member = one_alone()
    with generation_of([member]):
        take(member, 4)
        go(member, 0, 0, [[2]])
        with pytest.raises(UsageError, match=f"{call}.*with LocalSGD each makes its own"):
            act(member)
        member.abort()
    member.detach()


def test_a_scaler_is_refused() -> None:
    with pytest.raises(UsageError, match="LocalSGD takes no scaler"):
        one_alone(scaler=torch.amp.GradScaler("cpu"))


def test_what_is_carried_from_step_to_step_is_refused_and_a_teacher_that_stays_is_not() -> None:
    """Each member would have a teacher of its own, and one that comes later another one."""

    def train(follows: bool) -> None:
        members = [local(1) for _ in range(2)]

        def run(rank: int) -> None:
            member = members[rank]
            teacher = copy.deepcopy(member.model).requires_grad_(False)
            for number in range(6):
                take(member, 4)
                x, y = data_of(rank, number, 0, 4)
                member.watch((x, y), 4)
                loss = (member.model(x) - teacher(x)).square().sum(1).mean() + mean_loss(member, x, y)
                member.watcher.leave()
                member.backward(loss, 4)
                member.step()
                member.unwatch(whole=True)
                if follows:
                    for mine, theirs in zip(teacher.parameters(), member.model.parameters(), strict=True):
                        mine.data.lerp_(theirs.data, 0.1)

        with generation_of(members):
            each(2, run)

    train(follows=False)
    with pytest.raises(UsageError, match="carried from batch to batch"):
        train(follows=True)
