"""Weights as files: what is in them, who writes them, and that another model's are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import antdt
import pytest
import torch
from antdt.weights import labels_of, write
from antdt_schemas.errors import Unavailable, UsageError
from safetensors import safe_open
from torch.utils.data import TensorDataset


class Tied(torch.nn.Module):
    """Two names for one tensor, a view of another, numbers of several kinds, and what is no parameter."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = torch.nn.Embedding(6, 4), torch.nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight
        self.norm, self.half = torch.nn.BatchNorm1d(4), torch.nn.Linear(2, 2, dtype=torch.bfloat16)
        whole = torch.rand(4, 4)
        self.register_buffer("rows", whole[1:3])
        self.register_buffer("turned", whole.t())
        self.register_buffer("nothing", torch.empty(0))


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    both = one.state_dict(), other.state_dict()
    return both[0].keys() == both[1].keys() and all(torch.equal(both[0][name], both[1][name]) for name in both[0])


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "deep/er/w.safetensors"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    model, other = Tied(1), Tied(2)
    write(model, tmp_path / name, {"antdt.step": "7"})
    assert not same(model, other)
    assert antdt.load_model(tmp_path / name, other) is other
    assert same(model, other)
    assert other.head.weight is other.embedding.weight
    state = antdt.load_model(tmp_path / name)
    assert state.keys() == model.state_dict().keys()
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [Path(name).name], "nothing half-written"


def test_other_libraries_read_it(tmp_path: Path) -> None:
    write(Tied(1), tmp_path / "w.safetensors", {"antdt.step": "7"})
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert set(file.keys()) == set(Tied().state_dict()) - {"head.weight"}
        assert file.metadata()["antdt.step"] == "7" and file.metadata()["format"] == "pt"
    write(Tied(1), tmp_path / "w.pt", {})
    assert torch.load(tmp_path / "w.pt", weights_only=True).keys() == Tied().state_dict().keys()


def test_a_compiled_model_has_the_names_of_the_plain_one(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    write(torch.compile(model), tmp_path / "w.safetensors", {})  # type: ignore[arg-type]
    assert set(antdt.load_model(tmp_path / "w.safetensors")) == {"weight", "bias"}
    antdt.load_model(tmp_path / "w.safetensors", torch.compile(torch.nn.Linear(2, 2)))  # type: ignore[arg-type]


class Extra(torch.nn.Linear):
    def get_extra_state(self) -> Any:
        return {"calls": 3}

    def set_extra_state(self, state: Any) -> None:
        self.calls = state["calls"]


def test_what_is_no_tensor_needs_another_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"_extra_state is no plain tensor: save to a file of another name"):
        write(Extra(2, 2), tmp_path / "w.safetensors", {})
    assert not list(tmp_path.iterdir())
    write(Extra(2, 2), tmp_path / "w.pt", {})
    loaded = antdt.load_model(tmp_path / "w.pt", Extra(2, 2))
    assert loaded.calls == 3


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read as weights"):
        antdt.load_model(tmp_path / "nothing.pt")
    (tmp_path / "w.safetensors").write_bytes(b"{}")
    with pytest.raises(UsageError, match="cannot be read as weights"):
        antdt.load_model(tmp_path / "w.safetensors")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(UsageError, match="has no weights in it, but a list"):
        antdt.load_model(tmp_path / "list.pt")
    write(torch.nn.Linear(2, 2), tmp_path / "w.pt", {})
    with pytest.raises(UsageError, match=r"those of another model: .*size mismatch for weight"):
        antdt.load_model(tmp_path / "w.pt", torch.nn.Linear(3, 2))


def test_a_disk_that_takes_nothing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.pt"
    write(torch.nn.Linear(2, 2), path, {})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match="No space left on device"):
        write(torch.nn.Linear(2, 2), path, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# -- by an Agent


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    for name in [name for name in os.environ if name.startswith("ANTDT_") or name in ("RANK", "WORLD_SIZE")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("antdt.begun._in_a_job", [])
    monkeypatch.setattr("antdt.host.told._at_s", [])
    monkeypatch.chdir(tmp_path)

    def made(**options: Any) -> Any:
        model = torch.nn.Linear(4, 1)
        x = torch.rand(40, 4)
        found = antdt.AgentOptions(**options)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return model, antdt.Agent(model, optimizer, TensorDataset(x, x.sum(1)), batch_size=10, epochs=2, options=found)

    return made


def loop(model: torch.nn.Module, agent: Any) -> Any:
    for x, y in agent:
        agent.step(((model(x)[:, 0] - y) ** 2).mean())
        yield agent.step_number


def test_weights_of_every_so_many_steps(agent: Any, tmp_path: Path) -> None:
    model, one = agent(save_every_steps=3, save_path="w/{step}.safetensors")
    weights = {step: model.weight.clone() for step in loop(model, one)}
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["3.safetensors", "6.safetensors"]
    assert torch.equal(antdt.load_model("w/3.safetensors")["weight"], weights[3])
    labels = labels_of(Path("w/6.safetensors"))
    assert (labels["antdt.step"], labels["antdt.job"]) == ("6", "alone") and len(labels["antdt.lineage"]) == 32


def test_the_best_is_kept(agent: Any) -> None:
    model, one = agent()
    values = {1: 0.5, 2: 0.9, 3: float("nan"), 4: 0.9, 5: 0.7, 6: 0.95, 7: 0.1, 8: 0.2}
    written = {step: one.keep_best(torch.tensor(values[step])) for step in loop(model, one)}
    assert [step for step, kept in written.items() if kept] == [1, 2, 6]
    assert labels_of(Path("best.safetensors"))["antdt.step"] == "6"
    assert one.keep_best(0.01, "low.safetensors", "min") and not one.keep_best(0.02, "low.safetensors", "min")
    assert one.save("last.pt")
    assert torch.equal(antdt.load_model("last.pt")["weight"], model.weight)
    other, two = agent()
    for step in loop(other, two):
        assert two.keep_best(0.3) == (step == 1), "the best of another run is none of this one"
    for wrong in ({"mode": "best"}, {"path": "best.pt"}):
        with pytest.raises(UsageError, match="keep_best"):
            one.keep_best(1.0, **wrong)


def test_a_checkpoint_has_weights_too(agent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTDT_CHECKPOINTS", str(tmp_path))
    model, one = agent()
    for _ in loop(model, one):
        pass
    (path,) = tmp_path.glob("*/step-000000008-*.pt")
    assert torch.equal(antdt.load_model(path, torch.nn.Linear(4, 1)).weight, model.weight)
