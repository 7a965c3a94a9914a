"""Hugging Face's Trainer steered by an Agent: its loader, its optimizer and the middle of its step are the Agent's.

    trainer = antdt.hf.wrap(Trainer(model, args, train_dataset=dataset), batch_size=256)
    trainer.train()

A step of the Trainer is a step of the job that this worker has samples of. What it computes of a loss, logs, evaluates
and saves stays its own. Owns which of its calls are the Agent's. Must not know how a step is made.
"""

from __future__ import annotations

from typing import Any

from antdt_schemas.batches import EVEN, Layout
from antdt_schemas.errors import UsageError

from antdt.adapters.given import Given, Scheduled
from antdt.adapters.loader import Loader
from antdt.agent import Agent

EARLY = "the Trainer was told to stop"


def wrap(trainer: Any, *, batch_size: int, **of_agent: Any) -> Any:
    """The same Trainer, steered. Optimizer and scheduler are made now, as it would make them.

    batch_size: samples of all workers together in a step, in place of `per_device_train_batch_size`. of_agent: what
    else `antdt.Agent` takes; epochs or steps come from the Trainer's arguments.

    Raises UsageError for what the Trainer would do beside the Agent.
    """
    refuse(trainer)
    args, data = trainer.args, _data_of(trainer)
    how_long = {"steps": args.max_steps} if args.max_steps > 0 else {"epochs": int(args.num_train_epochs)}
    layout = Layout(len(trainer.train_dataset), how_long.get("epochs", 1), batch_size, of_agent.get("last", EVEN))
    steps = how_long.get("steps") or layout.steps_per_epoch * how_long["epochs"]
    optimizer = trainer.create_optimizer()
    words = {"scheduler": trainer.create_scheduler(steps, optimizer), "num_workers": args.dataloader_num_workers}
    words |= {"seed": args.data_seed or args.seed, "clip_grad_norm": args.max_grad_norm or None}
    agent = Agent(trainer.model, optimizer, batch_size=batch_size, **how_long, **data, **{**words, **of_agent})
    _hand_over(trainer, agent, Loader(agent, args.device))
    return trainer


def _data_of(trainer: Any) -> dict[str, Any]:
    """The data set and how its samples become a batch, without the columns that the model does not take."""
    data, collate = trainer.train_dataset, trainer.data_collator
    if hasattr(data, "column_names") and hasattr(data, "remove_columns"):
        data = trainer._remove_unused_columns(data, description="training")
    else:
        collate = trainer._get_collator_with_removed_columns(collate, description="training")
    return {"dataset": data, "collate_fn": collate}


def _hand_over(trainer: Any, agent: Agent, loader: Loader) -> None:
    kept, finish = trainer.lr_scheduler, trainer._finalize_training

    def prepared(max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> tuple[Any, Any]:
        if resume_from_checkpoint is not None:
            raise UsageError("An Agent goes on from the job's own checkpoints: leave resume_from_checkpoint out.")
        trainer.optimizer = Given(agent.optimizers[0])
        trainer.lr_scheduler, trainer._created_lr_scheduler = Scheduled(kept), False
        for name in ("model", "optimizer", "lr_scheduler"):
            setattr(trainer.callback_handler, name, getattr(trainer, name))
        trainer.callback_handler.train_dataloader = train_dataloader
        return trainer.model, train_dataloader

    def one(inputs: Any, items: Any) -> Any:
        trainer.model.train()
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(inputs), num_items_in_batch=items)
        agent.backward(loss, weight=items)  # None: a mean over samples, or what the graph of the loss says
        agent.apply()
        return loss.detach()

    def counted(inputs: Any) -> Any:
        return one(inputs, trainer._get_num_items_in_batch([inputs], trainer.args.device))

    def step(model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        trainer.state.global_step = agent.step_number
        loss = one(inputs, num_items_in_batch)
        for more in loader.rest_of_step():
            counted(more)
        trainer.state.global_step = agent.step_number - 1  # the Trainer counts the step at hand itself
        return loss

    def finalized(*args: Any) -> Any:
        early = trainer.control.should_training_stop and trainer.state.global_step < trainer.state.max_steps
        loader.finish(counted, EARLY if early else "")
        return finish(*args)

    trainer.get_train_dataloader = lambda: loader
    trainer._prepare_for_training, trainer.training_step = prepared, step
    trainer._finalize_training = finalized
    trainer.accelerator.clip_grad_norm_ = lambda *_, **__: agent.strategy.once.grad_norm
    if agent.settings.rank:  # the first worker saves for all
        trainer.args.save_strategy = type(trainer.args.save_strategy)("no")


def refuse(trainer: Any) -> None:
    """Raises UsageError for what the Trainer would do beside the Agent."""
    args = trainer.args
    spread = str(getattr(trainer.accelerator.distributed_type, "name", trainer.accelerator.distributed_type))
    for wrong, said in (
        (spread != "NO", f"{spread}: start workers by `antdt launch`, or watch them, antdt.hf.Callback()"),
        (args.n_gpu > 1, "DataParallel: give each worker a device of its own, `antdt launch -n gpu`"),
        (args.gradient_accumulation_steps != 1, "gradient_accumulation_steps: the Agent cuts a step by itself"),
        (args.fp16, "fp16: take bf16, or write a plain loop with antdt.Agent(..., scaler=scaler)"),
        (args.auto_find_batch_size, "auto_find_batch_size: the Agent takes fewer samples at a time by itself"),
        (trainer.train_dataset is None, "no train_dataset"),
        (not hasattr(trainer.train_dataset, "__len__"), "a stream: pass it to a plain loop over antdt.Agent"),
        (args.max_steps <= 0 and args.num_train_epochs % 1, "num_train_epochs that is no whole number: say max_steps"),
    ):
        if wrong:
            raise UsageError(f"An Agent steers, and cannot with {said}.")
