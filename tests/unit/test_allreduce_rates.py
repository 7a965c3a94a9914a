"""Learning rates times the factor of a plan: exact, equal everywhere, and nothing that a scheduler ever sees."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from antdt.strategies.allreduce import AllReduce, AllReduceReplica, ReplicasDiffer
from antdt.strategies.allreduce.rates import LearningRates
from antdt.strategies.allreduce.state import parse
from antdt.strategies.once import Once
from antdt_schemas.errors import UsageError
from torch.optim import SGD, AdamW, lr_scheduler

from tests.helpers.allreduce import each, generation_of, mean_loss, replica, take

STEPS, CHANGED_AT = 6, 3  # the factor is that of step 3 and all behind it
FACTOR = 0.25


def two_groups(params: Any, kind: Any = SGD) -> Any:
    first, *rest = params
    return kind([{"params": [first], "lr": 0.4}, {"params": rest, "lr": 0.1}])


# A scheduler is made for an optimizer, or a rate is set by hand; what it gives may follow from the present rate
# (exponential, cosine, chained warm-up) or from the step alone (lambda, by hand).
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.5),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 5, eta_min=0.01),
    "warm-up": lambda optimizer: lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, [0.4, 0.1], total_steps=10, cycle_momentum=False),
}


class Watched:
    """The rates that the optimizer itself stepped by, whatever is seen outside."""

    def __init__(self, member: AllReduceReplica) -> None:
        self.stepped_by: list[list[float]] = []
        kind = type(member.optimizer)

        def step(optimizer: Any, closure: Any = None) -> Any:
            self.stepped_by.append([float(group["lr"]) for group in optimizer.param_groups])
            return kind.step.__wrapped__(optimizer, closure)

        # As a class of the user's own: torch hooks what it finds when an optimizer is made.
        member.optimizer.__class__ = type("Watched", (kind,), {"step": torch.optim.Optimizer.profile_hook_step(step)})


def learn(
    member: AllReduceReplica, plan: int = 0, on_plan: Callable[[int], None] | None = None, samples: int = 2
) -> None:
    take(member, samples, plan_seen=plan)
    if samples:
        generator = torch.Generator().manual_seed(member.step_number)
        x = torch.rand(samples, 6, generator=generator, dtype=torch.float64)
        member.backward(mean_loss(member, x, x[:, :3]), samples)
    member.step(on_plan)


def factor_of(member: AllReduceReplica, factor: float = FACTOR) -> Callable[[int], None]:
    def on_plan(_: int) -> None:
        member.rates.factor = factor

    return on_plan


def by_hand(optimizer: Any, *_: Any) -> None:
    """A schedule that multiplies the rates at hand."""
    for group in optimizer.param_groups:
        group["lr"] *= 0.5


def trained(schedule: Callable[[Any], Any], where: str, factor: float) -> tuple[list[list[float]], list[list[float]]]:
    """The rates that were stepped by, and those seen in the loop before each step."""
    member = replica(optimizer=two_groups)
    watched, seen = Watched(member), []
    if where == "post-hook":
        member.optimizer.register_step_post_hook(by_hand)
    else:
        member.accompany(Once(schedule(member.optimizer)))
    with generation_of([member]):
        for step in range(1, STEPS + 1):
            seen.append([group["lr"] for group in member.optimizer.param_groups])
            learn(member, plan=int(step >= CHANGED_AT), on_plan=factor_of(member, factor))
    return watched.stepped_by, seen


@pytest.mark.parametrize(("name", "where"), [*((name, "agent") for name in SCHEDULERS), ("exponential", "post-hook")])
def test_no_scheduler_sees_the_factor_and_every_step_has_it(name: str, where: str) -> None:
    plain, seen_plain = trained(SCHEDULERS[name], where, 1.0)
    scaled, seen = trained(SCHEDULERS[name], where, FACTOR)
    assert seen == seen_plain == plain, "outside of the step the rates are the script's"
    factors = [1.0] * (CHANGED_AT - 1) + [FACTOR] * (STEPS - CHANGED_AT + 1)
    assert scaled == [[rate * factor for rate in rates] for rates, factor in zip(plain, factors, strict=True)]
    assert len({tuple(rates) for rates in plain}) > 1, "the schedule moves"


def test_a_rate_that_a_hook_of_the_script_sets_before_each_step_has_the_factor_too() -> None:
    member = replica(optimizer=two_groups)
    watched = Watched(member)

    def by_hand(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 1.0 / (1 + member.step_number)

    member.optimizer.register_step_pre_hook(by_hand)
    member.rates.factor = FACTOR
    with generation_of([member]):
        for _ in range(3):
            learn(member)
    assert watched.stepped_by == [[FACTOR / at] * 2 for at in (1, 2, 3)]


@pytest.mark.parametrize("kind", [SGD, AdamW])
@pytest.mark.parametrize("tensor", [False, True])
def test_the_model_is_that_of_an_optimizer_with_the_product_of_both(kind: Any, tensor: bool) -> None:
    def rate(value: float) -> Any:
        return torch.tensor(value, dtype=torch.float64) if tensor else value

    member = replica(optimizer=lambda params: kind(params, lr=rate(0.1), foreach=False))
    twin = replica(optimizer=lambda params: kind(params, lr=rate(0.1) * FACTOR, foreach=False))
    member.rates.factor = FACTOR
    for one in (member, twin):
        with generation_of([one]):
            for _ in range(3):
                learn(one)
    assert torch.equal(member.model.head.weight, twin.model.head.weight)
    assert float(member.optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)
    assert not member.optimizer._optimizer_step_post_hooks, "nothing stays on the script's optimizer"


@pytest.mark.parametrize("compositions", ["inline", "gather"])
def test_all_members_use_it_from_the_same_step_on_also_who_has_no_sample(compositions: str) -> None:
    options = AllReduce(128, 512, compositions=compositions, compare_every=1)
    members = [replica(optimizer=two_groups, options=options) for _ in range(3)]
    watched = [Watched(member) for member in members]
    read_at = [2, 4, 3]

    def loop(rank: int) -> None:
        member = members[rank]
        for step in range(1, 7):
            learn(member, int(step >= read_at[rank]), factor_of(member), samples=0 if rank == step % 3 else 2)

    with generation_of(members):
        each(3, loop)
    expected = [[0.4, 0.1]] * 3 + [[0.4 * FACTOR, 0.1 * FACTOR]] * 3
    assert [one.stepped_by for one in watched] == [expected] * 3
    assert [made.plan for made in members[0].pending] == [0, 0, 0, 1, 1, 1]
    weights = [member.model.head.weight for member in members]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def test_a_member_with_another_factor_is_named() -> None:
    members = [replica() for _ in range(2)]
    members[1].rates.factor = FACTOR
    with generation_of(members):
        each(2, lambda rank: learn(members[rank]))

        def raises(rank: int) -> None:
            with pytest.raises(ReplicasDiffer, match=r"the plan's factor of learning rates.* 1\.0 .*found 0\.25"):
                learn(members[rank])
            members[rank].abort()

        each(2, raises)


def test_the_factor_comes_back_with_the_model() -> None:
    """From a file, when a worker starts again or is rolled back, and from another member, when it is new."""
    member, beginning = replica(), b""
    with generation_of([member]):
        beginning = member.snapshot()
        learn(member, 1, factor_of(member))
        file = member.snapshot()
        learn(member, 2, factor_of(member, 3.0))
        assert parse(file).progress.learning_rate_factor == FACTOR
        assert parse(file).optimizer["param_groups"][0]["lr"] == 0.1, "the script's"
        again = replica(seed=2)
        again.restore(file)
        assert (again.plan, again.rates.factor) == (1, FACTOR)
        member.restore(file)
        assert (member.plan, member.rates.factor) == (1, FACTOR)
    newcomer = replica(seed=3)
    with generation_of([member, newcomer], source=0):
        assert (newcomer.plan, newcomer.rates.factor) == (1, FACTOR)
    member.restore(beginning)
    assert (member.plan, member.rates.factor) == (0, 1.0)


def test_a_file_of_before_has_no_factor() -> None:
    member = replica()
    with generation_of([member]):
        learn(member)
        whole = torch.load(io.BytesIO(member.snapshot()), weights_only=True)
    del whole["progress"]["learning_rate_factor"]
    out = io.BytesIO()
    torch.save(whole, out)
    assert parse(out.getvalue()).progress.learning_rate_factor == 1.0


# -- what cannot be multiplied


class Twice(SGD):
    """Calls its parent's step, so torch calls the hooks for both."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_an_optimizer_that_calls_its_parents_step_is_scaled_once() -> None:
    param = torch.nn.Parameter(torch.ones(1))
    SGD([param], lr=1.0)  # torch hooks the parent's step when the first one is made
    rates = LearningRates(Twice([param], lr=1.0))
    rates.factor, param.grad = 0.5, torch.ones(1)
    rates.step()
    assert param.item() == 0.5
    assert rates.optimizer.param_groups[0]["lr"] == 1.0


class Foreign:
    """No optimizer of torch, but one that does as they do."""

    def __init__(self, group: dict[str, Any], sets: float | None = None) -> None:
        self.param_groups, self.sets, self.stepped_by = [group], sets, list[Any]()

    def step(self) -> None:
        (group,) = self.param_groups
        self.stepped_by.append(group.get("lr"))
        if self.sets is not None:
            group["lr"] = self.sets


def test_an_optimizer_that_is_none_of_torchs_is_scaled_around_its_step() -> None:
    rates = LearningRates(Foreign({"lr": 1.0}))
    rates.factor = 0.5
    rates.step()
    assert rates.optimizer.stepped_by == [0.5]
    assert rates.optimizer.param_groups == [{"lr": 1.0}]


class Around(torch.optim.Optimizer):
    """As wrappers are often written: the parent's __init__ is not called, groups are those of the optimizer inside."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


def test_an_optimizer_around_another_is_scaled_and_a_scheduler_inside_of_it_is_refused_instead_of_lost() -> None:
    param = torch.nn.Parameter(torch.ones(1))
    inner = SGD([param], lr=1.0)
    rates = LearningRates(Around(inner))
    rates.factor, param.grad = 0.5, torch.ones(1)
    rates.step()
    assert param.item() == 0.5
    scheduler = lr_scheduler.ExponentialLR(inner, 0.5)
    inner.register_step_post_hook(lambda *_: scheduler.step())
    with pytest.raises(UsageError, match="Around sets the learning rate of parameter group 0 in its own step"):
        rates.step()


def test_rates_that_cannot_be_multiplied_are_said() -> None:
    rates = LearningRates(Foreign({"scale": 1.0}))
    rates.step()
    rates.factor = 0.5
    with pytest.raises(UsageError, match="parameter group 0 of Foreign has none"):
        rates.step()
    rates = LearningRates(Foreign({"lr": 1.0}, sets=0.9))
    rates.factor = 0.5
    with pytest.raises(UsageError, match="Foreign sets the learning rate of parameter group 0 in its own step"):
        rates.step()


def test_a_step_that_fails_leaves_the_rates_as_they_were() -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("in a hook")

    optimizer = SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    optimizer.register_step_post_hook(fails)
    rates = LearningRates(optimizer)
    rates.factor = 0.5
    with pytest.raises(RuntimeError, match="in a hook"):
        rates.step()
    assert optimizer.param_groups[0]["lr"] == 1.0
