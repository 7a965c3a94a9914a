"""Hugging Face's Trainer: watched by a callback, or steered by an Agent that `wrap` puts into it (`hf_steer`).

    Trainer(..., callbacks=[antdt.hf.Callback()])
    trainer = antdt.hf.wrap(Trainer(...)); trainer.train()

Owns what of the Trainer's calls is watched. Must not know how a step is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Callback":
        return _callback()
    if name in ("wrap", "refuse"):
        return getattr(import_module("antdt.adapters.hf_steer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _callback() -> Any:
    base: Any = import_module("transformers").TrainerCallback
    return type("Callback", (Watching, base), {})


class Watching:
    """Tells what each step takes. Does nothing without a job, and where an Agent trains, which tells it itself."""

    watch: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """From here on, with what the Trainer has by now."""
        from antdt.watching import watch

        loader = given.get("train_dataloader")
        if self.watch is None and not getattr(loader, "_is_antdt", False):
            self.watch = watch(given["model"], given["optimizer"], loader, step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """As it was before."""
        if self.watch is not None:
            self.watch.close()
            self.watch = None
