"""torchtitan: watched by one line behind its Trainer's construction.

    trainer = config.build(); antdt.torchtitan.watch(trainer); trainer.train()

Written against torchtitan 0.3's Trainer (`model_parts`, `optimizers`, `dataloader`, `step`) and its loaders'
`BaseDataLoader` (`__iter__`, `state_dict`, `load_state_dict`, `close`), and imports nothing of it. Its models
are spread over processes, so no Agent steps them: it is watched only. Must not know how a step is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from antdt_schemas.errors import UsageError

from antdt.watching import Watch
from antdt.watching import watch as watch_loop
from antdt.watching.order import ROOT


def watch(trainer: Any) -> Watch | None:
    """Watch a Trainer that is about to train. Returns None where nothing is watched. Its checkpoints stay as they are:
    the rolling hash of the batches that its loader gives begins with the process.
    """
    found = watch_loop(trainer.model_parts[0], list(trainer.optimizers), step=int(getattr(trainer, "step", 0)))
    if found is not None:
        trainer.dataloader = loader = Noted(trainer.dataloader)
        found.measuring.order = loader
        found.reporter.telemetry.order = f"{type(loader.inner).__name__}, by what its batches hold"
    return found


def steer(*_: Any, **__: Any) -> NoReturn:
    """Refused."""
    raise UsageError(
        "torchtitan spreads the model over processes (FSDP2, tensor and pipeline parallel) and steps it by itself, and "
        "the Agent steps whole models: watch it, antdt.torchtitan.watch(trainer)."
    )


class Noted:
    """A loader, and the rolling hash of the batches that it has given. What draws them is not known from outside, so
    each is told by what is in it: 16 bytes, of the hash before and the bytes of all tensors, in their order.
    """

    def __init__(self, inner: Any) -> None:
        self.inner, self.lineage = inner, ROOT

    def __iter__(self) -> Iterator[Any]:
        for batch in self.inner:
            self.lineage = follow(self.lineage, batch)
            yield batch

    def took(self) -> None:
        """A batch is trained on: the loop asks for no other one before that."""

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)


def follow(lineage: bytes, batch: Any) -> bytes:
    """The rolling hash behind one more batch."""
    digest = hashlib.blake2b(lineage, digest_size=16)
    for tensor in tensors_of(batch):
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.digest()


def tensors_of(batch: Any) -> Iterator[torch.Tensor]:
    """All of a batch, those of a mapping in the order of their names."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, dict):
        for name in sorted(batch):
            yield from tensors_of(batch[name])
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from tensors_of(part)
