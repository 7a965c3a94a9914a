"""antdt bridge: one run for a job, whoever keeps it; a tracker that fails ends nothing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from antdt_schemas.errors import UsageError
from antdt_streams.cli.bridge import Copier
from antdt_streams.views.aggregate import numbers
from antdt_streams.views.trackers import TRACKERS, Mlflow

ABOUT = {"antdt/job": "j", "antdt/run_id": "run-1", "antdt/dataset_digest": "ab"}
PROOF = {"antdt/log_offset": "9", "antdt/log_hash": "cd"}


def document(step: int = 7, done: str | None = None) -> dict[str, Any]:
    workers = [
        {"class": kind, "own_ms_a_sample": ms, "batch_size": 8}
        for kind, ms in (("healthy", 4.0), ("persistent", 12.0), ("unknown", 0.0))
    ]
    return {
        "step": step, "generation": 2, "members": 3, "void_entries": 0, "offset": 41, "done": done,
        "samples": {"total": 100, "committed": 60, "leased": 8, "quarantined": 2, "left": 30},
        "workers": workers, "decisions": [{"plan": 5, "action": "ADJUST_BS", "reason": "why"}],
    }  # fmt: skip


class Library(ModuleType):
    """Any function of it is there, and what it is called with is kept."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.summary: Any = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **named: Any) -> Any:
            self.calls.append((name, args, named))
            return self

        return call


@pytest.fixture(params=sorted(TRACKERS))
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    """The tracker of this name, as its library would be there."""
    name = {"tensorboard": "tensorboard.summary"}.get(request.param, request.param)
    fake = Library(request.param)
    monkeypatch.setitem(sys.modules, name.partition(".")[0], fake)
    monkeypatch.setitem(sys.modules, name, fake)
    return fake


def test_each_is_told_the_same_numbers_as_one_run(library: Library, tmp_path: Path) -> None:
    tracker = TRACKERS[library.__name__](ABOUT, tmp_path)
    told = numbers(document(), [5, 8])
    tracker.log(told, 7)
    tracker.end(PROOF, done=True)
    called = [name for name, _, _ in library.calls]
    begun = {"mlflow": "start_run", "wandb": "init", "tensorboard": "Writer"}[library.__name__]
    assert called.count(begun) == 1
    if library.__name__ == "tensorboard":
        assert {args[0]: args[1] for name, args, _ in library.calls if name == "add_scalar"} == told
    else:
        (logged,) = [(args[0], named["step"]) for name, args, named in library.calls if name in ("log", "log_metrics")]
        assert logged == (told, 7)
    assert called[-1] == {"mlflow": "end_run", "wandb": "finish", "tensorboard": "close"}[library.__name__]


def test_names_last_and_numbers_are_of_the_job() -> None:
    told = numbers(document(), [100, 8, 7, 8, 9, 8, 2])
    assert told == {
        "antdt/step": 7, "antdt/generation": 2, "antdt/members": 3, "antdt/void_entries": 0,
        "antdt/samples_total": 100, "antdt/samples_committed": 60, "antdt/samples_leased": 8,
        "antdt/samples_quarantined": 2, "antdt/samples_left": 30, "antdt/workers_slow": 1,
        "antdt/sample_ms_median": 8.0, "antdt/sample_ms_slowest": 12.0, "antdt/batch_size": 24,
        "antdt/samples_per_second": 8, "antdt/log_offset": 41, "antdt/plan": 5,
    }  # fmt: skip
    assert len(numbers({**document(), "workers": [document()["workers"][0]] * 4096}, [])) == len(told)


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_what_is_not_installed_is_named(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="pip install"):
        TRACKERS[name](ABOUT, tmp_path)


class Moody:
    """A tracker that takes nothing while it is away."""

    def __init__(self) -> None:
        self.away, self.steps, self.ended = False, list[int](), list[bool]()

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        if self.away:
            raise ConnectionError("nobody is there")
        self.steps.append(step)

    def end(self, proof: Mapping[str, str], *, done: bool) -> None:
        self.ended.append(done)


def test_a_tracker_that_is_away_is_told_once_and_steps_never_go_back(capsys: pytest.CaptureFixture[str]) -> None:
    tracker, now = Moody(), document()
    watched: Any = SimpleNamespace(
        follow=SimpleNamespace(changed=threading.Condition()),
        document=lambda: now,
        progress=SimpleNamespace(speeds=[1]),
    )
    copier = Copier(watched, tracker)
    assert not copier.look()
    tracker.away = True
    assert not copier.look() and not copier.look()
    tracker.away, now = False, document(step=3)  # rolled back
    assert not copier.look()
    now = document(step=9, done="file")
    assert copier.look()
    assert tracker.steps == [7, 7, 9]
    said = capsys.readouterr().err
    assert said.count("takes nothing: ConnectionError: nobody is there") == said.count("takes figures again") == 1


def test_the_real_mlflow_keeps_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its store in a file."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path / 'runs'}")
    tracker = Mlflow(ABOUT, tmp_path)
    run_id = mlflow.active_run().info.run_id
    for step in (7, 9):
        tracker.log(numbers(document(step), [5]), step)
    tracker.end(PROOF, done=True)
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.tags["antdt.log_hash"] == "cd"
    assert [m.step for m in client.get_metric_history(run_id, "antdt/samples_committed")] == [7, 9]
