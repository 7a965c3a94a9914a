"""Trackers of experiments, through what the user has installed: MLflow, Weights & Biases, TensorBoard.

Each is told by its own library and its own settings (MLFLOW_TRACKING_URI, WANDB_PROJECT, ...). Nothing is imported
before it is asked for. One that does not answer ends nothing, least of all a job: see `antdt bridge`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from antdt_schemas.errors import UsageError

from antdt_streams.views.aggregate import PREFIX


class Tracker(Protocol):
    """One run of one tracker."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """The numbers of a job, as of a step that never goes back."""

    def end(self, proof: Mapping[str, str], *, done: bool) -> None:
        """That was all. done: the job is, too."""


class Mlflow:
    def __init__(self, about: Mapping[str, str], folder: Path) -> None:
        self._mlflow = _imported("mlflow", "mlflow-skinny")
        self._mlflow.start_run(run_name=about[f"{PREFIX}job"])
        self._mlflow.set_tags({_dotted(name): value for name, value in about.items()})

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(numbers), step=step)

    def end(self, proof: Mapping[str, str], *, done: bool) -> None:
        self._mlflow.set_tags({_dotted(name): value for name, value in proof.items()})
        self._mlflow.end_run("FINISHED" if done else "KILLED")


class Wandb:
    """A bridge that is started again goes on with the same run."""

    def __init__(self, about: Mapping[str, str], folder: Path) -> None:
        wandb, run_id = _imported("wandb", "wandb"), about.get(f"{PREFIX}run_id")
        more = {"id": run_id, "resume": "allow"} if run_id else {}
        self._run = wandb.init(name=about[f"{PREFIX}job"], config=dict(about), **more)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def end(self, proof: Mapping[str, str], *, done: bool) -> None:
        self._run.summary.update(dict(proof))
        self._run.finish(exit_code=0 if done else 1)


class Tensorboard:
    def __init__(self, about: Mapping[str, str], folder: Path) -> None:
        self._writer = _imported("tensorboard.summary", "tensorboard").Writer(str(folder))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, proof: Mapping[str, str], *, done: bool) -> None:
        self._writer.close()


TRACKERS: Mapping[str, Callable[[Mapping[str, str], Path], Tracker]] = {
    "mlflow": Mlflow,
    "wandb": Wandb,
    "tensorboard": Tensorboard,
}


def _imported(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise UsageError(f"--to needs {package}, which is not installed here: `pip install {package}`.") from error


def _dotted(name: str) -> str:
    """As tags are named there."""
    return name.replace("/", ".")
