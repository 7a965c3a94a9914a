"""Gradients and models that hold a NaN or an infinity: found, and said what becomes of them.

Must not know how a step is made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from antdt_schemas.errors import NotFinite

from antdt.strategies.allreduce.buckets import all_finite
from antdt.strategies.allreduce.memory import Buffers
from antdt.strategies.allreduce.rendezvous import Generation

BACK = "Go back to a checkpoint (`antdt rollback JOB --step STEP`) with a smaller learning rate, or clip gradients."


class Finite:
    """Trained parameters, and those buffers of the state that are finite at first: a mask may be infinite by design."""

    def __init__(self, model: torch.nn.Module, buffers: Buffers) -> None:
        self.model, self.buffers = model, buffers
        self._never = {name for name, kept in buffers.kept_apart() if not all_finite([kept])}

    def check(self, step: int) -> None:
        """Raises NotFinite for a model that nobody should go back to."""
        named = [(name, param.detach()) for name, param in self.model.named_parameters() if param.requires_grad]
        if not all_finite([param for _, param in named]):
            self._refuse(step, "parameter", named)
        buffers = [(name, kept) for name, kept in self.buffers.kept_apart() if name not in self._never]
        if not all_finite([kept for _, kept in buffers]):
            self._refuse(step, "buffer", buffers)

    @staticmethod
    def _refuse(step: int, kind: str, named: Sequence[tuple[str, torch.Tensor]]) -> None:
        name = next(name for name, tensor in named if not all_finite([tensor]))
        raise NotFinite(
            f"After step {step} {kind} {name} of the model is not finite: no step mends that, and no checkpoint of it "
            "is written, so that those that there are hold finite models.",
            BACK,
        )


def gather_authors(generation: Generation, workers: Sequence[str], own_is_finite: bool) -> tuple[str, ...]:
    """Which workers' own gradients are not finite; nobody's, if only the sum is too large."""
    if generation.world == 1:
        return tuple(workers)
    found = torch.empty(generation.world, 1, dtype=torch.int64, device="cpu")
    generation.wait(generation.gather(found, torch.tensor([int(own_is_finite)], device="cpu")))
    return tuple(w for w, is_finite in zip(workers, found.flatten().tolist(), strict=True) if not is_finite)


def not_to_be_skipped(step: int, authors: Sequence[str] | None, skips_max: int | None) -> NotFinite:
    """Why a step whose gradient is not finite ends the run. authors: None if they are not known. skips_max: so many
    were in a row; None where none may be skipped.
    """
    by = "by " + ", ".join(authors) if authors else "by no worker alone, the sum overflows"
    if authors is None:
        by = "by whom is not known, as a worker ended meanwhile"
    if skips_max is None:
        said = f"The gradient of step {step} is not finite ({by}), and on_nonfinite is 'raise'."
        return NotFinite(said, f"The model is that of step {step - 1}: look at the loss there.")
    said = f"{skips_max} steps in a row up to step {step} had a gradient that is not finite (the last one {by})."
    return NotFinite(said, BACK)
