"""Lightning steered by an Agent: a strategy of Lightning's for one device, whose backward and step are the Agent's.

    trainer = Trainer(**antdt.lightning.steer(dataset, batch_size=256, epochs=5))
    trainer.fit(model, trainer.strategy.loader)

A batch of Lightning is a step of the job that this worker has samples of. Owns which of Lightning's hooks are the
Agent's. Must not know how a step is made.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from antdt_schemas.errors import UsageError

from antdt.adapters.given import Given, Later
from antdt.adapters.lightning import installed
from antdt.adapters.loader import Loader
from antdt.agent import Agent

EARLY = "Lightning's trainer was told to stop"


def steer(dataset: Any, *, device: Any = "cpu", package: str = "", **of_agent: Any) -> dict[str, Any]:
    """What to pass to `Trainer`, beside whatever else a script passes: `Trainer(**steer(...), callbacks=...)`.

    dataset, of_agent: as for `antdt.Agent`, whose model and optimizer are those of the LightningModule. device: of this
    process. What Lightning would do beside the Agent is refused when training begins.
    """
    pl: Any = import_module(package or installed())

    def make(model: Any, optimizer: Any, **more: Any) -> Agent:
        return Agent(model, optimizer, dataset, **{**more, **of_agent})

    steered = type("Steered", (Steering, pl.strategies.SingleDeviceStrategy), {"make": staticmethod(make)})
    epochs = {"max_steps": of_agent["steps"], "max_epochs": -1} if "steps" in of_agent else {}
    epochs = epochs or {"max_epochs": of_agent.get("epochs", 1)}
    environments: Any = import_module(f"{pl.__name__}.plugins.environments")
    return {
        "strategy": steered(device),
        "plugins": [environments.LightningEnvironment()],  # not torchrun's, which counts workers that Lightning has not
        "use_distributed_sampler": False,
        **epochs,
    }


class Steering:
    """What a strategy of Lightning's for one device becomes. The Agent is made when the optimizers are, and is given
    the model, them, and schedulers. loader: what to pass to `trainer.fit`.
    """

    antdt_steered = True
    agent: Agent
    make: Callable[..., Agent]
    optimizers: list[Any]
    lr_scheduler_configs: list[Any]
    lightning_module: Any
    precision_plugin: Any
    training_step: Callable[[Any, int], Any]

    def __init__(self, device: Any) -> None:
        super().__init__(device=device)  # type: ignore[call-arg]
        self.loader: Any = Later()

    def setup(self, trainer: Any) -> None:
        """Lightning has made the optimizers."""
        super().setup(trainer)  # type: ignore[misc]
        if self.lightning_module is not None and trainer.training:
            self._hand_over(trainer)

    def _hand_over(self, trainer: Any) -> None:
        refuse(trainer)
        every, schedulers = _schedulers(self.lr_scheduler_configs)
        more: dict[str, Any] = {"scheduler": schedulers, "scheduler_every": every} if schedulers else {}
        if trainer.gradient_clip_val:
            more["clip_grad_norm"], trainer.gradient_clip_val = float(trainer.gradient_clip_val), None
        self.agent = self.make(self.lightning_module, self.optimizers[0], **more)
        self.lr_scheduler_configs = []
        self.optimizers = [Given(one) for one in self.optimizers]
        self.loader.become(Loader(self.agent, self.root_device))  # type: ignore[attr-defined]

    def backward(self, closure_loss: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """The Agent's, between Lightning's hooks."""
        loss = self.precision_plugin.pre_backward(closure_loss, self.lightning_module)
        self.agent.backward(loss)
        return self.precision_plugin.post_backward(loss, self.lightning_module)

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """The Agent's; further micro-batches of the step are trained here."""
        out = closure()
        self.agent.apply()
        for batch in self.loader.rest_of_step():
            self.train(batch)
        return out

    def train(self, batch: Any) -> None:
        """A batch that Lightning does not know of."""
        found = self.training_step(batch, 0)
        self.agent.backward(found["loss"] if isinstance(found, dict) else found)
        self.agent.apply()

    def on_train_end(self) -> None:
        """Lightning makes no further step."""
        trainer = self.lightning_module.trainer
        self.loader.finish(self.train, EARLY if trainer.should_stop else "")


def _schedulers(configs: list[Any]) -> tuple[str, list[Any]]:
    """How often they step, and which they are. Raises UsageError for what the Agent does not do."""
    every = {config.interval for config in configs}
    if len(every) > 1 or any(config.frequency != 1 or config.reduce_on_plateau for config in configs):
        raise UsageError(
            "The Agent steps schedulers, all every step or all every epoch: leave out frequency and monitor, and step "
            "a ReduceLROnPlateau in on_train_epoch_end."
        )
    return next(iter(every), "step"), [config.scheduler for config in configs]


def refuse(trainer: Any) -> None:
    """Raises UsageError for what Lightning would do beside the Agent."""
    clips = str(trainer.gradient_clip_algorithm or "norm").rpartition(".")[2].lower()
    plain = trainer.lightning_module.automatic_optimization and len(trainer.optimizers) == 1
    for wrong, said in (
        (trainer.accumulate_grad_batches != 1, "accumulate_grad_batches: the Agent cuts a step by itself"),
        (not plain, "manual optimization, or several optimizers: write a plain loop over antdt.Agent"),
        (
            trainer.gradient_clip_val and clips != "norm",
            "gradient_clip_algorithm: it clips by a norm",
        ),
        (str(trainer.precision).startswith(("16", "transformer")), "this precision: take bf16-mixed"),
        (trainer.limit_train_batches != 1.0, "limit_train_batches: every sample counts once; say steps=N to steer"),
    ):
        if wrong:
            raise UsageError(f"An Agent steers, and cannot with {said}.")
