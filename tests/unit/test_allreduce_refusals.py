"""What would be silently wrong around a step is refused; what is right stays possible."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from antdt.strategies.allreduce import AllReduceReplica
from antdt.strategies.habits import guard
from antdt.strategies.once import Once, weight_of
from antdt_schemas.errors import UsageError
from torch import nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.optim import lr_scheduler

from tests.helpers.allreduce import Net, each, generation_of, mean_loss, replica, take

WORLDS = pytest.mark.parametrize("world", [1, 2])


def loss_of(member: AllReduceReplica, samples: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(samples, 6, generator=generator, dtype=torch.float64)
    return mean_loss(member, x, x[:, :3])


def learn(member: AllReduceReplica, micro: int = 1, between: Callable[[], Any] = lambda: None) -> None:
    """A step of so many micro-batches; `between` is called before the backward of the last one."""
    take(member, 2 * micro)
    for number in range(micro):
        loss = loss_of(member, seed=number)
        if number == micro - 1:
            between()
        member.backward(loss, 2, last=number == micro - 1)
    member.step()


@contextmanager
def training(world: int = 1) -> Iterator[list[AllReduceReplica]]:
    """Members between two steps; hooks are off the model afterwards."""
    members = [replica() for _ in range(world)]
    with generation_of(members):
        each(world, lambda rank: learn(members[rank]))
        yield members
        each(world, lambda rank: members[rank].abort())
    for member in members:
        member.detach()


def each_refuses(members: list[AllReduceReplica], act: Callable[[AllReduceReplica], Any], match: str) -> None:
    def one(rank: int) -> None:
        with pytest.raises(UsageError, match=match):
            act(members[rank])

    each(len(members), one)


# -- calls around a step


def test_the_optimizer_is_stepped_by_the_agent_only_and_by_anybody_afterwards() -> None:
    with training() as (member,):
        with pytest.raises(UsageError, match="Leave the call out"):
            member.optimizer.step()
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(loss_of(member)).backward()
        with pytest.raises(UsageError, match=r"GradScaler\.unscale_.*scaler=scaler"):
            scaler.step(member.optimizer)
    member.optimizer.zero_grad()
    loss_of(member).backward()
    clip_grad_norm_(member.model.parameters(), 1.0)
    member.optimizer.step()


def test_another_optimizer_on_the_same_parameters_is_refused_and_one_on_others_is_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_open", [])  # other tests of this process may have left members, which warn too
    with training() as (member,):
        other = torch.optim.SGD(member.model.head.parameters())
        with pytest.raises(UsageError, match="give the Agent all optimizers"):
            other.step()
        member.optimizer.register_step_post_hook(lambda *_: other.step())  # there it has everybody's gradients
        learn(member)
        stranger = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
        with caplog.at_level(logging.WARNING, "antdt"):
            stranger.step()
            stranger.step()
    assert [record.message.split(" ", 2)[1] for record in caplog.records] == ["steps"], "once"


def as_if_nobody_trained() -> None:
    """Members of other tests watch as long as they live, and torch stays watched until the next one has ended."""
    for left in guard._guards():
        left.close()
    last = guard.Guard(nn.Linear(1, 1), None)
    last.open()
    last.close()


def test_a_member_that_the_collector_ends_while_another_one_opens_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The iteration of a loop that an error has left is part of a cycle: it is closed wherever a thread allocates."""
    as_if_nobody_trained()
    left, opens = guard.Guard(nn.Linear(1, 1), []), guard.Guard(nn.Linear(1, 1), [])
    schedulers = guard._schedulers

    def collected(kind: Any) -> Iterator[Any]:
        left.close()
        return schedulers(kind)

    monkeypatch.setattr(guard, "_schedulers", collected)
    thread = threading.Thread(target=opens.open, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits for a lock that it holds itself"
    assert guard._guards() == [opens]
    opens.close()


@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_"])
def test_clipping_belongs_into_a_hook(name: str) -> None:
    as_if_nobody_trained()
    before = getattr(torch.nn.utils, name)
    with training() as (member,):

        def clip(model: nn.Module) -> None:
            getattr(torch.nn.utils, name)(model.parameters(), 1e-3)

        with pytest.raises(UsageError, match="clip_grad_norm="):
            clip(member.model)
        other = nn.Linear(2, 2)
        other(torch.ones(1, 2)).sum().backward()
        clip(other)
        seen: list[Any] = []
        member.optimizer.register_step_pre_hook(lambda *_: seen.append(clip(member.model)))
        learn(member)
        assert len(seen) == 1
    assert getattr(torch.nn.utils, name) is before, "torch is as it was"
    assert not hasattr(torch.amp.GradScaler.scale, "__wrapped__")


def test_clipping_by_a_function_that_was_imported_before_is_noticed() -> None:
    with training() as (member,), pytest.raises(UsageError, match="clip_grad_norm="):
        clip_grad_norm_(member.model.parameters(), 1.0)


@WORLDS
def test_a_backward_of_the_script_is_refused_where_its_gradients_stay(world: int) -> None:
    with training(world) as members:

        def two_losses(member: AllReduceReplica) -> None:
            take(member, 2)
            loss_of(member, seed=5).backward()
            member.backward(loss_of(member), 2)

        each_refuses(members, two_losses, r"agent\.step\(loss_a \+ loss_b\)")


@WORLDS
def test_a_backward_of_the_script_that_is_cleared_changes_nothing(world: int) -> None:
    """As the fast gradient sign method does for its input."""
    plain = [replica() for _ in range(world)]
    with generation_of(plain):
        for _ in range(2):
            each(world, lambda rank: learn(plain[rank]))
    with training(world) as members:

        def attack(member: AllReduceReplica) -> None:
            x = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)
            mean_loss(member, x, x[:, :3].detach()).backward()
            assert x.grad is not None
            member.optimizer.zero_grad()

        each(world, lambda rank: learn(members[rank], between=lambda: attack(members[rank])))
        for member, other in zip(members, plain, strict=True):
            torch.testing.assert_close(member.model.state_dict(), other.model.state_dict(), rtol=0, atol=0)


@WORLDS
@pytest.mark.parametrize("of", ["optimizer", "model"])
def test_zero_grad_in_the_loop_does_not_lose_the_micro_batches_before(world: int, of: str) -> None:
    left, right = ([replica() for _ in range(world)] for _ in range(2))
    with generation_of(left):
        each(world, lambda rank: learn(left[rank], micro=3))
    with generation_of(right):
        each(world, lambda rank: learn(right[rank], 3, lambda: getattr(right[rank], of).zero_grad()))
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one.model.state_dict(), other.model.state_dict(), rtol=0, atol=0)


@WORLDS
@pytest.mark.parametrize("how", ["zeros", "scaled", "backward"])
def test_gradients_that_change_between_micro_batches_are_refused(world: int, how: str) -> None:
    with training(world) as members:

        def change(member: AllReduceReplica) -> None:
            if how == "zeros":
                member.optimizer.zero_grad(set_to_none=False)
            elif how == "scaled":
                member.model.head.weight.grad.mul_(2)
            else:
                loss_of(member).backward()

        each_refuses(members, lambda m: learn(m, 2, lambda: change(m)), "between two micro-batches")


# -- losses


SCALER = torch.amp.GradScaler("cpu", init_scale=512.0)
ONES = torch.ones(2, 6, dtype=torch.float64)


def sum_of_two(member: AllReduceReplica) -> torch.Tensor:
    x = torch.rand(2, 6, dtype=torch.float64)
    out = member.model(x)
    return functional.mse_loss(out, x[:, :3], reduction="sum") + 0.1 * (out**2).mean()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda m: loss_of(m).item(), r"leave out \.item\(\)"),
        (lambda m: loss_of(m).detach(), r"loss \* 0\.0"),
        (lambda m: m.model(torch.rand(2, 6, dtype=torch.float64)), r"not \(2, 3\).*loss\.mean\(\)"),
        (sum_of_two, "reduction='mean'"),
        (lambda m: SCALER.scale(loss_of(m)), "GradScaler"),
        (lambda m: SCALER.scale(loss_of(m)) / 4, "GradScaler"),
    ],
    ids=["number", "detached", "vector", "sum", "scaled", "scaled and divided"],
)
def test_losses_that_are_no_mean_are_refused(make: Any, match: str) -> None:
    with training() as (member,):
        take(member, 2)
        with pytest.raises(UsageError, match=match):
            member.backward(make(member), 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda m: loss_of(m).reshape(1),
        lambda m: loss_of(m) * 65536.0,
        lambda m: torch.amp.GradScaler("cpu", enabled=False).scale(loss_of(m)),
        lambda m: functional.mse_loss(m.model(ONES), ONES[:, :3], reduction="sum") / 2,
    ],
    ids=["one element", "a factor", "a scaler that is off", "a sum that was divided"],
)
def test_losses_that_are_means_are_taken(make: Any) -> None:
    with training() as (member,):
        take(member, 2)
        member.backward(make(member), 2)
        assert member.step().applied


@WORLDS
def test_a_loss_of_another_model_is_refused(world: int) -> None:
    with training(world) as members:
        others = [copy.deepcopy(member.model) for member in members]

        def act(member: AllReduceReplica) -> None:
            take(member, 2)
            other = others[members.index(member)]
            member.backward(functional.mse_loss(other(ONES), ONES[:, :3]), 2)

        each_refuses(members, act, "the very model")


# -- models and data


class DTensor(nn.Parameter):
    """As torch's own, by name: that one takes a process group."""


def model_with(module: nn.Module) -> nn.Module:
    return nn.Sequential(Net(), module)


def spread() -> nn.Module:
    model = nn.Linear(2, 2)
    model.weight = DTensor(torch.zeros(2, 2))
    return model


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (lambda: nn.SyncBatchNorm(3), "use BatchNorm"),
        (lambda: nn.Embedding(4, 3, max_norm=1.0), "max_norm=1.* no other worker does"),
        (lambda: nn.EmbeddingBag(4, 3, max_norm=0.5), "leave max_norm out"),
        (lambda: nn.LazyLinear(3), "once on a batch"),
        (spread, "plain module"),
        (lambda: nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel), "plain"),
    ],
    ids=["SyncBatchNorm", "Embedding", "EmbeddingBag", "lazy", "DTensor", "DDP"],
)
def test_models_that_cannot_be_reduced_are_refused(module: Any, match: str) -> None:
    built = module()
    if not hasattr(built, "_modules"):
        nn.Module.__init__(built)
    with pytest.raises(UsageError, match=match):
        AllReduceReplica(model_with(built), torch.optim.SGD(Net().parameters(), 0.1))


@WORLDS
@pytest.mark.parametrize("what", ["added", "replaced"])
def test_parameters_that_come_later_are_refused(world: int, what: str) -> None:
    with training(world) as members:
        for member in members:
            if what == "added":
                member.model.late = nn.Linear(2, 2)
            else:
                member.model.never.weight = nn.Parameter(torch.zeros(5, 5))
        each_refuses(members, learn, "make the model whole first")


# -- what the Agent owns


def owned(**once: Any) -> AllReduceReplica:
    member = replica(torch.float32)
    if "scheduler" in once:
        once["scheduler"] = once["scheduler"](member.optimizer)
    member.accompany(Once(**once))
    return member


def loss_in_float(member: AllReduceReplica) -> torch.Tensor:
    x = torch.rand(2, 6)
    return mean_loss(member, x, x[:, :3])


def test_a_scheduler_is_stepped_by_the_agent_alone() -> None:
    """The script's own call is refused, whether the Agent has the scheduler or not; making one is no call."""
    member = owned(scheduler=lambda optimizer: lr_scheduler.StepLR(optimizer, 1, 0.5))
    (scheduler,) = member.once.schedulers
    with generation_of([member]):
        for other in (scheduler, lr_scheduler.CosineAnnealingWarmRestarts(member.optimizer, 3)):
            with pytest.raises(UsageError, match=r"\.step\(\) was called by the script.*scheduler=scheduler"):
                other.step()
        stranger = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
        lr_scheduler.StepLR(stranger, 1).step()
        member.abort()
    member.detach()
    scheduler.step()


@pytest.mark.parametrize("hook", ["register_step_pre_hook", "register_step_post_hook"])
def test_a_scheduler_in_a_hook_that_the_agent_has_not_would_not_be_restored(hook: str) -> None:
    """One inside of another that was given is part of it."""
    member = replica(torch.float32)
    inner = lr_scheduler.StepLR(member.optimizer, 1, 0.5)
    member.accompany(Once(lr_scheduler.ChainedScheduler([inner], member.optimizer)))
    mine = lr_scheduler.StepLR(member.optimizer, 1, 0.5)
    with generation_of([member]):
        take(member, 2)
        member.backward(loss_in_float(member), 2)
        assert member.step().applied and inner.last_epoch == 1
        getattr(member.optimizer, hook)(lambda *_: mine.step())
        take(member, 2)
        member.backward(loss_in_float(member), 2)
        with pytest.raises(UsageError, match=r"StepLR\.step\(\) was called by the script.*restores it"):
            member.step()
        member.abort()
    member.detach()


def test_a_scheduler_that_needs_a_value_is_stepped_by_the_script_once_the_agent_has_it() -> None:
    member = owned(scheduler=lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0))
    (plateau,) = member.once.schedulers
    with generation_of([member]):
        take(member, 2)
        member.backward(loss_in_float(member), 2)
        member.step()
        plateau.step(1.0)
        plateau.step(2.0)
        assert member.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
        with pytest.raises(UsageError, match="scheduler=scheduler"):
            lr_scheduler.ReduceLROnPlateau(member.optimizer).step(1.0)
        member.abort()
    member.detach()


@pytest.mark.parametrize("call", ["scale", "unscale_", "update"])
def test_a_scaler_that_the_agent_has_is_called_by_it_alone(call: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    member = owned(scaler=scaler)
    calls: dict[str, Callable[[], Any]] = {
        "scale": lambda: scaler.scale(loss_in_float(member)),
        "unscale_": lambda: scaler.unscale_(member.optimizer),
        "update": lambda: torch.amp.GradScaler.update(scaler),
    }
    with generation_of([member]):
        with pytest.raises(UsageError, match=rf"scaler\.{call} was called by the script"):
            calls[call]()
        take(member, 2)
        member.backward(loss_in_float(member), 2)
        assert member.step().skipped is None
        member.abort()
    member.detach()
    assert scaler.scale(torch.ones(())).item() == 8.0


def test_a_step_that_is_given_up_behind_its_reduction_leaves_the_scaler_ready() -> None:
    member = owned(scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    with generation_of([member]):
        take(member, 2)
        member.backward(loss_in_float(member), 2)
        assert member.reduce() is not None
        member.abort()
    with generation_of([member]):
        take(member, 2)
        member.backward(loss_in_float(member), 2)
        assert member.step().skipped is None
        member.abort()
    member.detach()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"scheduler": 3}, "scheduler is a int"),
        ({"every": "hour"}, "scheduler_every"),
        ({"clip_grad_norm": 0}, "above zero"),
        ({"scaler": object()}, "scaler is a object"),
        ({"state": {"best": 0.5}}, r"state\['best'\] is a float"),
        ({"buffers": {"x": "all"}}, "a buffer is one of"),
    ],
)
def test_what_cannot_be_owned_is_refused(given: Any, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Once(**given)


def test_a_scheduler_of_another_optimizer_is_refused() -> None:
    stranger = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    with pytest.raises(UsageError, match="StepLR schedules an optimizer that the Agent was not given"):
        replica().accompany(Once(lr_scheduler.StepLR(stranger, 1)))


def test_a_state_with_other_companions_is_refused_by_name() -> None:
    member = replica()
    member.accompany(Once(state={"ema": nn.Linear(1, 1)}))
    for other, match in ((Once(state={"mean": nn.Linear(1, 1)}), "It holds ema"), (Once(), "It holds ema")):
        theirs = replica()
        theirs.accompany(other)
        with pytest.raises(UsageError, match=match):
            theirs.restore(member.snapshot())


@WORLDS
def test_losses_of_one_step_that_cannot_be_divided_by_one_number_are_refused(world: int) -> None:
    with training(world) as members:

        def two_weights(member: AllReduceReplica) -> None:
            take(member, 2)
            member.backward(loss_of(member), 2, last=False, weight=3.0, through=False)
            member.backward(loss_of(member), 2, last=False, weight=4.0, through=False)

        each_refuses(members, two_weights, r"weigh 3 and 4.*agent\.all_reduce")

    with training(world) as members:

        def sum_and_mean(member: AllReduceReplica) -> None:
            take(member, 4)
            member.backward(loss_of(member), 2, last=False)
            member.backward(loss_of(member), 2, summed=True)

        each_refuses(members, sum_and_mean, "sums and means")


def test_sums_on_one_worker_and_means_on_another_are_refused() -> None:
    with training(2) as members:

        def act(member: AllReduceReplica) -> None:
            take(member, 2)
            member.backward(loss_of(member), 2, summed=member is members[0])
            member.step()

        each_refuses(members, act, "some workers pass a loss with reduction='sum'")


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_weights_that_divide_nothing_are_refused(weight: float) -> None:
    with pytest.raises(UsageError, match="weight="):
        weight_of(weight)


@WORLDS
def test_what_a_script_does_to_gradients_before_they_are_reduced_is_undone_or_refused(world: int) -> None:
    """Cleared ones are put back; changed ones, and others added, are refused."""
    plain = [replica() for _ in range(world)]
    with generation_of(plain):
        for _ in range(2):
            each(world, lambda rank: learn(plain[rank]))

    def in_parts(member: AllReduceReplica, between: Callable[[], Any]) -> None:
        take(member, 2)
        member.backward(loss_of(member), 2, last=False)
        between()
        member.step()

    with training(world) as members:
        each(world, lambda rank: in_parts(members[rank], members[rank].optimizer.zero_grad))
        for member, other in zip(members, plain, strict=True):
            torch.testing.assert_close(member.model.state_dict(), other.model.state_dict(), rtol=0, atol=0)
    for change in (lambda m: m.model.head.weight.grad.mul_(2), lambda m: loss_of(m).backward()):
        with training(world) as members:
            each_refuses(members, lambda m, c=change: in_parts(m, lambda: c(m)), "between two micro-batches")


@WORLDS
def test_clearing_all_gradients_behind_their_reduction_is_refused(world: int) -> None:
    with training(world) as members:

        def act(member: AllReduceReplica) -> None:
            take(member, 2)
            member.backward(loss_of(member), 2, last=False)
            assert member.reduce() is not None
            member.model.zero_grad()
            member.step()

        each_refuses(members, act, "leave zero_grad")
