"""Habits of training scripts: replicas equal to the bit after every step, and equal to one process on the same global
batches, with one, two and three members, splits that change in every step, micro-batches, and a death with a joiner.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from antdt_schemas.errors import UsageError
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.utils.data import TensorDataset

from tests.helpers.scripts import PATIENCE_S, SMALL, Alone, Died, InProcess, Script, equal, trained

WORLDS = pytest.mark.parametrize("world", [1, 2, 3])
MEMBERS = pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (3, 1), (2, 3)])
BATCH, EPOCHS = 12, 3
CLASSES = torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64)


def data(samples: int = 44) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 6, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    return TensorDataset(x, y)


DATA = data()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def build(**once: Any) -> tuple[Any, Any, dict[str, Any]]:
    model = mlp()
    return model, torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9), once


def plain(agent: InProcess) -> None:
    for x, y in agent:
        agent.step(functional.cross_entropy(agent.model(x), y))


def cross_entropy(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(x), y)


def plain_alone(
    alone: Alone, loss_of: Any = cross_entropy, *, before: Any = lambda: None, after: Any = lambda: None
) -> None:
    for x, y in alone:
        alone.optimizer.zero_grad()
        loss_of(alone.model, x, y).backward()
        before()
        alone.optimizer.step()
        after()


def run(world: int, script: Script, made: Any = build, **words: Any) -> list[InProcess]:
    return trained(world, made, script, DATA, batch_size=BATCH, epochs=EPOCHS, **words)


@MEMBERS
def test_a_plain_loop(world: int, accumulation: int) -> None:
    agents = run(world, plain, accumulation=accumulation)
    alone = Alone(agents[0], build)
    plain_alone(alone)
    equal(agents, alone)


# -- schedulers

STEPS = EPOCHS * -(-44 // BATCH)
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=STEPS + 1),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "warm-up and cosine": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 8)], [3]
    ),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
}


@MEMBERS
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scheduler_of_steps(name: str, world: int, accumulation: int) -> None:
    def scheduled() -> Any:
        model, optimizer, _ = build()
        return model, optimizer, {"scheduler": SCHEDULES[name](optimizer)}

    agents = run(world, plain, scheduled, accumulation=accumulation)
    alone = Alone(agents[0], scheduled)
    plain_alone(alone, after=alone.once["scheduler"].step)
    equal(agents, alone)
    for agent in agents:
        (scheduler,) = agent.strategy.once.schedulers
        assert scheduler.state_dict() == alone.once["scheduler"].state_dict()


@WORLDS
def test_one_cycle_is_through_with_exactly_its_total(world: int) -> None:
    def scheduled() -> Any:
        model, optimizer, _ = build()
        return model, optimizer, {"scheduler": lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=STEPS + 1)}

    agents = run(world, plain, scheduled)
    for agent in agents:
        assert agent.strategy.once.schedulers[0].last_epoch == STEPS
        with pytest.raises(ValueError, match="Tried to step"):
            [agent.strategy.once.schedulers[0].step() for _ in range(2)]


@MEMBERS
@pytest.mark.parametrize("nested", [False, True])
def test_a_scheduler_of_epochs(world: int, accumulation: int, nested: bool) -> None:
    def scheduled() -> Any:
        model, optimizer, _ = build()
        schedulers = [lr_scheduler.StepLR(optimizer, 1, 0.5)]
        return model, optimizer, {"scheduler": schedulers, "scheduler_every": "epoch"}

    def loop(agent: InProcess) -> None:
        for epoch in agent.epochs():
            for x, y in epoch:
                assert agent.epoch == epoch.number
                agent.step(functional.cross_entropy(agent.model(x), y))

    agents = run(world, loop if nested else plain, scheduled, accumulation=accumulation)
    alone = Alone(agents[0], scheduled)
    for epoch in range(EPOCHS):
        for x, y in alone.epoch(epoch):
            alone.optimizer.zero_grad()
            functional.cross_entropy(alone.model(x), y).backward()
            alone.optimizer.step()
        alone.once["scheduler"][0].step()
    equal(agents, alone)


# -- clipping, averages, scalers


@MEMBERS
def test_clipping(world: int, accumulation: int) -> None:
    agents = run(world, plain, lambda: build(clip_grad_norm=0.05), accumulation=accumulation)
    alone, norms = Alone(agents[0], build), []

    def clip() -> None:
        norms.append(nn.utils.clip_grad_norm_(alone.model.parameters(), 0.05))

    plain_alone(alone, before=clip)
    equal(agents, alone)
    assert min(norms) > 0.05, "it never clips"
    torch.testing.assert_close(agents[0].strategy.once.grad_norm, norms[-1])


def averaged() -> Any:
    model, optimizer, _ = build()
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    return model, optimizer, {"state": {"ema": ema}}


def ema_script(agent: InProcess) -> None:
    ema = agent.strategy.once.state["ema"]
    agent.on_step(lambda: ema.update_parameters(agent.model))
    plain(agent)


@MEMBERS
def test_an_average_of_the_weights(world: int, accumulation: int) -> None:
    agents = run(world, ema_script, averaged, accumulation=accumulation)
    alone = Alone(agents[0], averaged)
    ema = alone.once["state"]["ema"]
    plain_alone(alone, after=lambda: ema.update_parameters(alone.model))
    equal(agents, alone)
    for agent in agents:
        torch.testing.assert_close(agent.strategy.once.state["ema"].state_dict(), ema.state_dict())


def scaling() -> Any:
    """Its scale is too large at first, and again whenever it grows: far from where a split would decide."""
    model, optimizer, once = build()
    falls = {"growth_factor": 2.0**20, "backoff_factor": 2.0**-20, "growth_interval": 4}
    scaler = torch.amp.GradScaler("cpu", 2.0**127, **falls)
    return model.float(), optimizer, once | {"scaler": scaler, "clip_grad_norm": 0.3}


def scaled_loss(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(x.float()), y) * 1024


def scaler_script(agent: InProcess) -> None:
    for x, y in agent:
        agent.step(scaled_loss(agent.model, x, y))


@MEMBERS
def test_a_scaler_that_overflows_now_and_then(world: int, accumulation: int) -> None:
    """Its scale falls on all alike; what it skips is skipped, and a scheduler counts it."""

    def scheduled() -> Any:
        model, optimizer, once = scaling()
        return model, optimizer, once | {"scheduler": lr_scheduler.ExponentialLR(optimizer, 0.9)}

    agents = run(world, scaler_script, scheduled, accumulation=accumulation)
    alone = Alone(agents[0], scheduled)
    scaler = alone.once["scaler"]
    for x, y in alone:
        alone.optimizer.zero_grad()
        scaler.scale(scaled_loss(alone.model, x, y)).backward()
        scaler.unscale_(alone.optimizer)
        nn.utils.clip_grad_norm_(alone.model.parameters(), 0.3)
        scaler.step(alone.optimizer)
        scaler.update()
        alone.once["scheduler"].step()
    equal(agents, alone, tolerance=1e-5)
    assert {agent.strategy.once.scaler.get_scale() for agent in agents} == {scaler.get_scale()}
    skipped = [skipped for _, _, skipped in agents[0].history]
    assert 1 < sum(skipped) < len(skipped) / 2


# -- what a loss is divided by


def lengths(y: torch.Tensor) -> torch.Tensor:
    """Targets of "tokens": so many of each sample count, perhaps none."""
    tokens = torch.arange(4).expand(len(y), 4)
    return torch.where(tokens < y[:, None] * 2, tokens % 3, -100)


LOSSES: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., Any], str]] = {
    "tokens": (
        lambda m, x, y: functional.cross_entropy(
            m(x)[:, None].expand(-1, 4, -1).reshape(-1, 3), lengths(y).reshape(-1), ignore_index=-100
        ),
        lambda x, y: (lengths(y) >= 0).sum(),
        "mean",
    ),
    "class weights": (
        lambda m, x, y: functional.cross_entropy(m(x), y, weight=CLASSES),
        lambda x, y: CLASSES[y].sum(),
        "mean",
    ),
    "tokens, unsaid": (
        lambda m, x, y: functional.cross_entropy(m(x)[:, :, None].expand(-1, -1, 4), lengths(y), ignore_index=-100),
        lambda x, y: None,
        "mean",
    ),
    "class weights, unsaid": (
        lambda m, x, y: functional.cross_entropy(m(x), y, weight=CLASSES),
        lambda x, y: None,
        "mean",
    ),
    "masked, unsaid": (
        lambda m, x, y: (functional.cross_entropy(m(x), y, reduction="none") * (y > 0)).sum() / (y > 0).sum(),
        lambda x, y: None,
        "mean",
    ),
    "of one sample after the other, unsaid": (
        lambda m, x, y: sum((m(x[at]).repeat(4) ** 2).sum() / 12 for at in range(len(x))) / len(x),
        lambda x, y: None,
        "mean",
    ),
    "of one sample after the other, stacked, unsaid": (
        lambda m, x, y: torch.stack([(m(x[at]).repeat(4) ** 2).sum() / 5 for at in range(len(x))]).mean(),
        lambda x, y: None,
        "mean",
    ),
    "sum": (lambda m, x, y: 0.05 * functional.cross_entropy(m(x), y, reduction="sum"), lambda x, y: None, "sum"),
}


@MEMBERS
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_with_a_denominator_of_its_own(name: str, world: int, accumulation: int) -> None:
    loss_of, weight_of, reduction = LOSSES[name]

    def script(agent: InProcess) -> None:
        for x, y in agent:
            agent.step(loss_of(agent.model, x, y), weight=weight_of(x, y), reduction=reduction)

    agents = run(world, script, accumulation=accumulation)
    alone = Alone(agents[0], build)
    plain_alone(alone, loss_of)
    equal(agents, alone)


UNEQUAL: dict[str, Callable[..., torch.Tensor]] = {
    "a term over tokens": lambda m, x, y: LOSSES["tokens"][0](m, x, y) + 0.1 * m(x).square().mean(),
    "a mean over what a mask leaves": lambda m, x, y: functional.cross_entropy(m(x), y, reduction="none")[y > 0].mean(),
    "boxes": lambda m, x, y: functional.l1_loss(m(x)[y > 0], torch.zeros(int((y > 0).sum()), 3).double()),
    "masked mse": lambda m, x, y: 0.5 * functional.mse_loss(m(x)[y > 0], torch.zeros(int((y > 0).sum()), 3).double()),
    "a sum over boxes, beside a mean": lambda m, x, y: (
        functional.cross_entropy(m(x), y) + 0.5 * m(x)[y > 0].square().sum() / max(1, int((y > 0).sum()))
    ),
    "a mask, beside a mean": lambda m, x, y: (
        (m(x).square().sum(1) * (y > 0)).sum() / (y > 0).sum() + functional.cross_entropy(m(x), y)
    ),
    "boxes of one sample after the other, beside a mean": lambda m, x, y: (
        sum((m(x[at]).expand(int(y[at]), 3) ** 2).sum() for at in range(len(x))) / max(1, int(y.sum()))
        + functional.cross_entropy(m(x), y)
    ),
    "a mean, and boxes that are added to it one by one": lambda m, x, y: sum(
        (
            m(x[at : at + 1]).expand(1 + int(y[at]), 3).square().sum() / (len(x) + int(y.sum()))
            for at in 10 * list(range(len(x)))
        ),
        functional.cross_entropy(m(x), y),
    ),
    "two masks": lambda m, x, y: (
        (m(x).square().sum(1) * (y > 0)).sum() / (y > 0).sum() + m(x)[y < 1].sum() / (y < 1).sum()
    ),
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_a_mean_over_something_else_than_samples_is_refused_where_it_shows(name: str) -> None:
    def script(agent: InProcess) -> None:
        for x, y in agent:
            agent.step(UNEQUAL[name](agent.model, x, y))

    with pytest.raises(UsageError, match=r"divided by something else than samples.*weight=n"):
        run(2, script)


@pytest.mark.parametrize("both", [False, True])
def test_negatives_of_a_workers_own_part_are_refused(both: bool) -> None:
    def loss_of(model: Any, x: torch.Tensor) -> torch.Tensor:
        scores, own = model(x + 0.1) @ model(x).T, torch.arange(len(x))
        there = functional.cross_entropy(scores, own)
        return (there + functional.cross_entropy(scores.T, own)) / 2 if both else there

    def script(agent: InProcess) -> None:
        for x, _ in agent:
            agent.step(loss_of(agent.model, x))

    with pytest.raises(UsageError, match=r"agent\.gather\(features\)"):
        trained(2, build, script, data(200), batch_size=40, epochs=1)
    (agent,) = trained(1, build, script, data(200), batch_size=40, epochs=1)  # whose part is the whole
    assert agent.step_number == 5
    for words in [{"accumulation": 3}] + [{"strategy": replace(SMALL, deterministic="bitwise", unit_size=4)}] * (
        not both
    ):
        with pytest.raises(UsageError, match=r"agent\.gather\(features\)"):
            trained(1, build, script, data(200), batch_size=40, epochs=1, **words)


def test_means_over_elements_and_over_parameters_are_nothing_else() -> None:
    def loss_of(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        penalty = sum(param.square().mean() for param in model.parameters())
        out = model(x)
        terms = functional.cross_entropy(out, y, label_smoothing=0.1), functional.mse_loss(out, out.detach() + 1)
        of_each = sum(model(x[at]).repeat(1 + int(y[at])).sum() / (3 + 3 * int(y[at])) for at in range(len(x))) / len(x)
        means = [model(x[at]).repeat(1 + int(y[at])).square().mean() for at in range(len(x))]
        of_each = of_each + sum(means) / len(x) + torch.stack([one.sum().exp() / 9 for one in out]).mean()
        halves = out.square().sum() / (2 * len(x)) - out.sum() / (0.5 * len(x))
        return terms[0] + 0.1 * terms[1] - 0.01 * penalty + 0.1 * of_each + 0.01 * halves

    def script(agent: InProcess) -> None:
        for x, y in agent:
            agent.step(loss_of(agent.model, x, y))

    agents = run(3, script)
    alone = Alone(agents[0], build)
    plain_alone(alone, loss_of)
    equal(agents, alone)


@MEMBERS
def test_a_step_that_weighs_nothing_is_skipped(world: int, accumulation: int) -> None:
    """Its loss is no number: the mean of nothing. A batch that alone weighs nothing changes nothing."""

    def script(agent: InProcess) -> None:
        for x, y in agent:
            weight = (y > 0).sum() if agent.step_number != 4 else 0
            loss = (functional.cross_entropy(agent.model(x), y, reduction="none") * (y > 0)).sum() / weight
            agent.step(loss, weight=weight)

    agents = run(world, script, accumulation=accumulation)
    alone = Alone(agents[0], build)
    for step, (x, y) in enumerate(alone):
        if step != 4:
            alone.optimizer.zero_grad()
            ((functional.cross_entropy(alone.model(x), y, reduction="none") * (y > 0)).sum() / (y > 0).sum()).backward()
            alone.optimizer.step()
    equal(agents, alone)
    assert [step for step, _, skipped in agents[0].history if skipped] == [5]


@MEMBERS
def test_two_backwards(world: int, accumulation: int) -> None:
    def losses(model: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = model(x)
        return functional.cross_entropy(out, y), 0.1 * (out**2).mean()

    def script(agent: InProcess) -> None:
        for x, y in agent:
            first, second = losses(agent.model, x, y)
            agent.backward(first, retain_graph=True)
            agent.backward(second)
            agent.apply()

    agents = run(world, script, accumulation=accumulation)
    alone = Alone(agents[0], build)
    for x, y in alone:
        alone.optimizer.zero_grad()
        sum(losses(alone.model, x, y)).backward()  # type: ignore[union-attr]
        alone.optimizer.step()
    equal(agents, alone)


@MEMBERS
def test_gradient_penalty(world: int, accumulation: int) -> None:
    def loss_of(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        out = model(x)
        (grads,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return functional.cross_entropy(out, y) + 0.1 * ((grads.norm(dim=1) - 1) ** 2).mean()

    def script(agent: InProcess) -> None:
        for x, y in agent:
            agent.step(loss_of(agent.model, x, y))

    agents = run(world, script, accumulation=accumulation)
    alone = Alone(agents[0], build)
    plain_alone(alone, loss_of)
    equal(agents, alone)


@MEMBERS
def test_gradients_are_looked_at_and_changed_between_reduction_and_step(world: int, accumulation: int) -> None:
    """Also replaced by others, and clipped by the script: there it has those of all."""

    def change(model: Any) -> None:
        nn.utils.clip_grad_value_(model.parameters(), 0.05)
        model[0].weight.grad.mul_(0.5)
        model[2].bias.grad = model[2].bias.grad * 2

    def script(agent: InProcess) -> None:
        for x, y in agent:
            agent.backward(functional.cross_entropy(agent.model(x), y))
            if agent.reduce():
                change(agent.model)
            agent.apply()

    agents = run(world, script, accumulation=accumulation)
    alone = Alone(agents[0], build)
    plain_alone(alone, before=lambda: change(alone.model))
    equal(agents, alone)


@MEMBERS
def test_a_batch_that_is_skipped(world: int, accumulation: int) -> None:
    """As `if not torch.isfinite(loss): continue` does in one process."""
    bad = float(DATA.tensors[0][7, 0])

    def loss_of(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model(x), y) * (float("nan") if bad in x[:, 0].tolist() else 1.0)

    def script(agent: InProcess) -> None:
        for x, y in agent:
            loss = loss_of(agent.model, x, y)
            if not torch.isfinite(loss):
                assert agent.skip("its loss is not finite") is False
                continue
            agent.step(loss)

    agents = run(world, script, accumulation=accumulation)
    alone = Alone(agents[0], build)
    for x, y in alone:
        loss = loss_of(alone.model, x, y)
        if torch.isfinite(loss):
            alone.optimizer.zero_grad()
            loss.backward()
            alone.optimizer.step()
    equal(agents, alone)
    assert sum(skipped for _, _, skipped in agents[0].history) == EPOCHS


# -- several models, several optimizers, parameters that come and go


@MEMBERS
def test_two_optimizers_on_one_model(world: int, accumulation: int) -> None:
    def both() -> Any:
        model = mlp()
        optimizers = [torch.optim.AdamW(model[0].parameters(), 0.01), torch.optim.SGD(model[2].parameters(), 0.1)]
        schedulers = [lr_scheduler.ExponentialLR(optimizers[0], 0.9), lr_scheduler.StepLR(optimizers[1], 4)]
        return model, optimizers, {"scheduler": schedulers}

    agents = run(world, plain, both, accumulation=accumulation)
    alone = Alone(agents[0], both)
    for x, y in alone:
        for optimizer in alone.optimizer:
            optimizer.zero_grad()
        functional.cross_entropy(alone.model(x), y).backward()
        for optimizer, scheduler in zip(alone.optimizer, alone.once["scheduler"], strict=True):
            optimizer.step()
            scheduler.step()
    equal(agents, alone)


@MEMBERS
def test_several_models_as_one(world: int, accumulation: int) -> None:
    def encoder_and_head() -> Any:
        models = {"encoder": nn.Linear(6, 8).double(), "head": nn.Linear(8, 3).double()}
        params = [*models["encoder"].parameters(), *models["head"].parameters()]
        return models, torch.optim.SGD(params, 0.2), {}

    def out(group: Any, x: torch.Tensor) -> torch.Tensor:
        return group.head(torch.tanh(group.encoder(x)))

    def script(agent: InProcess) -> None:
        for x, y in agent:
            agent.step(functional.cross_entropy(out(agent.model, x), y))

    agents = run(world, script, encoder_and_head, accumulation=accumulation)
    alone = Alone(agents[0], encoder_and_head)
    for x, y in alone:
        alone.optimizer.zero_grad()
        functional.cross_entropy(out(alone.model, x), y).backward()
        alone.optimizer.step()
    equal(agents, alone)


def frozen_first() -> Any:
    model = mlp()
    model[0].requires_grad_(False)
    return model, torch.optim.Adam(model.parameters(), 0.05), {}


def thaw(model: Any, step: int) -> None:
    if step == 4:
        model[0].requires_grad_(True)
    if step == 8:
        model[2].requires_grad_(False)


def thawing(agent: InProcess) -> None:
    for x, y in agent:
        thaw(agent.model, agent.step_number)
        agent.step(functional.cross_entropy(agent.model(x), y))


@MEMBERS
@pytest.mark.parametrize("where", ["loop", "on_epoch", "on_step"])
def test_layers_that_are_frozen_and_unfrozen(world: int, accumulation: int, where: str) -> None:
    def script(agent: InProcess) -> None:
        if where == "on_epoch":
            agent.on_epoch(lambda: thaw(agent.model, agent.step_number))
        if where == "on_step":
            agent.on_step(lambda step: thaw(agent.model, step))
        plain(agent) if where != "loop" else thawing(agent)

    agents = run(world, script, frozen_first, accumulation=accumulation)
    alone = Alone(agents[0], frozen_first)
    for step, (x, y) in enumerate(alone):
        if step:
            thaw(alone.model, step)
        alone.optimizer.zero_grad()
        functional.cross_entropy(alone.model(x), y).backward()
        alone.optimizer.step()
    equal(agents, alone)


@MEMBERS
def test_tied_weights(world: int, accumulation: int) -> None:
    class Tied(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.there, self.back = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
            self.back.weight, self.head = self.there.weight, nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.back(torch.tanh(self.there(x))))

    def tied() -> Any:
        model = Tied().double()
        return model, torch.optim.SGD(model.parameters(), 0.2, momentum=0.9), {}

    agents = run(world, plain, tied, accumulation=accumulation)
    alone = Alone(agents[0], tied)
    plain_alone(alone)
    equal(agents, alone)


# -- a death, and somebody who comes in its place


def late_and_scheduled() -> Any:
    model, optimizer, once = averaged()
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=STEPS + 1)
    return model, optimizer, once | {"scheduler": scheduler, "clip_grad_norm": 0.5}


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("at", [3, 4])
def test_a_death_and_a_newcomer_with_scheduler_and_average(world: int, at: int) -> None:
    def script(agent: InProcess) -> None:
        ema = agent.strategy.once.state["ema"]
        agent.on_step(lambda: ema.update_parameters(agent.model))
        for x, y in agent:
            if agent.name == "w1" and agent.step_number == at:
                raise Died
            agent.step(functional.cross_entropy(agent.model(x), y))

    agents = run(world, script, late_and_scheduled, dies=(1, at))
    alone = Alone(agents[0], late_and_scheduled)
    ema, scheduler = alone.once["state"]["ema"], alone.once["scheduler"]
    for x, y in alone:
        alone.optimizer.zero_grad()
        functional.cross_entropy(alone.model(x), y).backward()
        nn.utils.clip_grad_norm_(alone.model.parameters(), 0.5)
        alone.optimizer.step()
        scheduler.step()
        ema.update_parameters(alone.model)
    equal(agents, alone)
    ends = [agent for agent in agents if agent.name != "w1"]
    for agent in ends:  # the step before the death is taken over by who has not made it yet
        first = at + 1 if agent.name == "late" else 1
        assert {step for step, *_ in agent.history} | {at} >= set(range(first, STEPS + 1))
    for agent in ends:
        once = agent.strategy.once
        torch.testing.assert_close(once.state["ema"].state_dict(), ema.state_dict())
        assert once.schedulers[0].state_dict() == scheduler.state_dict()


@pytest.mark.parametrize("world", [2, 3])
def test_a_death_and_a_newcomer_with_a_scaler(world: int) -> None:
    def script(agent: InProcess) -> None:
        for x, y in agent:
            if agent.name == "w1" and agent.step_number == 6:
                raise Died
            agent.step(scaled_loss(agent.model, x, y))

    agents = run(world, script, scaling, dies=(1, 6))
    equal(agents)
    ends = [agent for agent in agents if agent.name != "w1"]
    states = [agent.strategy.once.scaler.state_dict() for agent in ends]
    assert all(state == states[0] for state in states)
    assert states[0]["scale"] != 2.0**127


@pytest.mark.parametrize("world", [2, 3])
def test_a_newcomer_trains_what_was_unfrozen_before_it_came(world: int) -> None:
    def script(agent: InProcess) -> None:
        for x, y in agent:
            if agent.name == "w1" and agent.step_number == 6:
                raise Died
            thaw(agent.model, agent.step_number)
            agent.step(functional.cross_entropy(agent.model(x), y))

    agents = run(world, script, frozen_first, dies=(1, 6))
    alone = Alone(agents[0], frozen_first)
    for step, (x, y) in enumerate(alone):
        thaw(alone.model, step)
        alone.optimizer.zero_grad()
        functional.cross_entropy(alone.model(x), y).backward()
        alone.optimizer.step()
    equal(agents, alone)


# -- epochs


@WORLDS
def test_every_epoch_ends_once_on_every_member_and_its_number_is_known(world: int) -> None:
    told: dict[str, list[Any]] = {}

    def script(agent: InProcess) -> None:
        mine = told.setdefault(agent.name, [])
        agent.on_epoch(lambda number: mine.append(("over", number, agent.step_number)))
        for epoch in agent.epochs():
            mine.append(("begins", epoch.number))
            for x, y in epoch:
                agent.step(functional.cross_entropy(agent.model(x), y))
            mine.append(("behind", agent.step_number))

    run(world, script)
    expected: list[Any] = []
    for epoch in range(EPOCHS):
        steps = 4 * (epoch + 1)
        expected += [("begins", epoch), ("over", epoch, steps), ("behind", steps)]
    assert list(told.values()) == [expected] * world


def test_leaving_the_inner_loop_alone_is_refused() -> None:
    def script(agent: InProcess) -> None:
        for epoch in agent.epochs():
            for x, y in epoch:
                agent.step(functional.cross_entropy(agent.model(x), y))
                break

    with pytest.raises(Exception, match="left before its end"):
        run(1, script)


# -- a GAN: optimizers that step before a step's end


def gan() -> Any:
    models = {
        "generator": nn.Linear(4, 6).double(),
        "critic": nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)),
    }
    models["critic"].double()
    optimizers = [
        torch.optim.Adam(models[name].parameters(), 0.02, betas=(0.5, 0.9)) for name in ("generator", "critic")
    ]
    return models, optimizers, {}


def fakes(group: Any, x: torch.Tensor) -> torch.Tensor:
    return group.generator(x[:, :4].cos())  # noise that follows from the sample


def critic_loss(group: Any, x: torch.Tensor) -> torch.Tensor:
    real, fake = group.critic(x), group.critic(fakes(group, x).detach())
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def generator_loss(group: Any, x: torch.Tensor) -> torch.Tensor:
    return functional.softplus(-group.critic(fakes(group, x))).mean()


def gan_script(agent: InProcess) -> None:
    generator, critic = agent.whole.optimizers
    for x, _ in agent:
        at = agent.step_number
        agent.backward(critic_loss(agent.model, x))
        agent.apply(critic)
        if at % 2 == 0:
            agent.backward(generator_loss(agent.model, x))
            agent.apply(generator)


def gan_alone(alone: Alone) -> None:
    generator, critic = alone.optimizer
    for step, (x, _) in enumerate(alone):
        critic.zero_grad()
        critic_loss(alone.model, x).backward()
        critic.step()
        if step % 2 == 0:
            generator.zero_grad()
            generator_loss(alone.model, x).backward()
            generator.step()


@WORLDS
@pytest.mark.parametrize("compositions", ["inline", "gather"])
def test_a_gan_whose_critic_steps_first(world: int, compositions: Any) -> None:
    agents = run(world, gan_script, gan, strategy=replace(SMALL, compositions=compositions))
    alone = Alone(agents[0], gan)
    gan_alone(alone)
    equal(agents, alone)


@pytest.mark.parametrize("world", [2, 3])
def test_a_death_between_the_two_optimizers_of_a_gan(world: int) -> None:
    """The critic has stepped on some, or all: it steps again, from where it was."""

    def script(agent: InProcess) -> None:
        generator, critic = agent.whole.optimizers
        for x, _ in agent:
            at = agent.step_number
            agent.backward(critic_loss(agent.model, x))
            agent.apply(critic)
            if agent.name == "w1" and at == 4:
                raise Died
            if at % 2 == 0:
                agent.backward(generator_loss(agent.model, x))
                agent.apply(generator)

    agents = run(world, script, gan, dies=(1, 4))
    alone = Alone(agents[0], gan)
    gan_alone(alone)
    equal(agents, alone)


def test_single_optimizers_need_the_whole_batch() -> None:
    with pytest.raises(UsageError, match="leave out micro_batch_size_max"):
        run(1, gan_script, gan, accumulation=2)


# -- what workers tell each other


def contrast(a: torch.Tensor, b: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(functional.normalize(a, dim=1) @ functional.normalize(b, dim=1).T / 0.2, target)


@WORLDS
@pytest.mark.parametrize("compositions", ["inline", "gather"])
def test_negatives_of_the_whole_batch(world: int, compositions: Any) -> None:
    """The loss of a batch is not the mean of those of its parts: gradients flow to the rows of all workers."""

    def script(agent: InProcess) -> None:
        for x, _ in agent:
            a, b = agent.model(x + 0.1), agent.model(x * 0.9)
            everybodys = agent.gather(b)
            own = agent.own_rows
            agent.step(contrast(a, everybodys, torch.arange(own.start, own.stop)))

    agents = run(world, script, strategy=replace(SMALL, compositions=compositions))
    alone = Alone(agents[0], build)
    for x, _ in alone:
        alone.optimizer.zero_grad()
        contrast(alone.model(x + 0.1), alone.model(x * 0.9), torch.arange(len(x))).backward()
        alone.optimizer.step()
    equal(agents, alone)


def test_a_mean_over_workers_is_none_over_samples() -> None:
    """Parts are uneven. Where it is only logged, it may be one; nor is anything wrong with a sum over a number."""

    def common(agent: InProcess, x: torch.Tensor) -> torch.Tensor:
        return agent.all_reduce(x.sum(0)).sum() / agent.all_reduce(len(x))

    def script(agent: InProcess) -> None:
        for x, y in agent:
            mean = agent.all_reduce(x.mean(0), "mean").sum()
            loss = above(agent.model, x, y, mean if wrong else common(agent, x))
            agent.all_reduce(loss.detach(), "mean")
            agent.step(loss)

    wrong = True
    with pytest.raises(UsageError, match=r"a mean over workers, whose parts differ in size \(test_habits\.py:\d+\)"):
        run(2, script)
    wrong = False
    agents = run(3, script)
    alone = Alone(agents[0], build)
    plain_alone(alone, lambda m, x, y: above(m, x, y, x.sum(1).mean()))
    equal(agents, alone)


def mixed(model: Any, x: torch.Tensor, y: torch.Tensor, step: int, own: Any = slice(None)) -> torch.Tensor:
    """Each sample with another one, which is drawn by the number of its row."""
    drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(step))
    out = model(0.7 * x + 0.3 * x[drawn])[own]
    return 0.7 * functional.cross_entropy(out, y[own]) + 0.3 * functional.cross_entropy(out, y[drawn][own])


@WORLDS
@pytest.mark.parametrize("dies", [False, True])
def test_what_is_drawn_by_the_number_of_a_row_is_what_one_process_draws(world: int, dies: bool) -> None:
    """Whichever member has which part: where samples are suspected, parts go round."""
    firsts = set[int]()

    def script(agent: InProcess) -> None:
        for x, y in agent:
            if dies and agent.name == "w1" and agent.step_number == 5:
                raise Died
            firsts.add(agent._first_rank)
            xs, ys = agent.gather(agent.model[0](x)), agent.gather(y)
            agent.step(mixed(agent.model[1:], xs, ys, agent.step_number, agent.own_rows))

    agents = run(world, script, turns=True, dies=(1, 5) if dies and world > 1 else None)
    assert world == 1 or firsts - {0}, "no part went round"
    alone = Alone(agents[0], build)
    for step, (x, y) in enumerate(alone):
        alone.optimizer.zero_grad()
        mixed(alone.model[1:], alone.model[0](x), y, step).backward()
        alone.optimizer.step()
    equal(agents, alone)
    assert world == 1 or {agent.strategy.undivided for agent in agents if agent.name != "w1"} == {True}


@MEMBERS
def test_losses_with_two_denominators(world: int, accumulation: int) -> None:
    """Each divided by what all have of it. With micro-batches, by what all have in these."""
    if accumulation > 1:
        pytest.skip("their denominators are those of micro-batches")

    def terms(model: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        out = model(x)
        return functional.cross_entropy(out, y, reduction="sum"), (out**2).sum(1)[y > 0].sum(), (y > 0).sum()

    def script(agent: InProcess) -> None:
        for x, y in agent:
            first, second, count = terms(agent.model, x, y)
            samples, count = agent.all_reduce(len(x)), agent.all_reduce(count)
            agent.step(first / samples + 0.1 * second / count, reduction="sum")

    agents = run(world, script)
    alone = Alone(agents[0], build)
    for x, y in alone:
        alone.optimizer.zero_grad()
        first, second, count = terms(alone.model, x, y)
        (first / len(x) + 0.1 * second / count).backward()
        alone.optimizer.step()
    equal(agents, alone)


@MEMBERS
@pytest.mark.parametrize("where", ["loop", "nested", "on_epoch", "behind the step"])
def test_sums_over_all_workers(world: int, accumulation: int, where: str) -> None:
    heard: dict[str, list[Any]] = {}

    def script(agent: InProcess) -> None:
        mine = heard.setdefault(agent.name, [])

        def tell() -> None:
            mine.append((agent.step_number, agent.all_reduce(1), agent.all_reduce(agent.rank, "max")))
            mine.append(agent.broadcast(torch.tensor([agent.rank, 5])).tolist())
            mine.append([part.tolist() for part in agent.all_gather(torch.arange(agent.rank))])
            agent.barrier()

        if where == "on_epoch":
            agent.on_epoch(tell)
        if where == "nested":
            for epoch in agent.epochs():
                for x, y in epoch:
                    agent.step(functional.cross_entropy(agent.model(x), y))
                tell()
            return
        for x, y in agent:
            if where == "loop" and agent._micro is not None and agent._micro[1]:
                agent.all_reduce(1.5, "mean", of="batch")
            made = agent.step(functional.cross_entropy(agent.model(x), y))
            if made and where == "behind the step":
                tell()

    agents = run(world, script, accumulation=accumulation)
    alone = Alone(agents[0], build)
    plain_alone(alone)
    equal(agents, alone)
    if where == "loop":
        return
    everybody = list(heard.values())
    assert everybody == [everybody[0]] * world
    steps = range(4, STEPS + 1, 4) if where != "behind the step" else range(1, STEPS + 1)
    assert everybody[0][::3] == [(step, world, world - 1) for step in steps]
    assert everybody[0][1::3] == [[0, 5]] * len(steps)
    assert everybody[0][2::3] == [[list(range(rank)) for rank in range(world)]] * len(steps)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("where", ["between", "inside"])
def test_a_death_while_workers_tell_each_other_something(world: int, where: str) -> None:
    """At the end of an epoch whoever is there then hears the same; in a step, the step is given up."""
    heard: dict[str, list[Any]] = {}

    def script(agent: InProcess) -> None:
        mine = heard.setdefault(agent.name, [])
        for epoch in agent.epochs():
            for x, y in epoch:
                if where == "inside":
                    agent.all_reduce(1)
                    if agent.name == "w1" and agent.step_number == 5:
                        raise Died
                    agent.all_reduce(1)
                agent.step(functional.cross_entropy(agent.model(x), y))
            mine.append((epoch.number, "first", agent.all_reduce(1)))
            if where == "between" and agent.name == "w1" and epoch.number == 1:
                until = time.monotonic() + PATIENCE_S
                while any((1, "first", world) not in heard[f"w{rank}"] for rank in range(world)):
                    assert time.monotonic() < until, "others have not heard"
                    time.sleep(0.001)
                raise Died
            mine.append((epoch.number, "second", agent.all_reduce(torch.tensor([2.0])).tolist()))

    agents = run(world, script, dies=(1, 8 if where == "between" else 5))
    alone = Alone(agents[0], build)
    plain_alone(alone)
    equal(agents, alone)
    survivors = [heard[name] for name in heard if name not in ("w1", "late")]
    assert all(one == survivors[0] for one in survivors)
    late = heard["late"]
    assert late == survivors[0][-len(late) :] and late


@WORLDS
@pytest.mark.parametrize("who", ["one", "all"])
@pytest.mark.parametrize("where", ["inside", "behind"])
def test_stopping_ends_all_members_at_the_step_at_which_one_says_so(world: int, who: str, where: str) -> None:
    def script(agent: InProcess) -> None:
        for x, y in agent:
            speaks = who == "all" or agent.name == "w0"
            if where == "inside" and agent.step_number == 5 and speaks:
                agent.stop("enough")
            agent.step(functional.cross_entropy(agent.model(x), y))
            if where == "behind" and agent.step_number == 5 and speaks:
                agent.stop("enough")

    agents = run(world, script)
    equal(agents)
    assert [agent.strategy.step_number for agent in agents] == [5] * world
    assert [len(agent.history) for agent in agents] == [5] * world


def test_a_callback_in_the_middle_of_a_step_may_not_talk() -> None:
    def script(agent: InProcess) -> None:
        agent.on_step(lambda: agent.all_reduce(1))
        plain(agent)

    with pytest.raises(UsageError, match=r"agent\.on_step"):
        run(2, script)


def test_nobody_is_there_before_and_behind_the_loop() -> None:
    def script(agent: InProcess) -> None:
        with pytest.raises(UsageError, match="before and behind it"):
            agent.all_reduce(1)
        plain(agent)
        with pytest.raises(UsageError, match="before and behind it"):
            agent.barrier()

    run(1, script)


@WORLDS
def test_who_speaks_for_the_first_time_at_the_very_end_is_heard(world: int) -> None:
    heard: list[Any] = []

    def script(agent: InProcess) -> None:
        for epoch in agent.epochs():
            for x, y in epoch:
                agent.step(functional.cross_entropy(agent.model(x), y))
            if epoch.number == 2:
                heard.append(agent.all_reduce(1))

    run(world, script)
    assert heard == [world] * world


@pytest.mark.parametrize("world", [2, 3])
def test_a_death_at_the_end_of_the_last_epoch_is_made_up_for(world: int) -> None:
    """Its heir has no batch, and comes for what is left to do at the end."""
    heard: dict[str, list[Any]] = {}

    def script(agent: InProcess) -> None:
        for epoch in agent.epochs():
            for x, y in epoch:
                agent.step(functional.cross_entropy(agent.model(x), y))
            if epoch.number == EPOCHS - 1 and agent.name == "w1":
                raise Died
            heard.setdefault(agent.name, []).append((epoch.number, agent.all_reduce(1)))

    run(world, script, dies=(1, STEPS))
    assert {name: said[-1] for name, said in heard.items() if name != "w1"} == {
        name: (EPOCHS - 1, world) for name in heard if name != "w1"
    }
    assert "late" in heard


@pytest.mark.parametrize("world", [2, 3])
def test_what_scripts_say_behind_their_first_step_is_heard_by_all(world: int) -> None:
    """Also where one of them is late: the first who speaks must not take the step away from whoever still makes it."""
    heard: list[Any] = []

    def script(agent: InProcess) -> None:
        for x, y in agent:
            made = agent.step(functional.cross_entropy(agent.model(x), y))
            if made and agent.step_number == 1:
                heard.append(agent.all_reduce(1))

    for _ in range(2):
        run(world, script)
    assert heard == [world] * world * 2


LONELY: dict[str, tuple[Callable[[InProcess], None], Callable[[InProcess], None], str]] = {
    "in the body": (
        lambda agent: agent.all_reduce(1) if agent.rank == 0 else None,
        lambda agent: None,
        r"agent\.all_reduce\(value, 'sum'\) at test_habits\.py:\d+ was called by w0 and not by w1.*in the body",
    ),
    "one more": (
        lambda agent: [agent.barrier() for _ in range(1 + agent.rank)],
        lambda agent: None,
        r"agent\.barrier\(\) at test_habits\.py:\d+ was called by w1 and not by w0.*in the body of step 1:",
    ),
    "behind": (
        lambda agent: None,
        lambda agent: agent.broadcast(5) if agent.rank == 0 and agent.step_number == 4 else None,
        r"agent\.broadcast\(value\) at test_habits\.py:\d+ was called by w0 and not by w1, behind step 4:",
    ),
    "by its own samples": (
        lambda agent: None,
        lambda agent: agent.all_reduce(1) if agent.rank == 1 or agent.step_number % 3 else None,
        r"agent\.all_reduce\(value, 'sum'\) at .* was called by w1 and not by w0, behind step 3:",
    ),
    "others": (
        lambda agent: agent.all_reduce(1, "max" if agent.rank else "sum"),
        lambda agent: None,
        r"different calls in the body of step 1 \(all_reduce\(value, 'max'\) at .*all_reduce\(value, 'sum'\) at",
    ),
}


@pytest.mark.parametrize("name", LONELY)
def test_a_call_that_only_some_workers_make_ends_the_run_and_is_named(name: str) -> None:
    inside, behind, match = LONELY[name]

    def script(agent: InProcess) -> None:
        for x, y in agent:
            inside(agent)
            agent.step(functional.cross_entropy(agent.model(x), y))
            behind(agent)

    with pytest.raises(UsageError, match=match):
        run(2, script)


@pytest.mark.parametrize("world", [2, 3])
def test_a_worker_that_comes_later_may_call_where_the_others_have_gone_on(world: int) -> None:
    """And calls in each micro-batch, or of a worker that skips its batch, are as many as they are."""

    def script(agent: InProcess) -> None:
        for epoch in agent.epochs():
            agent.broadcast(epoch.number)  # who comes in the midst of an epoch is the only one to do so there
            for x, y in epoch:
                agent.all_reduce(len(x))
                if agent.name == "w1" and agent.step_number == 5:
                    raise Died
                if agent.step_number == 6 and agent.rank == 0:
                    agent.skip("it is asked for")
                    continue
                agent.all_reduce(1)
                agent.step(functional.cross_entropy(agent.model(x), y))
            agent.barrier()

    agents = run(world, script, dies=(1, 5))
    equal(agents)
    assert [step for step, _, skipped in agents[0].history if skipped] == [7]
    assert len({agent.strategy.step_number for agent in agents if agent.name != "w1"}) == 1


class Recurrent(nn.Module):  # type: ignore[misc]
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.head = getattr(nn, kind)(6, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, x: torch.Tensor, state: Any = None) -> Any:
        found = self.body(x[None] if isinstance(self.body, nn.RNNBase) else x, state)
        out, state = found if isinstance(found, tuple) else (found, found)
        return self.head(out[0] if out.dim() == 3 else out), state


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "GRUCell"])
def test_a_state_that_is_carried_from_batch_to_batch_is_refused(kind: str) -> None:
    """One that begins at zero, that is learned, or of an evaluation is not."""

    def made() -> Any:
        model = Recurrent(kind)
        return model, torch.optim.SGD(model.parameters(), 0.1), {}

    def script(agent: InProcess) -> None:
        state: Any = None
        for x, y in agent:
            carried = state if carries else None
            out, state = agent.model(x, carried)
            state = tuple(one.detach() for one in state) if isinstance(state, tuple) else state.detach()
            with torch.no_grad():
                agent.model(x, state)
            agent.step(functional.cross_entropy(out, y))

    carries = False
    equal(run(1, script, made))
    carries = True
    with pytest.raises(UsageError, match=rf"{kind} was given a state .*truncated"):
        run(1, script, made)


# -- a step that is cut


WHOLE: dict[str, Callable[[InProcess, Any, Any], Any]] = {
    "negatives": lambda agent, x, y: agent.step(
        functional.cross_entropy(
            agent.model(x) @ agent.gather(agent.model(x)).T, torch.arange(len(x)) + agent.own_rows.start
        )
    ),
    "a sum over all workers": lambda agent, x, y: agent.step(
        functional.cross_entropy(agent.model(x), y, reduction="sum") / agent.all_reduce(len(x)), reduction="sum"
    ),
    "a mean of all workers in a mean": lambda agent, x, y: agent.step(
        above(agent.model, x, y, agent.all_reduce(x.sum(0)).sum() / agent.all_reduce(len(x)))
    ),
    "a number of all workers in a mean": lambda agent, x, y: agent.step(
        above(agent.model, x, y, max(agent.all_gather(float(x.sum(1).max()))))
    ),
    "in the second loss": lambda agent, x, y: (
        agent.backward(functional.cross_entropy(agent.model(x), y)),
        agent.backward(above(agent.model, x, y, agent.all_reduce(float(x.max()), "max"))),
        agent.apply(),
    ),
}


def above(model: Any, x: torch.Tensor, y: torch.Tensor, baseline: Any) -> torch.Tensor:
    """A mean over samples, each of which counts by how far it is from what all have in common."""
    return (functional.cross_entropy(model(x), y, reduction="none") * (x.sum(1) - baseline).sigmoid()).mean()


@pytest.mark.parametrize("name", WHOLE)
def test_what_needs_a_whole_batch_is_refused_in_micro_batches_and_not_where_a_sample_is_looked_for(name: str) -> None:
    def script(agent: InProcess) -> None:
        for x, y in agent:
            WHOLE[name](agent, x, y)

    with pytest.raises(UsageError, match="needs the whole batch of a step at once"):
        run(1, script, accumulation=3)
    agents = run(2, script, cut_at=4)
    whole = run(2, script)
    equal(agents)
    assert {agent._needs_whole for agent in agents} == {True}
    assert len(agents[0].history) == len(whole[0].history) == STEPS
    for (step, found, _), (_, wanted, _) in zip(agents[0].history, whole[0].history, strict=True):
        assert torch.allclose(found, wanted), step


def logs_behind_the_loss(agent: InProcess, x: Any, y: Any) -> None:
    loss = functional.cross_entropy(agent.model(x), y)
    agent.all_reduce(float(loss.detach()))
    agent.step(loss)


def logs_between_losses(agent: InProcess, x: Any, y: Any) -> None:
    out = agent.model(x)
    first, second = functional.cross_entropy(out, y), 0.1 * out.square().mean()
    agent.backward(first, retain_graph=True)
    agent.all_reduce(first.detach())
    agent.backward(second)
    agent.apply()


def logs_of_the_batch(agent: InProcess, x: Any, y: Any) -> None:
    agent.all_reduce(len(x), of="batch")
    agent.all_gather(x.mean(), of="batch")
    agent.broadcast(agent.rank, of="batch")
    agent.barrier()
    agent.step(functional.cross_entropy(agent.model(x), y))


def logs_behind_the_step(agent: InProcess, x: Any, y: Any) -> None:
    loss = functional.cross_entropy(agent.model(x), y)
    agent.step(loss)
    agent.all_reduce(loss.detach(), "mean")


LOGS = logs_behind_the_loss, logs_between_losses, logs_of_the_batch, logs_behind_the_step


@pytest.mark.parametrize("body", LOGS)
def test_a_script_that_only_logs_what_all_have_is_cut_as_ever(body: Callable[..., None]) -> None:
    def script(agent: InProcess) -> None:
        for x, y in agent:
            body(agent, x, y)

    for words in [{"accumulation": 3}, {"cut_at": 4}]:
        agents = run(2, script, **words)
        equal(agents)
        assert len(agents[0].history) == STEPS
        assert {agent._needs_whole for agent in agents} == {False}


def test_the_call_that_a_loss_may_depend_on_is_named() -> None:
    def script(agent: InProcess) -> None:
        for x, y in agent:
            agent.step(functional.cross_entropy(agent.model(x), y) / agent.all_reduce(1.0))

    with pytest.raises(
        UsageError,
        match=r"behind agent\.all_reduce\(value, 'sum'\) at test_habits\.py:\d+ needs the whole batch .*of='batch'",
    ):
        run(2, script, accumulation=2)
    with pytest.raises(UsageError, match="of is one of step, batch"):
        run(1, lambda agent: [agent.all_reduce(1, of="all") for _ in agent])


# -- the same bits


BITWISE = replace(SMALL, deterministic="bitwise", unit_size=2)


def float32() -> tuple[Any, Any, dict[str, Any]]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))  # of float32
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    return model, optimizer, {"clip_grad_norm": 0.5}


def in_floats(agent: InProcess) -> None:
    for x, y in agent:
        agent.step(functional.cross_entropy(agent.model(x.float()), y, weight=CLASSES.float()))


def test_the_model_is_the_same_to_the_last_bit_for_any_number_of_workers_and_a_death() -> None:
    def dies(agent: InProcess) -> None:
        for x, y in agent:
            if agent.name == "w1" and agent.step_number == 4:
                raise Died
            agent.step(functional.cross_entropy(agent.model(x.float()), y, weight=CLASSES.float()))

    runs = [run(world, in_floats, float32, strategy=BITWISE) for world in (1, 2, 3)]
    runs.append(run(3, dies, float32, strategy=BITWISE, dies=(1, 4)))
    (alone,) = runs[0]
    steps = {step: params for step, params, _ in alone.history}
    assert len(steps) == STEPS
    for agent in [agent for agents in runs for agent in agents]:
        for step, params, _ in agent.history:
            assert torch.equal(steps[step], params), f"step {step} of {agent.name}"
    (other,) = run(1, in_floats, float32)
    assert torch.allclose(other.history[0][1], steps[1], atol=0.1)
    assert not torch.equal(other.history[-1][1], steps[STEPS]), "it would be the same without"


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("what", ["statistics", "gather", "apply"])
def test_what_needs_a_whole_batch_or_changes_buffers_has_no_bits_of_its_own(what: str, world: int) -> None:
    def made() -> tuple[Any, Any, dict[str, Any]]:
        model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)) if what == "statistics" else nn.Linear(6, 3)
        return model.double(), torch.optim.SGD(model.parameters(), 0.1), {}

    def script(agent: InProcess) -> None:
        for x, y in agent:
            out = agent.model(x)
            if what == "gather":
                agent.all_reduce(1)
            agent.backward(functional.cross_entropy(out, y))
            agent.apply(*([agent.whole] if what == "apply" else []))

    with pytest.raises(UsageError, match="bit by bit" if what == "statistics" else r"whole batch|leave"):
        run(world, script, made, strategy=BITWISE)


# -- buffers


class Counting(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)
        for name in ("seen", "own", "first", "largest"):
            self.register_buffer(name, torch.zeros(2, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.seen += len(x)
            self.own += 1
            self.first.fill_(float(x[0, 0]))
            self.largest = torch.maximum(self.largest, x.abs().max())
        return self.body(x)


def counting() -> Any:
    model = Counting().double()
    rules = {"seen": "sum", "ow*": "local", "first": "first", "largest": "max"}
    return model, torch.optim.SGD(model.parameters(), 0.1), {"buffers": rules}


@WORLDS
def test_buffers_by_rule(world: int) -> None:
    agents = run(world, plain, counting)
    alone = Alone(agents[0], counting)
    plain_alone(alone)
    equal(agents, alone)
    for agent in agents:
        assert agent.model.seen.tolist() == alone.model.seen.tolist() == [44 * EPOCHS] * 2
        assert agent.model.first.tolist() == alone.model.first.tolist()
        assert agent.model.largest.tolist() == alone.model.largest.tolist()
        assert agent.model.own.tolist() == [STEPS] * 2


@pytest.mark.parametrize(
    ("rules", "match"),
    [({"nothing": "sum"}, "none that is called nothing"), ({"seen": "median"}, "one of mean"), ({"0": "x"}, "one of")],
)
def test_rules_of_buffers_that_cannot_be_kept(rules: Any, match: str) -> None:
    def made() -> Any:
        model, optimizer, _ = counting()
        return model, optimizer, {"buffers": rules}

    with pytest.raises(UsageError, match=match):
        run(1, plain, made)


def test_reducing_for_all_optimizers_and_stepping_one_do_not_go_together() -> None:
    def before(agent: InProcess) -> None:
        for x, _ in agent:
            agent.backward(critic_loss(agent.model, x))
            agent.reduce()
            agent.apply(agent.whole.optimizers[1])

    def behind(agent: InProcess) -> None:
        for x, _ in agent:
            agent.backward(critic_loss(agent.model, x))
            agent.apply(agent.whole.optimizers[1])
            agent.backward(generator_loss(agent.model, x))
            agent.reduce()

    for script in (before, behind):
        with pytest.raises(UsageError, match=r"agent\.reduce\(\) is for all optimizers at once"):
            run(1, script, gan)


@pytest.mark.parametrize("call", ["step", "apply", "skip"])
def test_behind_a_single_optimizer_the_next_one_is_named(call: str) -> None:
    def script(agent: InProcess) -> None:
        for x, _ in agent:
            agent.backward(critic_loss(agent.model, x))
            agent.apply(agent.whole.optimizers[1])
            if call == "step":
                agent.step(generator_loss(agent.model, x))
            if call == "skip":
                agent.skip("too late")
            agent.backward(generator_loss(agent.model, x))
            agent.apply()

    with pytest.raises(UsageError, match=r"agent\.apply\(o"):
        run(1, script, gan)


@pytest.mark.parametrize("call", ["nothing", "apply"])
def test_a_batch_without_a_loss_is_refused(call: str) -> None:
    def script(agent: InProcess) -> None:
        for _ in agent:
            if call == "apply":
                agent.apply()

    with pytest.raises(UsageError, match=r"agent\.(skip|backward)"):
        run(1, script)
