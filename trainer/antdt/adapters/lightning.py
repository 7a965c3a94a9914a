"""Lightning's Trainer: watched by a callback that it finds by itself; steered by a strategy (`lightning_steer`).

    Trainer(...)                                                    # where ANTDT_JOB is set, the callback is there
    Trainer(**antdt.lightning.steer(dataset, batch_size=256, epochs=5))      # an Agent trains

Owns what of Lightning's hooks is watched. Must not know how a step is made.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from antdt_schemas.errors import UsageError

PACKAGES = ("lightning.pytorch", "pytorch_lightning")  # the same under two names
STEERED = "antdt_steered"  # an attribute of a strategy under which an Agent trains


def __getattr__(name: str) -> Any:
    if name == "Callback":  # of the package that is there
        return type(callback(installed()))
    if name in ("steer", "refuse"):
        return getattr(import_module("antdt.adapters.lightning_steer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def callback(package: str = PACKAGES[0]) -> Any:
    """A callback that watches, of one of the two packages."""
    base: Any = import_module(package).callbacks.Callback
    return type("Callback", (Watching, base), {})()


def callbacks() -> list[Any]:
    """What Lightning's entry point asks for: nothing without a job."""
    return [callback(PACKAGES[0])] if os.environ.get("ANTDT_JOB") else []


def callbacks_of_pytorch_lightning() -> list[Any]:
    """So of the package that has the old name."""
    return [callback(PACKAGES[1])] if os.environ.get("ANTDT_JOB") else []


def installed() -> str:
    for package in PACKAGES:
        try:
            import_module(package)
        except ImportError:
            continue
        return package
    raise UsageError("Lightning is not installed here: pip install lightning.")


class Watching:
    """Tells what each step takes. Does nothing without a job, and where an Agent trains, which tells it itself."""

    watch: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """From here on, with the optimizers and the loader that there are now."""
        if self.watch is not None or getattr(trainer.strategy, STEERED, False):
            return
        from antdt.watching import watch

        loader = trainer.train_dataloader
        self.watch = watch(None, list(trainer.optimizers), loader, step=trainer.global_step)
        if self.watch is not None and self.watch.measuring.order is not None:
            for running in iterators_of(trainer):
                self.watch.measuring.order.adopt(running)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Data are there, and compute begins."""
        if self.watch is not None:
            from antdt.watching.measuring import samples_of

            self.watch.measuring.batch(samples_of(batch))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """What takes time now is no step."""
        if self.watch is not None:
            self.watch.measuring.elsewhere()

    on_validation_end = on_validation_start

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """As it was before."""
        if self.watch is not None:
            self.watch.close()
            self.watch = None


def iterators_of(trainer: Any) -> list[Any]:
    """Those that the first epoch goes through: Lightning makes them before it tells its callbacks of anything."""
    combined = getattr(getattr(trainer, "fit_loop", None), "_combined_loader", None)
    return list(getattr(getattr(combined, "_iterator", None), "iterators", ()))
