"""docs/SCRIPTS.md: every habit before and after, run as it stands there, with one process and with two workers: the
parameters in the end are the same.
"""

from __future__ import annotations

import copy
import re
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from antdt.job import AgentOptions
from antdt.strategies.together import Group
from torch import nn
from torch.utils.data import TensorDataset

from tests.helpers.scripts import PATIENCE_S, InProcess, Room

PAGE = (Path(__file__).parents[2] / "docs" / "SCRIPTS.md").read_text(encoding="utf-8")
HABITS = dict(re.findall(r"^## ([^\n]+)\n+```python before\n(.*?)^```", PAGE, re.M | re.S))
AFTER = re.findall(r"^```python after\n(.*?)^```", PAGE, re.M | re.S)
SAMPLES, EPOCHS, BATCH = 150, 3, 64


def names_of(block: str) -> dict[str, Any]:
    """What a script has before its loop."""
    torch.manual_seed(1)
    x = torch.randn(SAMPLES, 6, dtype=torch.float64)
    dataset = TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    generator, critic = nn.Linear(6, 6).double(), nn.Linear(6, 1).double()
    if "requires_grad_(True)" in block:
        model[0].requires_grad_(False)
    sgd = torch.optim.SGD

    def critic_loss(x: torch.Tensor) -> torch.Tensor:
        return (critic(generator(x.cos()).detach()) - critic(x)).tanh().mean()

    def generator_loss(x: torch.Tensor) -> torch.Tensor:
        return -critic(generator(x.cos())).tanh().mean()

    return {
        "torch": torch, "dataset": dataset, "model": model, "optimizer": sgd(model.parameters(), 0.2, momentum=0.9),
        "loss_function": nn.functional.cross_entropy, "steps": 10, "evaluate": lambda _: 0.0, "critic": critic,
        "copy": copy,
        "weights": torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64), "generator": generator,
        "critic_loss": critic_loss, "generator_loss": generator_loss,
        "critic_optimizer": sgd(critic.parameters(), 0.1), "generator_optimizer": sgd(generator.parameters(), 0.1),
    }  # fmt: skip


def held(names: dict[str, Any]) -> list[torch.Tensor]:
    """What was trained."""
    average = names.get("average", names["model"])
    modules = names["model"], names["generator"], names["critic"], average, names.get("teacher", average)
    return [param.detach() for module in modules for param in module.parameters()]


def workers(block: str) -> list[dict[str, Any]]:
    """Two of them run it."""
    room, ends, errors = Room(["w0", "w1"]), [], list[BaseException]()

    def make(name: str) -> dict[str, Any]:
        names = names_of(block)

        def agent(model: Any, optimizer: Any, dataset: Any, options: Any = None, **words: Any) -> InProcess:
            parts = -(-BATCH // options.micro_batch_size_max) if options is not None else 1
            one = InProcess(room, name, model, optimizer, dataset, accumulation=parts, **words)
            names["agents"].append(one)
            return one

        return names | {
            "antdt": SimpleNamespace(Agent=agent, Group=Group, AgentOptions=AgentOptions),
            "agents": names.setdefault("agents", []),
        }

    def run(names: dict[str, Any]) -> None:
        try:
            exec(block, names)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            traceback.clear_frames(error.__traceback__)
            errors.append(error)

    ends = [make(name) for name in room.expected]
    threads = [threading.Thread(target=run, args=(names,), daemon=True) for names in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a worker hangs"
    for names in ends:
        names["agents"][0].strategy.detach()
    if errors:
        raise errors[0]
    return ends


def alone(block: str, of: InProcess) -> dict[str, Any]:
    """One process, with the same global batches."""
    names, steps = names_of(block), of.steps_per_epoch
    batches = [of.loader.fetch([of.global_ranges(step)]) for step in range(steps * EPOCHS)]

    def loaders() -> Iterator[list[Any]]:
        for epoch in range(EPOCHS):
            yield batches[epoch * steps : (epoch + 1) * steps]

    each = loaders()

    def train(_: int) -> None:
        for x, y in next(each):
            names["optimizer"].zero_grad()
            names["loss_function"](names["model"](x), y).backward()
            names["optimizer"].step()

    names |= {"loader": batches, "DataLoader": lambda *_, **__: next(each), "train": train}
    exec(block, names)
    return names


def test_every_block_is_run_here() -> None:
    assert len(HABITS) == len(AFTER) == PAGE.count("```") // 4
    assert len(HABITS) > 10


@pytest.mark.parametrize(("habit", "after"), zip(HABITS, AFTER, strict=True), ids=list(HABITS))
def test_a_habit_before_and_after(habit: str, after: str) -> None:
    ends = workers(after)
    reference = alone(HABITS[habit], ends[0]["agents"][0])
    first, second, expected = held(ends[0]), held(ends[1]), held(reference)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-9)
    before = held(names_of(after))
    assert any(not torch.equal(one, other) for one, other in zip(before, expected, strict=False)), "nothing was trained"
