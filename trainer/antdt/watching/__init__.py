"""Watching a loop that somebody else runs: what its steps take, and who of its workers is slow.

    antdt.watch(model, optimizer, loader)     # one line, behind what wraps them

Changes nothing in what is trained, and never waits for a broker. Without ANTDT_JOB in the environment it does nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from antdt_schemas.errors import AntdtError, UsageError

from antdt.begun import has_begun
from antdt.connect.settings import Settings
from antdt.watching.measuring import Measuring
from antdt.watching.order import Order
from antdt.watching.reporter import Reporter

__all__ = ["Watch", "watch"]

log = logging.getLogger("antdt")
_mine: list[Reporter] = []  # of this process: it is one worker


class Watch:
    """One loop that is watched. `measuring` is told what hooks do not see; `close` ends it."""

    def __init__(self, measuring: Measuring, reporter: Reporter) -> None:
        self.measuring, self.reporter = measuring, reporter

    def close(self) -> None:
        """Its hooks are removed. The worker stays known until the process ends."""
        self.measuring.detach()


def watch(
    model: torch.nn.Module | None,
    optimizer: Any,
    loader: Any = None,
    *,
    step: int = 0,
    environ: Mapping[str, str] | None = None,
) -> Watch | None:
    """Tell the job that ANTDT_JOB names what each step takes: `antdt top JOB`, `antdt why JOB WORKER`.

    model, optimizer: those of the loop, behind DistributedDataParallel, `fully_shard` or whatever wraps them; several
    optimizers in a list or a dict. loader: a DataLoader whose order of samples is noted. step: steps that were made
    before this process began. model None: batches are told by `Watch.measuring.batch`.

    Returns None where nothing is watched: no job is named, an Agent trains here, or the environment is wrong, which is
    said. Whatever is wrong with the broker is said and tried again, in a thread of its own.
    """
    environ = os.environ if environ is None else environ
    if not environ.get("ANTDT_JOB") or has_begun():
        return None
    try:
        if not _mine or _mine[0].over:
            _mine[:] = [Reporter(Settings.of(environ))]
            _mine[0].start()
    except (AntdtError, UsageError) as error:
        log.warning("nothing is watched, and training goes on: %s", error)
        return None
    reporter, loader = _mine[0], getattr(loader, "base_dataloader", loader)  # Accelerate's is around torch's
    order = Order(loader, lambda text: setattr(reporter.telemetry, "order", text)) if loader is not None else None
    measuring = Measuring(reporter.add, order)
    measuring.step = step
    measuring.attach(model, optimizers_of(optimizer))
    return Watch(measuring, reporter)


def optimizers_of(given: Any) -> list[torch.optim.Optimizer]:
    """Torch's own, out of a list, a dict, or what a framework has wrapped around them."""
    several: Iterable[Any] = given.values() if isinstance(given, Mapping) else given
    if isinstance(given, Mapping | list | tuple):
        return [one for each in several for one in optimizers_of(each)]
    while not hasattr(given, "register_step_post_hook") or not isinstance(given, torch.optim.Optimizer):
        given = given.optimizer
    inner = given
    while isinstance(getattr(inner, "optimizer", None), torch.optim.Optimizer):
        inner = inner.optimizer
    return [inner]
