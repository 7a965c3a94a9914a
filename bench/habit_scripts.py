"""Habits of training scripts, each as a job has it and as one process has it: what `bench.habits` runs.

antdt launch --job JOB -n 3 -- -m bench.habit_scripts NAME --record DIR
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import antdt
import torch
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler

from bench.common import tell_nccl_apart
from bench.habit_loops import DEVICE, EPOCHS, INTERRUPTED, ROLLED_BACK, SEED, STEPS, Habit, Single, Worker, tensors
from bench.habit_models import (
    Mixing,
    Recurrent,
    above,
    as_drawn,
    as_seeded,
    batch_norm,
    bucketed,
    build,
    checkpointed,
    contrast,
    critic_loss,
    cross_entropy,
    distributed,
    dropout,
    frozen,
    gan,
    generator_loss,
    lengths,
    means_of_terms,
    mixed_at,
    mixup,
    mixup_in_data,
    of_the_hardest,
    of_those_found,
    overlap,
    packed,
    penalty,
    root_of_mean,
    scaled,
    scheduled,
    sgd,
    sum_of_losses,
    sync_batch_norm,
    tied,
    token_mean,
    two_optimizers,
    two_terms,
    warm_up_cosine_average,
    weighted_sampler,
)
from bench.habit_teachers import (
    bound,
    bounded,
    bounded_alone,
    clamped_behind,
    taught,
    teaching,
    teaching_alone,
    teaching_beside,
    teaching_in_loop,
)

CLASSES = torch.tensor([1.0, 5.0, 0.5])


# -- scripts: of a Worker, and the same of a Single


def by_loss(loss: Callable[..., Any] = cross_entropy, weight: Any = None, reduction: Any = "mean") -> Any:
    """The usual loop: one loss of each batch."""

    def script(worker: Worker) -> None:
        for x, y in worker.batches():
            given = {} if weight is None else {"weight": weight(y)}
            worker.agent.step(loss(worker.model, x, y), reduction=reduction, **given)

    def alone(single: Single) -> None:
        for x, y in single.batches():
            single.zero()
            single.backward(loss(single.model, x, y))
            single.apply()
            single.over()

    return script, alone


def nested(stops: bool) -> Any:
    """Epochs, with a mean over all workers at the end of each, and an early end if that says so."""

    def script(worker: Worker) -> None:
        agent, best = worker.agent, float("inf")
        x, y = tensors()
        for epoch in agent.epochs():
            for batch in worker.batches(epoch):
                agent.step(cross_entropy(worker.model, *batch))
            with torch.no_grad():
                loss = agent.all_reduce(float(cross_entropy(worker.model, x.to(DEVICE), y.to(DEVICE))), "mean")
            worse, best = loss > best, min(best, loss)
            if stops and (worse or epoch.number == EPOCHS - 2):
                agent.stop("the loss is as good as it has to be")
                break

    return script, by_loss()[1]


def two_backwards(worker: Worker) -> None:
    for x, y in worker.batches():
        out = worker.model(x)
        worker.agent.backward(functional.cross_entropy(out, y), retain_graph=True)
        worker.agent.backward(0.01 * out.square().mean())
        worker.agent.apply()


def two_backwards_alone(single: Single) -> None:
    for x, y in single.batches():
        single.zero()
        out = single.model(x)
        (functional.cross_entropy(out, y) + 0.01 * out.square().mean()).backward()
        single.apply()


def changed_gradient(worker: Worker) -> None:
    for x, y in worker.batches():
        worker.agent.backward(cross_entropy(worker.model, x, y))
        if worker.agent.reduce():
            worker.model[0].weight.grad *= 0.5
            nn.utils.clip_grad_value_(worker.model.parameters(), 0.05)
        worker.agent.apply()


def changed_gradient_alone(single: Single) -> None:
    for x, y in single.batches():
        single.zero()
        cross_entropy(single.model, x, y).backward()
        single.model[0].weight.grad *= 0.5
        nn.utils.clip_grad_value_(single.model.parameters(), 0.05)
        single.apply()


def adversaries(worker: Worker) -> None:
    generator, critic = worker.optimizer
    for x, _ in worker.batches():
        worker.agent.backward(critic_loss(worker.model, x))
        worker.agent.apply(critic)
        worker.agent.backward(generator_loss(worker.model, x))
        worker.agent.apply(generator)


def adversaries_alone(single: Single) -> None:
    generator, critic = single.optimizers
    for x, _ in single.batches():
        for loss, optimizer in ((critic_loss, critic), (generator_loss, generator)):
            single.zero()
            loss(single.model, x).backward()
            optimizer.step()


def negatives(worker: Worker) -> None:
    agent = worker.agent
    for x, _ in worker.batches():
        queries, keys = worker.model(x + 0.1), agent.gather(worker.model(x))
        own = agent.own_rows
        agent.step(contrast(queries, keys, torch.arange(own.start, own.stop, device=x.device)))


def mixing(worker: Worker) -> None:
    agent = worker.agent
    for batch in worker.batches():
        x, y, numbers = map(agent.gather, (*batch, worker.numbers))
        x, y = mixed_at(agent.step_number, x, y, numbers)
        agent.step(cross_entropy(worker.model, x[agent.own_rows], y[agent.own_rows]))


def mixing_rows(worker: Worker) -> None:
    """By where rows are, not by whose they are."""
    agent = worker.agent
    for batch in worker.batches():
        x, y = map(agent.gather, batch)
        x, y = mixed_at(agent.step_number, x, y, torch.arange(len(x)))
        agent.step(cross_entropy(worker.model, x[agent.own_rows], y[agent.own_rows]))


def unfreezing(worker: Worker) -> None:
    for x, y in worker.batches():
        if worker.agent.step_number == 20:
            worker.model[0].requires_grad_(True)
        worker.agent.step(cross_entropy(worker.model, x, y))


def unfreezing_alone(single: Single) -> None:
    for x, y in single.batches():
        if single.step == 21:
            single.model[0].requires_grad_(True)
        single.zero()
        cross_entropy(single.model, x, y).backward()
        single.apply()


def not_finite(worker: Worker) -> None:
    for x, y in worker.batches():
        loss = cross_entropy(worker.model, x, y)
        if not torch.isfinite(loss):
            worker.agent.skip("its loss is not finite")
            continue
        worker.agent.step(loss)


def not_finite_alone(single: Single) -> None:
    for x, y in single.batches():
        loss = cross_entropy(single.model, x, y)
        if torch.isfinite(loss):
            single.zero()
            loss.backward()
            single.apply()
        single.over()


def two_denominators(worker: Worker) -> None:
    agent = worker.agent
    for x, y in worker.batches():
        first, second, count = two_terms(worker.model, x, y)
        samples, later = agent.all_reduce(len(x)), agent.all_reduce(count)
        agent.step(first / samples + 0.1 * second / later, reduction="sum")


def two_denominators_alone(single: Single) -> None:
    for x, y in single.batches():
        single.zero()
        first, second, later = two_terms(single.model, x, y)
        (first / len(x) + 0.1 * second / later).backward()
        single.apply()


def common_baseline(worker: Worker) -> None:
    """The samples of all workers are in it; and a metric is of this worker's."""
    agent, seen = worker.agent, list[Any]()
    for x, y in worker.batches():
        reward = x.sum(1)
        loss = above(worker.model, x, y, reward - agent.gather(reward).mean())
        seen.append(((reward > reward.median()).float().mean(), loss / reward.std()))
        agent.step(loss)


def common_baseline_alone(single: Single) -> None:
    for x, y in single.batches():
        single.zero()
        reward = x.sum(1)
        above(single.model, x, y, reward - reward.mean()).backward()
        single.apply()


def reduced_baseline(worker: Worker) -> None:
    """As a sum over a number, of all workers each; and what is only logged."""
    agent, seen = worker.agent, list[Any]()
    for x, y in worker.batches():
        seen.append(agent.all_reduce(len(x), of="batch"))
        reward = x.sum(1)
        baseline = agent.all_reduce(reward.sum()) / agent.all_reduce(len(x))
        loss = above(worker.model, x, y, reward - baseline)
        agent.step(loss)
        seen.append(agent.all_reduce(loss.detach(), "mean"))


# -- what is refused: the call that is too many, behind or before agent.step


def beside(before: Callable[[Worker, Any], Any] | None = None, after: Callable[[Worker], Any] | None = None) -> Any:
    def script(worker: Worker) -> None:
        for x, y in worker.batches():
            if before is not None:
                before(worker, x)
            worker.agent.step(cross_entropy(worker.model, x, y))
            if after is not None:
                after(worker)

    return script, None


def own_scheduler(worker: Worker) -> None:
    schedule = lr_scheduler.StepLR(worker.optimizer, 10)
    beside(after=lambda _: schedule.step())[0](worker)


def own_clipping(worker: Worker) -> None:
    for x, y in worker.batches():
        worker.agent.backward(cross_entropy(worker.model, x, y))
        nn.utils.clip_grad_norm_(worker.model.parameters(), 1.0)
        worker.agent.apply()


def alone_all_reduce(worker: Worker) -> None:
    for x, y in worker.batches():
        if worker.agent.rank == 0:
            worker.agent.all_reduce(1)
        worker.agent.step(cross_entropy(worker.model, x, y))


# -- the table

USUAL, PLAIN = by_loss(), build()
HABITS: dict[str, Habit] = {
    "plain": Habit(USUAL, PLAIN),
    "scheduler-per-step": Habit(USUAL, scheduled(lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=STEPS))),
    "scheduler-per-epoch": Habit(USUAL, scheduled(lambda o: lr_scheduler.StepLR(o, 1, 0.5), scheduler_every="epoch")),
    "warm-up-cosine-ema": Habit(USUAL, warm_up_cosine_average),
    "clipping": Habit(USUAL, build(clip_grad_norm=0.1)),
    "grad-scaler": Habit(USUAL, scaled),
    "token-mean": Habit(by_loss(token_mean, lambda y: (lengths(y) != -100).sum()), PLAIN),
    "class-weights": Habit(
        by_loss(
            lambda m, x, y: functional.cross_entropy(m(x), y, weight=CLASSES.to(x.device)),
            lambda y: CLASSES.to(y.device)[y].sum(),
        ),
        PLAIN,
    ),
    "sum": Habit(by_loss(lambda m, x, y: 0.02 * sum_of_losses(m, x, y), reduction="sum"), PLAIN),
    "two-backwards": Habit((two_backwards, two_backwards_alone), PLAIN),
    "changed-gradient": Habit((changed_gradient, changed_gradient_alone), PLAIN),
    "gradient-penalty": Habit(by_loss(penalty), PLAIN),
    "two-optimizers": Habit(USUAL, two_optimizers),
    "gan": Habit((adversaries, adversaries_alone), gan),
    "in-batch-negatives": Habit(
        (negatives, by_loss(lambda m, x, y: contrast(m(x + 0.1), m(x), torch.arange(len(x), device=x.device)))[1]),
        PLAIN,
    ),
    "weighted-sampler": Habit(USUAL, weighted_sampler),
    "data-loader": Habit(USUAL, build(batch_size=None), loader=True),
    "batch-norm": Habit(
        USUAL, batch_norm, differs="each worker normalises by its own part of the batch, one process by the whole"
    ),
    "unfrozen-layers": Habit((unfreezing, unfreezing_alone), frozen),
    "tied-weights": Habit(USUAL, tied),
    "two-denominators": Habit((two_denominators, two_denominators_alone), PLAIN),
    "micro-batches": Habit(USUAL, build(options=antdt.AgentOptions(micro_batch_size_max=4))),
    "dropout": Habit(USUAL, dropout, differs="each worker draws numbers of its own"),
    "nan-skip": Habit((not_finite, not_finite_alone), PLAIN, bad=True),
    "early-stopping": Habit(nested(stops=True), PLAIN),
    "nested-epochs": Habit(nested(stops=False), PLAIN),
    "packed": Habit(by_loss(packed), PLAIN),
    "bucketed": Habit(USUAL, bucketed),
    "mixup": Habit(USUAL, mixup, batch=as_drawn),
    "mixup-in-data": Habit(USUAL, mixup_in_data, whole=Mixing, batch=as_seeded),
    "mixup-by-step": Habit(
        (mixing, USUAL[1]),
        warm_up_cosine_average,
        batch=lambda single, which: mixed_at(single.step - 1, *(one[which] for one in tensors()), torch.tensor(which)),
    ),
    "mixup-by-row": Habit(
        (mixing_rows, USUAL[1]),
        warm_up_cosine_average,
        batch=lambda single, which: mixed_at(
            single.step - 1, *(one[which] for one in tensors()), torch.arange(len(which))
        ),
    ),
    "interrupted": Habit(USUAL, warm_up_cosine_average, befalls=INTERRUPTED),
    "rolled-back": Habit(USUAL, checkpointed, befalls=ROLLED_BACK),
    "truncated-backpropagation": Habit(USUAL, lambda: sgd(Recurrent()), refused=True),
    "root-of-mean": Habit(by_loss(root_of_mean), PLAIN, refused=True),
    "common-baseline": Habit((common_baseline, common_baseline_alone), PLAIN),
    "reduced-baseline": Habit((reduced_baseline, common_baseline_alone), PLAIN),
    "teacher": Habit((teaching, teaching_alone), taught),
    "teacher-in-loop": Habit((teaching_in_loop, None), taught, refused=True),
    "teacher-beside": Habit((teaching_beside, None), PLAIN, refused=True),
    "bounded": Habit((bounded, bounded_alone), PLAIN),
    "bounded-in-loop": Habit(beside(after=lambda w: bound(w.model)), PLAIN, refused=True),
    "clamped-gradient": Habit(USUAL, clamped_behind, refused=True),
    "clamped-count": Habit(by_loss(of_those_found), PLAIN, refused=True),
    "hard-examples": Habit(by_loss(of_the_hardest), PLAIN, refused=True),
    "overlap": Habit(by_loss(overlap), PLAIN, refused=True),
    "denominators-unsaid": Habit(by_loss(means_of_terms), PLAIN, refused=True),
    "sum-unsaid": Habit(by_loss(lambda m, x, y: m(x).square().sum()), PLAIN, refused=True),
    "lone-call": Habit((alone_all_reduce, None), PLAIN, refused=True),
    "scheduler-in-loop": Habit((own_scheduler, None), PLAIN, refused=True),
    "clipping-in-loop": Habit((own_clipping, None), PLAIN, refused=True),
    "optimizer-step": Habit(beside(after=lambda w: w.optimizer.step()), PLAIN, refused=True),
    "backward-beside": Habit(beside(before=lambda w, x: w.model(x).square().mean().backward()), PLAIN, refused=True),
    "summed-loss": Habit(by_loss(sum_of_losses), PLAIN, refused=True),
    "ddp-wrapped": Habit(USUAL, distributed, refused=True),
    "sync-batch-norm": Habit(USUAL, sync_batch_norm, refused=True),
}


def main() -> None:
    """Be one worker of a job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=HABITS)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--calm", action="store_true", help="nobody is killed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tell_nccl_apart(os.environ.get("ANTDT_WORKER", ""))
    torch.manual_seed(SEED)
    habit = HABITS[options.name]
    habit.scripts[0](Worker(habit, options.record, kills=not options.calm))


if __name__ == "__main__":
    main()
