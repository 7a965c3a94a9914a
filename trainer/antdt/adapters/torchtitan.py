"""torchtitan: watched by one line behind its Trainer's construction.

    trainer = config.build(); antdt.torchtitan.watch(trainer); trainer.train()

Written against what torchtitan documents of its Trainer (`model_parts`, `optimizers`, `dataloader`, `step`) and of its
loaders (`BaseDataLoader`: `__iter__`, `state_dict`, `load_state_dict`, `close`), and imports nothing of it. Its models
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

STATE = "antdt"


def watch(trainer: Any) -> Watch | None:
    """Watch a Trainer that is about to train. Steps are counted from `trainer.step` on; the rolling hash of the batches
    that its loader gives goes on where the checkpoint has left it. Returns None where nothing is watched.
    """
    found = watch_loop(trainer.model_parts[0], list(trainer.optimizers), step=int(getattr(trainer, "step", 0)))
    if found is not None:
        trainer.dataloader = loader = Noted(trainer.dataloader)
        states = getattr(getattr(trainer, "checkpointer", None), "states", None)
        if isinstance(states, dict) and "dataloader" in states:
            states["dataloader"] = loader
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

    def state_dict(self) -> dict[str, Any]:
        """That of the loader, with the hash beside it."""
        return {**self.inner.state_dict(), STATE: {"lineage": self.lineage.hex()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there; a state of before it was watched begins anew."""
        state = dict(state)
        self.lineage = bytes.fromhex(state.pop(STATE, {}).get("lineage", ROOT.hex()))
        self.inner.load_state_dict(state)

    def close(self) -> None:
        if hasattr(self.inner, "close"):
            self.inner.close()

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
