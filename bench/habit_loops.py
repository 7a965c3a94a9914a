"""The loop of a habit, in a worker of a job and in one process: `bench.habit_scripts` has the habits themselves.

A worker appends to a file which samples it has in which step, and after the step a hash of the model and its
parameters. The first life of one of them is ended by SIGKILL, with a batch at hand.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import antdt
import torch
from antdt.examples.recorded import Record
from antdt.strategies.allreduce.options import GenerationOptions
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SEED, SAMPLES, BATCH, EPOCHS = 5, 600, 30, 3
ENV_DEVICE, ENV_BACKEND = "BENCH_DEVICE", "BENCH_BACKEND"
DEVICE = torch.device(os.environ.get(ENV_DEVICE, "cpu"))  # of models and batches; data lie in CPU memory
STEPS_PER_EPOCH = SAMPLES // BATCH
STEPS = EPOCHS * STEPS_PER_EPOCH
KILLED_BEHIND, KILLED = 12, "w1"
INTERRUPTED, ROLLED_BACK = "interrupted", "rolled back"
BEFALLS_BEHIND = {INTERRUPTED: 27, ROLLED_BACK: 43}  # steps: within the second epoch, behind the second
STEP_S, ALONE_S = 0.01, 0.15  # what a step takes; while what is to come is not over yet
BAD = 7  # the sample that is no number, where there is one


def tensors(*, bad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Six features and one of three classes of every sample."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, 6, generator=generator)
    y = (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    if bad:
        x[BAD] = float("nan")
    return x, y


def data(*, bad: bool = False) -> TensorDataset:
    """With the number of each sample."""
    return TensorDataset(*tensors(bad=bad), torch.arange(SAMPLES))


def strategy() -> antdt.AllReduce:
    """That of all habits."""
    backend: Any = os.environ.get(ENV_BACKEND, "gloo")
    return antdt.AllReduce(generation=GenerationOptions(backend=backend))


def all_of(model: Any, words: Mapping[str, Any]) -> list[Any]:
    """The model, and an average of it, where a habit has one."""
    return [model, *words.get("state", {}).values()]


def flat(models: Iterable[Any]) -> torch.Tensor:
    """All parameters, one after the other."""
    return torch.cat([param.detach().reshape(-1) for model in models for param in model.parameters()]).cpu()


def hashed(models: Iterable[Any]) -> str:
    """Of parameters and buffers, to the bit."""
    whole = hashlib.blake2b(digest_size=8)
    for model in models:
        for name, value in model.state_dict().items():
            whole.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


@dataclass(frozen=True)
class Habit:
    """scripts: of a Worker, and of a Single. differs: why one process has something else, where it has. bad: one sample
    is no number. refused: what the script does is to be refused. loader: it has a DataLoader.

    build: model, optimizer or several, and further arguments of the Agent. whole: a data set of its own. batch: x and y
    of a step in one process, where they are not just those of its samples. befalls: what comes to the job beside the
    kill and the plan: it is INTERRUPTED and launched again, or ROLLED_BACK by its operator.
    """

    scripts: tuple[Callable[[Worker], None], Callable[[Single], None] | None]
    build: Callable[[], Any]
    bad: bool = False
    refused: bool = False
    differs: str = ""
    loader: bool = False
    whole: Callable[[], Any] | None = None
    batch: Callable[[Single, list[int]], Any] | None = None
    befalls: str = ""

    def data(self) -> Any:
        """What the Agent is given as data set."""
        whole = data(bad=self.bad) if self.whole is None else self.whole()
        return DataLoader(whole, BATCH, shuffle=True) if self.loader else whole


# -- the loop: of a worker, and of one process


class Worker:
    """The Agent of a worker, and a loop over it that writes down what it has."""

    def __init__(self, habit: Habit, folder: Path, *, kills: bool) -> None:
        self.name, self.folder = os.environ.get("ANTDT_WORKER", "w0"), folder
        self.back, self.befallen = folder / "back", folder / "befallen"
        self.first = os.environ.get("ANTDT_RESTARTS", "0") == "0" and not self.back.exists()
        self.befalls_behind = BEFALLS_BEHIND.get(habit.befalls, STEPS)
        self.record = Record(folder, self.name)
        self.model, self.optimizer, words = habit.build()
        self.words = words
        given = {"dataset": habit.data(), "batch_size": BATCH, "epochs": EPOCHS, "strategy": strategy(), **words}
        given |= {} if DEVICE.type == "cpu" or habit.loader else {"pin_memory": True}
        given = {name: value for name, value in given.items() if value is not None}
        self.agent = antdt.Agent(self.model, self.optimizer, **given)
        self.models = all_of(self.model, words)
        self.numbers = torch.empty(0)  # of the samples of the batch at hand
        self.step: int | None = None  # None: what is in the model was made before this life
        if "state" in words:
            self.agent.on_step(lambda: words["state"]["average"].update_parameters(self.model))
        self.kills = kills and not habit.refused

    def _stepped(self, number: int) -> None:
        self.record.write(changed=number, hash=hashed(self.models))

    def batches(self, of: Iterable[Any] | None = None) -> Iterator[Any]:
        """(x, y) of every batch at hand. What else a collate_fn says of each sample is written down with its number."""
        agent: Any = self.agent
        if self._stepped not in agent.strategy.once.on_step:  # behind what the script does there
            agent.on_step(self._stepped)
        for x, y, *said in agent if of is None else of:
            self._made()  # where single optimizers step, a step ends behind the loop's body
            before, generation = agent.step_number, agent.strategy.generation
            at = {"step": before + 1, "generation": generation.number, "rank": generation.rank}
            self.record.write(**at, samples=list(zip(*(one.tolist() for one in said), strict=True)))
            self._befalls(before)
            self.numbers = said[0]
            yield x.to(DEVICE, non_blocking=True), y.to(DEVICE, non_blocking=True)
            self._made()
        self._made()

    def _made(self) -> None:
        """Write down the model, if there is a step in it that was not there before."""
        step, before = self.agent.step_number, self.step
        self.step = step
        if before is not None and step > before:
            made = {"hash": hashed(self.models), "parameters": flat(self.models).tolist()}
            self.record.write(made=step, lineage=self.agent.lineage, first=self.first, **made)

    def _befalls(self, step: int) -> None:
        if not self.kills:
            return
        if self.name == KILLED:
            if self.first and step >= KILLED_BEHIND:
                os.kill(os.getpid(), signal.SIGKILL)
            if not self.first:
                self.back.touch()
        waits = step >= KILLED_BEHIND and not self.back.exists()
        waits |= step >= self.befalls_behind and not self.befallen.exists()
        time.sleep(ALONE_S if waits else STEP_S)


@dataclass
class Single:
    """A plain loop of one process over the same global batches, and its parameters after each: `history` by step.

    samples: by step, in the order in which the workers had them. said: by step and sample, what else was written down.
    """

    habit: Habit
    samples: Mapping[int, list[int]]
    said: Mapping[int, dict[int, list[Any]]]
    history: dict[int, torch.Tensor] = field(default_factory=dict)
    step: int = 0

    def __post_init__(self) -> None:
        torch.manual_seed(SEED)
        self.model, optimizer, self.words = self.habit.build()
        self.optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
        self.models = all_of(self.model, self.words)
        self.start = flat(self.models)

    def batches(self) -> Iterator[Any]:
        """(x, y) of every step."""
        inputs, targets = tensors(bad=self.habit.bad)
        batch = self.habit.batch or (lambda _, samples: (inputs[samples], targets[samples]))
        for step in sorted(self.samples):
            self.step = step
            x, y = batch(self, self.samples[step])
            yield x.to(DEVICE), y.to(DEVICE)
            self.history[step] = flat(self.models)
            self._schedule("epoch" if step % STEPS_PER_EPOCH == 0 else "")

    def zero(self) -> None:
        """No gradients."""
        for one in self.optimizers:
            one.zero_grad()

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulates."""
        scaler = self.words.get("scaler")
        (scaler.scale(loss) if scaler else loss).backward()

    def apply(self) -> None:
        """What a script does behind its last backward."""
        scaler, clip = self.words.get("scaler"), self.words.get("clip_grad_norm")
        if scaler:
            scaler.unscale_(self.optimizers[0])
        if clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        for one in self.optimizers:
            scaler.step(one) if scaler else one.step()
        if scaler:
            scaler.update()
        if "state" in self.words:
            self.words["state"]["average"].update_parameters(self.model)

    def over(self) -> None:
        """A scheduler of steps counts every one of them."""
        self._schedule("step")

    def _schedule(self, every: str) -> None:
        found = self.words.get("scheduler", [])
        if self.words.get("scheduler_every", "step") == every:
            for one in found if isinstance(found, list) else [found]:
                one.step()
