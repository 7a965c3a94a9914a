"""Adapters against what frameworks document of their seams, in one process: who calls what, and what is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import antdt
import pytest
import torch
from antdt.adapters import accelerate, hf_steer, lightning, torchtitan
from antdt.adapters import lightning_steer as steering
from antdt.adapters.given import Given, Scheduled
from antdt.adapters.loader import Loader, moved
from antdt.watching.order import ROOT
from antdt_schemas.errors import Mismatch, UsageError
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

PAGE = (Path(__file__).parents[2] / "docs" / "FRAMEWORKS.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python ([^\n]+)\n(.*?)^```", PAGE, re.M | re.S))
SAMPLES, BATCH, EPOCHS = 72, 16, 2


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing speaks of a job: agents train alone, and nothing is watched."""
    for name in [name for name in os.environ if name.startswith("ANTDT_")]:
        monkeypatch.delenv(name)


def parts() -> dict[str, Any]:
    """What a script has before its loop."""
    torch.manual_seed(1)
    x = torch.randn(SAMPLES, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)
    data = TensorDataset(x, (x[:, 0] > 0).long())
    words = {"antdt": antdt, "torch": torch, "DataLoader": DataLoader, "loss_function": nn.functional.cross_entropy}
    return words | {"model": model, "optimizer": optimizer, "scheduler": scheduler, "dataset": data}


def agent_of(names: dict[str, Any], **more: Any) -> antdt.Agent:
    options = antdt.AgentOptions(fingerprint_samples=0, **more.pop("options", {}))
    words = {"batch_size": BATCH, "epochs": EPOCHS, "options": options}
    return antdt.Agent(names["model"], names["optimizer"], names["dataset"], **(words | more))


def trained(train: Callable[[dict[str, Any]], None]) -> list[torch.Tensor]:
    names = parts()
    train(names)
    return [param.detach() for param in names["model"].parameters()]


def plainly(names: dict[str, Any]) -> None:
    """What all others must come to."""
    agent = agent_of(names, scheduler=names["scheduler"])
    for x, y in agent:
        agent.step(names["loss_function"](names["model"](x), y))


def same(ours: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, trained(plainly), strict=True))


# -- the loader


def test_a_loader_gives_an_epoch_at_a_time_and_the_agent_ends_with_the_last_step() -> None:
    loaders = list[Loader]()

    def train(names: dict[str, Any]) -> None:
        agent = agent_of(names, scheduler=names["scheduler"])
        loader = Loader(agent)
        loaders.append(loader)
        for epoch in range(EPOCHS):
            assert iter(loader) is not iter(loader), "a framework may ask for several, and take one"
            for x, y in loader:
                assert loader.epoch == epoch
                agent.step(names["loss_function"](names["model"](x), y))
        assert loader.over
        assert not list(loader)

    assert same(trained(train))
    assert loaders[0].agent.ended
    assert len(loaders[0]) == SAMPLES // BATCH + 1


def test_a_framework_that_leaves_an_epoch_by_its_own_count_loses_no_sample() -> None:
    def train(names: dict[str, Any]) -> None:
        agent = agent_of(names, scheduler=names["scheduler"])
        loader = Loader(agent)

        def one(batch: Any) -> None:
            agent.step(names["loss_function"](names["model"](batch[0]), batch[1]))

        for _ in range(2):
            for _, batch in zip(range(3), loader, strict=False):
                one(batch)
        loader.finish(one)
        assert agent.ended

    assert same(trained(train))


def test_micro_batches_of_a_step_are_one_batch_of_a_framework() -> None:
    names = parts()
    agent = agent_of(names, options={"micro_batch_size_max": 7})
    loader, batches, micro = Loader(agent), 0, 0

    def one(x: torch.Tensor, y: torch.Tensor) -> None:
        agent.backward(names["loss_function"](names["model"](x), y))
        agent.apply()

    for _ in range(EPOCHS):
        for x, y in loader:
            batches += 1
            one(x, y)
            for more in loader.rest_of_step():
                micro += 1
                one(*more)
            assert agent.step_number == batches
    assert agent.ended
    assert micro > batches


def test_who_leaves_early_says_so_or_ends_the_job(caplog: pytest.LogCaptureFixture) -> None:
    names = parts()
    agent = agent_of(names)
    loader = Loader(agent)
    x, y = next(iter(loader))
    agent.step(names["loss_function"](names["model"](x), y))
    loader.finish()
    assert "left the loop early, behind step 1" in caplog.text
    names = parts()
    agent = agent_of(names)
    loader = Loader(agent)
    x, y = next(iter(loader))
    agent.step(names["loss_function"](names["model"](x), y))
    loader.finish(reason="good enough")
    assert "stops behind step 1: good enough" in caplog.text


def test_the_state_of_a_loader_is_a_few_bytes_and_is_held_against_the_job(caplog: pytest.LogCaptureFixture) -> None:
    names = parts()
    agent = agent_of(names)
    loader = Loader(agent)
    x, y = next(batches := iter(loader))
    agent.step(names["loss_function"](names["model"](x), y))
    state = loader.state_dict()
    assert (state["job"], state["step"], state["lineage"]) == ("alone", 1, agent.lineage)
    loader.load_state_dict({})
    loader.load_state_dict({**state, "step": 7})
    next(batches)
    assert "the checkpoint is of step 7, the log of job alone of step 1" in caplog.text
    with pytest.raises(Mismatch, match="The job"):
        loader.load_state_dict({**state, "job": "other"})
    with pytest.raises(Mismatch, match="version"):
        loader.load_state_dict({**state, "version": 2})
    agent.skip("for the test")
    loader.load_state_dict({**state, "run": "another"})
    with pytest.raises(Mismatch, match="The run of job alone"):
        next(batches)


def test_what_is_given_away_steps_nothing() -> None:
    names = parts()
    inner = names["optimizer"]
    given, stepped = Given(inner), list[int]()
    given.stepped = lambda: stepped.append(1)
    before = [p.clone() for p in names["model"].parameters()]
    names["model"](torch.ones(2, 4)).sum().backward()
    given.step(lambda: 3.0)
    given.zero_grad()
    assert stepped == [1]
    assert all(torch.equal(a, b) for a, b in zip(before, names["model"].parameters(), strict=True))
    assert all(p.grad is not None for p in names["model"].parameters())
    assert given.param_groups is inner.param_groups
    assert isinstance(given, torch.optim.Optimizer)
    scheduled = Scheduled(names["scheduler"])
    scheduled.step()
    assert scheduled.get_last_lr() == [0.2]
    batch = moved({"a": [torch.ones(2)], "b": "text"}, "meta")
    assert batch["a"][0].device.type == "meta"
    assert batch["b"] == "text"


# -- the page, as far as it needs no framework


@pytest.mark.parametrize("block", ["plain", "loader"])
def test_the_page_runs_without_a_framework(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTDT_JOB", raising=False)
    names = parts()
    before = [param.clone() for param in names["model"].parameters()]
    exec(BLOCKS[block], names)
    assert not any(torch.equal(a, b) for a, b in zip(before, names["model"].parameters(), strict=True))
    assert set(BLOCKS) == {"plain", "loader", "hf watched", "hf steered", "lightning steered", "accelerate steered"}


# -- Accelerate


def accelerator(**wrong: Any) -> Any:
    """What is documented of one, where there is one process."""
    said: dict[str, Any] = {"distributed_type": SimpleNamespace(name="NO"), "gradient_accumulation_steps": 1}
    said |= {"mixed_precision": "no", "_models": [], "_optimizers": [], "_dataloaders": [], "device": "cpu"}
    kept = list[Any]()
    return SimpleNamespace(**(said | wrong), kept=kept, register_for_checkpointing=kept.append)


def test_the_loop_of_accelerate_stays_and_the_agent_steps() -> None:
    def train(names: dict[str, Any]) -> None:
        made = accelerator()
        words = {"batch_size": BATCH, "epochs": EPOCHS, "scheduler": names["scheduler"]}
        block = BLOCKS["accelerate steered"].replace("batch_size=32", f"batch_size={BATCH}")
        assert words["epochs"] == 2
        exec(block, names | {"Accelerator": lambda: made})
        assert [type(one) for one in made.kept] == [Loader]

    assert same(trained(train))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"distributed_type": SimpleNamespace(name="FSDP")}, "spreads the model by FSDP"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2"),
        ({"mixed_precision": "bf16"}, "mixed_precision='bf16'"),
        ({"_models": [nn.Linear(1, 1)]}, "in place of accelerator.prepare"),
    ],
)
def test_what_accelerate_would_do_beside_the_agent_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        accelerate.refuse(accelerator(**wrong))


def test_nothing_is_watched_before_it_is_prepared() -> None:
    with pytest.raises(UsageError, match=r"behind accelerator\.prepare"):
        accelerate.watch(accelerator())


# -- Hugging Face, Lightning: what is refused


def trainer_of_hf(**wrong: Any) -> Any:
    args: dict[str, Any] = {"n_gpu": 1, "gradient_accumulation_steps": 1, "fp16": False, "auto_find_batch_size": False}
    args |= {"max_steps": -1, "num_train_epochs": 2.0}
    data = wrong.pop("train_dataset", [1, 2])
    return SimpleNamespace(args=SimpleNamespace(**(args | wrong)), accelerator=accelerator(), train_dataset=data)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_gpu": 2}, "DataParallel"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps"),
        ({"fp16": True}, "fp16"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"train_dataset": None}, "no train_dataset"),
        ({"train_dataset": iter(())}, "a stream"),
        ({"num_train_epochs": 0.5}, "say max_steps"),
    ],
)
def test_what_a_trainer_would_do_beside_the_agent_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        hf_steer.refuse(trainer_of_hf(**wrong))
    hf_steer.refuse(trainer_of_hf())


def trainer_of_lightning(**wrong: Any) -> Any:
    said: dict[str, Any] = {"gradient_clip_algorithm": None, "gradient_clip_val": None, "accumulate_grad_batches": 1}
    said |= {"precision": "32-true", "limit_train_batches": 1.0, "optimizers": [1]}
    said |= {"lightning_module": SimpleNamespace(automatic_optimization=True)}
    return SimpleNamespace(**(said | wrong))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches"),
        ({"optimizers": [1, 2]}, "several optimizers"),
        ({"lightning_module": SimpleNamespace(automatic_optimization=False)}, "manual optimization"),
        ({"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, "gradient_clip_algorithm"),
        ({"precision": "16-mixed"}, "bf16-mixed"),
        ({"limit_train_batches": 3}, "limit_train_batches"),
    ],
)
def test_what_lightning_would_do_beside_the_agent_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        steering.refuse(trainer_of_lightning(**wrong))
    steering.refuse(trainer_of_lightning())


def test_lightning_finds_no_callback_without_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTDT_JOB", raising=False)
    assert lightning.callbacks() == lightning.callbacks_of_pytorch_lightning() == []
    monkeypatch.setenv("ANTDT_JOB", "j")
    watching = lightning.Watching()
    watching.on_train_start(SimpleNamespace(strategy=SimpleNamespace(antdt_steered=True)), None)
    assert watching.watch is None, "an Agent tells it itself"


# -- torchtitan


class Titan:
    """A loader that keeps to the documented protocol."""

    def __init__(self) -> None:
        self.at, self.closed = 0, False

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.at += 1
            yield {"input": torch.full((2, 3), self.at)}, torch.full((2, 3), self.at + 1)

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]

    def close(self) -> None:
        self.closed = True


def test_what_titan_s_batches_hold_is_hashed_and_its_state_stays_its_own() -> None:
    one, same, other = (torchtitan.Noted(Titan()) for _ in range(3))
    assert one.lineage == ROOT
    for loader, count in ((one, 5), (same, 5), (other, 4)):
        for _, _ in zip(range(count), loader, strict=False):
            loader.took()
    assert one.lineage == same.lineage != other.lineage
    assert one.state_dict() == one.inner.state_dict() == {"at": 5}
    other.load_state_dict({"at": 9})
    other.close()
    assert (other.inner.at, other.inner.closed) == (9, True)


def test_titan_is_watched_and_never_steered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 1)
    optimizer, loader = torch.optim.SGD(model.parameters(), 0.1), Titan()
    trainer = SimpleNamespace(model_parts=[model], optimizers=[optimizer], dataloader=loader, step=7)
    monkeypatch.delenv("ANTDT_JOB", raising=False)
    assert torchtitan.watch(trainer) is None
    assert trainer.dataloader is loader
    found = SimpleNamespace(measuring=SimpleNamespace(), reporter=SimpleNamespace(telemetry=SimpleNamespace()))
    monkeypatch.setattr(torchtitan, "watch_loop", lambda *_, step: found if step == 7 else None)
    torchtitan.watch(trainer)
    assert trainer.dataloader is found.measuring.order
    assert found.reporter.telemetry.order == "Titan, by what its batches hold"
    with pytest.raises(UsageError, match="watch it"):
        torchtitan.steer(trainer)
