"""Models, their optimizers and losses, of the habits in `bench.habit_scripts`.

A build is a function that returns a model, its optimizer or several, and further arguments of the Agent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import antdt
import torch
from antdt.data.seeding import seed_sample
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.utils.data import Dataset, WeightedRandomSampler

from bench.habit_loops import BATCH, DEVICE, SAMPLES, STEPS_PER_EPOCH, Single, tensors

# -- models


def mlp() -> nn.Module:
    """6 features to 3 classes."""
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(DEVICE)


def sgd(model: Any, **words: Any) -> Any:
    """What a build returns."""
    model = model.to(DEVICE)
    return model, torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9), words


def build(**words: Any) -> Callable[[], Any]:
    """The plain model, and further arguments of the Agent."""
    return lambda: sgd(mlp(), **words)


def scheduled(schedule: Callable[[Any], Any], **words: Any) -> Callable[[], Any]:
    """With a scheduler of its optimizer."""

    def made() -> Any:
        model, optimizer, _ = sgd(mlp())
        return model, optimizer, {"scheduler": schedule(optimizer), **words}

    return made


def warm_up_cosine_average() -> Any:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    phases = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10), lr_scheduler.CosineAnnealingLR(optimizer, 50)]
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    words = {"scheduler": lr_scheduler.SequentialLR(optimizer, phases, [10]), "state": {"average": average}}
    return model, optimizer, words


def scaled() -> Any:
    """Its scale is far too large at first, and falls."""
    model, optimizer, _ = sgd(mlp())
    scaler = torch.amp.GradScaler(DEVICE.type, 2.0**127, backoff_factor=2.0**-20, growth_interval=1000)
    return model, optimizer, {"scaler": scaler, "clip_grad_norm": 0.5}


def two_optimizers() -> Any:
    model = mlp()
    optimizers = [torch.optim.AdamW(model[0].parameters(), 0.01), torch.optim.SGD(model[2].parameters(), 0.1)]
    return model, optimizers, {"scheduler": [lr_scheduler.ExponentialLR(one, 0.97) for one in optimizers]}


def gan() -> Any:
    critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    group = antdt.Group(generator=nn.Linear(4, 6), critic=critic).to(DEVICE)
    optimizers = [torch.optim.Adam(one.parameters(), 0.01, betas=(0.5, 0.9)) for one in (group.generator, group.critic)]
    return group, optimizers, {}


def frozen() -> Any:
    model, optimizer, _ = sgd(mlp())
    model[0].requires_grad_(False)
    return model, optimizer, {}


def tied() -> Any:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    return sgd(model)


def batch_norm() -> Any:
    return sgd(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)))


def weighted_sampler() -> Any:
    weights = torch.arange(1, SAMPLES + 1, dtype=torch.float64)
    return sgd(mlp(), sampler=WeightedRandomSampler(weights, SAMPLES))


def bucketed() -> Any:
    """Samples of one length come together, in an order that is drawn."""

    def order(epoch: int, generator: torch.Generator) -> list[int]:
        drawn = torch.randperm(SAMPLES, generator=generator)
        return [int(one) for one in drawn[torch.sort(drawn % 4, stable=True).indices]]

    return sgd(mlp(), sampler=order)


def checkpointed() -> Any:
    """With checkpoints to go back to."""
    model, optimizer, words = warm_up_cosine_average()
    return model, optimizer, {**words, "options": antdt.AgentOptions(checkpoint_every_steps=15)}


# -- mixup: in a batch of one worker, in a data set, and over the batch of all workers


def classes() -> tuple[torch.Tensor, torch.Tensor]:
    """Features of all samples, and classes as shares of three."""
    x, y = tensors()
    return x, functional.one_hot(y, 3).float()


def mixture(one: Any, other: Any, share: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of two samples, or of the rows of two batches: features, and shares of classes."""
    (x, y), (x_other, y_other) = one, other
    return share * x + (1 - share) * x_other, share * y + (1 - share) * y_other


def mixed(samples: list[Any]) -> Any:
    """A batch whose samples are mixed with each other, their numbers, and what was drawn: their others and shares."""
    x, y, numbers = (torch.stack(part) for part in zip(*samples, strict=True))
    others, share, y = torch.randperm(len(x)), torch.rand(()), functional.one_hot(y, 3).float()
    return *mixture((x, y), (x[others], y[others]), share), numbers, numbers[others], share.expand(len(x))


def as_drawn(single: Single, samples: list[int]) -> Any:
    """The same of one process, with what workers have drawn."""
    x, y = classes()
    others, shares = zip(*(single.said[single.step][sample] for sample in samples), strict=True)
    return mixture((x[samples], y[samples]), (x[list(others)], y[list(others)]), torch.tensor(shares)[:, None])


def mixup() -> Any:
    model, optimizer, words = warm_up_cosine_average()
    return model, optimizer, {**words, "collate_fn": mixed}


class Mixing(Dataset[Any]):  # type: ignore[misc]
    """Mixes each sample with another one of the whole data set, as it draws."""

    def __init__(self) -> None:
        self.x, self.y = classes()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        other, share = int(torch.randint(SAMPLES, ())), torch.rand(())
        pair = (self.x[index], self.y[index]), (self.x[other], self.y[other])
        return *mixture(*pair, share), torch.tensor(index)


def as_seeded(single: Single, samples: list[int]) -> Any:
    """The same of one process: a data process draws by the job's seed, epoch and position."""
    whole, rows = Mixing(), []
    epoch, at = divmod(single.step - 1, STEPS_PER_EPOCH)
    for position, sample in enumerate(samples, at * BATCH):
        seed_sample(0, epoch, position)
        rows.append(whole[sample][:2])
    x, y = zip(*rows, strict=True)
    return torch.stack(x), torch.stack(y)


def mixup_in_data() -> Any:
    model, optimizer, words = warm_up_cosine_average()
    return model, optimizer, {**words, "num_workers": 1}


def mixed_at(step: int, x: torch.Tensor, y: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch of all workers. What is drawn follows from the step and the samples in it, whoever has which of them:
    in a circle that goes by their numbers, each is mixed with the one that is so many behind it.
    """
    generator = torch.Generator().manual_seed(step)
    distance, share = int(torch.randint(len(x), (), generator=generator)), torch.rand((), generator=generator)
    order = numbers.argsort().to(x.device)
    others = order.roll(distance)[order.argsort()]
    y = functional.one_hot(y, 3).float()
    return mixture((x, y), (x[others], y[others]), share)


class Recurrent(nn.Module):  # type: ignore[misc]
    """A state goes in, and comes out again as `state`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.state = nn.GRUCell(6, 8), nn.Linear(8, 3), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.body(x, self.state)
        self.state = state.detach()
        return self.head(state)


def distributed() -> Any:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return sgd(nn.parallel.DistributedDataParallel(mlp()))


def sync_batch_norm() -> Any:
    return sgd(nn.SyncBatchNorm.convert_sync_batchnorm(batch_norm()[0]))


def dropout() -> Any:
    return sgd(nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 3)))


# -- losses: of model, x, y


def cross_entropy(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(x), y)


def lengths(y: torch.Tensor) -> torch.Tensor:
    """Targets of "tokens": so many of each sample count, perhaps none."""
    tokens = torch.arange(4, device=y.device).expand(len(y), 4)
    return torch.where(tokens < y[:, None] * 2, tokens % 3, -100)


def token_mean(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = model(x)[:, None].expand(-1, 4, -1).reshape(-1, 3)
    return functional.cross_entropy(out, lengths(y).reshape(-1), ignore_index=-100)


def penalty(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    out = model(x)
    (grads,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return functional.cross_entropy(out, y) + 0.1 * ((grads.norm(dim=1) - 1) ** 2).mean()


def contrast(queries: torch.Tensor, keys: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(functional.normalize(queries, dim=1) @ functional.normalize(keys, dim=1).T, target)


def critic_loss(group: Any, x: torch.Tensor) -> torch.Tensor:
    fake = group.critic(group.generator(x[:, :4].cos()).detach())
    return functional.softplus(-group.critic(x)).mean() + functional.softplus(fake).mean()


def generator_loss(group: Any, x: torch.Tensor) -> torch.Tensor:
    return functional.softplus(-group.critic(group.generator(x[:, :4].cos()))).mean()


def packed(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of each sample as many rows as its class says, one behind the other: another number of them in every step."""
    return functional.cross_entropy(model(x.repeat_interleave(1 + y, 0)), y.repeat_interleave(1 + y))


def of_those_found(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A sum over all, divided by how many there are of one class, or by one."""
    return functional.cross_entropy(model(x), y, reduction="sum") / max(1, int((y == 2).sum()))


def root_of_mean(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(model(x), functional.one_hot(y, 3).float()).sqrt()


def overlap(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out, wanted = model(x).softmax(1), functional.one_hot(y, 3)
    return 1 - (2 * (out * wanted).sum() + 1) / (out.sum() + wanted.sum() + 1)


def above(model: Any, x: torch.Tensor, y: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
    return (functional.cross_entropy(model(x), y, reduction="none") * reward.sigmoid()).mean()


def of_the_hardest(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    each = functional.cross_entropy(model(x), y, reduction="none")
    return (each * (each > each.detach().quantile(0.5))).mean()


def sum_of_losses(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(x), y, reduction="sum")


def two_terms(model: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two sums, over all samples and over those of the later classes, and how many these are."""
    out = model(x)
    later = y > 0
    return functional.cross_entropy(out, y, reduction="sum"), out.square().sum(1)[later].sum(), later.sum()


def means_of_terms(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The same as a loss: each is divided by what this worker has of it."""
    first, second, later = two_terms(model, x, y)
    return first / len(x) + 0.1 * second / later
