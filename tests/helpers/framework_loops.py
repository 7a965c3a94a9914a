"""Loops of frameworks as their users write them, each plain, watched by one line, or steered. Prints what came out.

python framework_loops.py hf|lightning|accelerate plain|watched|steered [--epochs N] [--delay-ms MS]
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from typing import Any

import antdt
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

SAMPLES = 240


class Numbers(Dataset):  # type: ignore[type-arg,misc]
    """Sequences whose parity is to be learned, each made when it is asked for."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(self.delay_s)
        ids = torch.randint(1, 20, (6,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids[0] % 2}


class Net(nn.Module):  # type: ignore[misc]
    """Small enough for a test."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(48, 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(input_ids).flatten(1))


def hf(said: argparse.Namespace, data: Numbers) -> list[float]:
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 16, "max_position_embeddings": 8, "num_labels": 2, "pad_token_id": 0}
    model = BertForSequenceClassification(BertConfig(**sizes, **more))
    args = TrainingArguments(
        output_dir="unused", per_device_train_batch_size=said.batch_size, num_train_epochs=said.epochs, use_cpu=True,
        learning_rate=1e-3, report_to=[], logging_steps=1, save_strategy="no", disable_tqdm=True,
        logging_nan_inf_filter=False,
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=data)
    if said.how == "watched":
        trainer.add_callback(antdt.hf.Callback())
    if said.how == "steered":
        trainer = antdt.hf.wrap(trainer, batch_size=said.batch_size, options=said.options)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def lightning(said: argparse.Namespace, data: Numbers) -> list[float]:
    import lightning.pytorch as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    losses = list[float]()

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = nn.functional.cross_entropy(self.net(batch["input_ids"]), batch["labels"])
            losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    quiet |= {"enable_model_summary": False, "gradient_clip_val": 1.0, "accelerator": "cpu", "devices": 1}
    if said.how == "steered":
        words = {"batch_size": said.batch_size, "epochs": said.epochs, "options": said.options}
        trainer = pl.Trainer(**antdt.lightning.steer(data, **words), **quiet)
        trainer.fit(Module(), trainer.strategy.loader)
    else:  # watched without a line, where there is a job
        trainer = pl.Trainer(max_epochs=said.epochs, **quiet)
        trainer.fit(Module(), DataLoader(data, batch_size=said.batch_size, shuffle=True))
    return losses


def accelerate(said: argparse.Namespace, data: Numbers) -> list[float]:
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), Net()
    optimizer: Any = torch.optim.SGD(model.parameters(), 0.1)
    scheduler: Any = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.9)
    if said.how == "steered":
        words = {"batch_size": said.batch_size, "epochs": said.epochs, "options": said.options}
        agent = antdt.Agent(model, optimizer, data, scheduler=scheduler, **words)
        optimizer, loader, scheduler = antdt.accelerate.prepare(accelerator, agent, scheduler)
    else:
        loader = DataLoader(data, batch_size=said.batch_size, shuffle=True)
        model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    if said.how == "watched":
        antdt.accelerate.watch(accelerator)
    losses = list[float]()
    for _ in range(said.epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch["input_ids"]), batch["labels"])
            losses.append(loss.item())
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
    return losses


def main() -> None:
    """What the command line says; flags of the tests' recorded script are taken, and mean nothing here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("framework", choices=("hf", "lightning", "accelerate"))
    parser.add_argument("how", choices=("plain", "watched", "steered"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--record")
    said = parser.parse_args()
    said.options = antdt.AgentOptions(checkpoint_every_steps=5, fingerprint_samples=0)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    losses = globals()[said.framework](said, Numbers(said.delay_ms / 1000))
    print("losses", *(float(loss).hex() for loss in losses), flush=True)


if __name__ == "__main__":
    main()
