"""Habits of scripts in which something follows a step: a second model that teaches, bounds on weights and gradients.
See `bench.habit_scripts`.
"""

from __future__ import annotations

import copy
from typing import Any

import antdt
import torch
from torch.nn import functional

from bench.habit_loops import DEVICE, Single, Worker
from bench.habit_models import mlp, sgd


def taught() -> Any:
    """A model, and another one that follows it."""
    student = mlp()
    group = antdt.Group(student=student, teacher=copy.deepcopy(student).requires_grad_(False)).to(DEVICE)
    return group, torch.optim.SGD(student.parameters(), lr=0.2, momentum=0.9), {}


@torch.no_grad()
def follow(group: Any) -> None:
    for mine, theirs in zip(group.teacher.parameters(), group.student.parameters(), strict=True):
        mine.data.mul_(0.9).add_(0.1 * theirs.data)


def as_taught(group: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        wanted = group.teacher(x + 0.1).softmax(1)
    out = group.student(x)
    return functional.cross_entropy(out, y) + functional.mse_loss(out.softmax(1), wanted)


def teaching(worker: Worker) -> None:
    worker.agent.on_step(lambda: follow(worker.model))
    for x, y in worker.batches():
        worker.agent.step(as_taught(worker.model, x, y))


def teaching_alone(single: Single) -> None:
    for x, y in single.batches():
        single.zero()
        single.backward(as_taught(single.model, x, y))
        single.apply()
        follow(single.model)


def teaching_in_loop(worker: Worker) -> None:
    for x, y in worker.batches():
        worker.agent.step(as_taught(worker.model, x, y))
        follow(worker.model)


def teaching_beside(worker: Worker) -> None:
    """The Agent knows the student alone."""
    group = antdt.Group(student=worker.model, teacher=copy.deepcopy(worker.model))
    for x, y in worker.batches():
        worker.agent.step(as_taught(group, x, y))
        follow(group)


# -- weights that are kept within bounds


def bound(model: Any) -> None:
    """As a script has it behind the optimizer."""
    with torch.no_grad():
        for param in model.parameters():
            param.clamp_(-0.2, 0.2)


def bounded(worker: Worker) -> None:
    worker.agent.on_step(lambda: bound(worker.model))
    for x, y in worker.batches():
        worker.agent.step(functional.cross_entropy(worker.model(x), y))


def bounded_alone(single: Single) -> None:
    for x, y in single.batches():
        single.zero()
        single.backward(functional.cross_entropy(single.model(x), y))
        single.apply()
        bound(single.model)


def clamped_behind() -> Any:
    """Each gradient as soon as it is there."""
    model, optimizer, words = sgd(mlp())
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(lambda one: one.grad.clamp_(-0.01, 0.01))
    return model, optimizer, words
