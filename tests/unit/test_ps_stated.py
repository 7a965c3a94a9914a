"""What a script states of parameter servers: options, refusals, tables; and the files of a model in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import antdt
import pytest
import torch
from antdt.connect.settings import Settings
from antdt.files import checkpoint
from antdt.files.part_files import PartFiles, stem_of
from antdt.strategies.once import Once
from antdt.strategies.ps.alone import InOneProcess
from antdt.strategies.ps.embedding import Embedding
from antdt.strategies.ps.refusals import refuse, refuse_hooks
from antdt.strategies.ps.tables import first_values
from antdt.strategies.together import one_optimizer
from antdt.worker.instructions import Parts
from antdt.worker.plans import Plans, Share
from antdt.worker.session import Session, Where
from antdt_schemas import records
from antdt_schemas.errors import ForeignState, Mismatch, Unavailable, UsageError
from antdt_schemas.limits import INIT_FILE
from antdt_schemas.strategies import servers_of
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from tests.unit.test_session import SPEC

# -- options


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "ps-bsp/servers=2"),
        ({"mode": "asp"}, "ps-asp/servers=2"),
        ({"mode": "ssp", "staleness": 5}, "ps-ssp=5/servers=2"),
        ({"mode": "asp", "sharding": "even"}, "ps-asp/even/servers=2"),
        ({"mode": "ssp", "sharding": "colony"}, "ps-ssp=3/colony/servers=2"),
        ({"backup": 1, "late": "drop"}, "ps-bsp/drop/servers=2"),
    ],
)
def test_the_name_says_all_that_workers_and_servers_must_do_alike(options: Any, name: str) -> None:
    placed = antdt.ParameterServer(**options).placed(2, alone=False)
    assert (placed.name, servers_of(placed.name)) == (name, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "fast"}, "take one of 'bsp', 'asp', 'ssp'"),
        ({"mode": "asp", "backup": 1}, "only there is somebody not to wait for"),
        ({"backup": -1}, "whole numbers"),
        ({"mode": "ssp", "staleness": 0}, "staleness >= 1"),
        ({"pending_max": 0}, "pending_max >= 1"),
        ({"sharding": "odd"}, "take one of '', 'even', 'colony'"),
        ({"late": "never"}, "take one of 'recompute', 'drop'"),
        ({"mode": "asp", "late": "drop"}, "knows who is late"),
        ({"sharding": "even", "late": "drop"}, "leave sharding out"),
    ],
)
def test_options_that_cannot_be_are_refused(options: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        antdt.ParameterServer(**options)


def test_servers_and_a_strategy_that_has_them_go_together() -> None:
    with pytest.raises(UsageError, match="antdt launch -n 4 --servers 2"):
        antdt.ParameterServer().placed(0, alone=False)
    for strategy in (antdt.AllReduce(), antdt.LocalSGD(4)):
        with pytest.raises(UsageError, match=r"which .* has no use for"):
            strategy.placed(2, alone=False)
        assert strategy.placed(0, alone=False) is strategy
    assert isinstance(antdt.ParameterServer().placed(0, alone=True), InOneProcess)


def test_the_launcher_says_which_process_serves() -> None:
    environ = {"ANTDT_JOB": "j", "ANTDT_KAFKA_BOOTSTRAP_SERVERS": "h:1", "ANTDT_WORKER": "s1", "ANTDT_RANK": "5"}
    found = Settings.of(environ | {"ANTDT_ROLE": "server", "ANTDT_SERVERS": "2"})
    assert (found.role, found.servers) == ("server", 2)
    assert (Settings.of(environ).role, Settings.of(environ).servers) == ("worker", 0)
    with pytest.raises(UsageError, match="ANTDT_ROLE='boss'"):
        Settings.of(environ | {"ANTDT_ROLE": "boss"})


def test_a_worker_takes_its_share_of_the_newest_plan_or_an_even_one() -> None:
    plans = Plans(64)
    assert [plans.own(f"w{rank}", rank, 3).shares[0] for rank in range(3)] == [Share(22), Share(21), Share(21)]
    plans.add(
        records.Decision(
            records.Cause(0, 1, 0), 1, records.Action.ADJUST_BS, (records.Assignment("w1", 40, 2),), 1.0, 0, "", "p", 1,
            "w1 is fast", 0.1, 0, 1,
        )
    )  # fmt: skip
    assert plans.own("w1", 1, 3) == plans.own("w1", 1, 3).__class__([Share(40, 2)], 21)
    assert plans.own("w0", 0, 3).shares == [Share(22)]


# -- refusals


def model_of(*more: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(4, 4), *more)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


class HasState:
    """Something with a state."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


@pytest.mark.parametrize(
    ("once", "said"),
    [
        (lambda o: Once(clip_grad_norm=1.0), "clip_grad_norm"),
        (lambda o: Once(scaler=torch.amp.GradScaler("cpu")), "bfloat16"),
        (lambda o: Once(state={"average": HasState()}), "average"),
        (lambda o: Once(buffers={"x": "mean"}), "buffers"),
        (lambda o: Once(LambdaLR(o, lambda _: 1.0), "epoch"), "scheduler_every='step'"),
        (lambda o: Once(ReduceLROnPlateau(o)), "ReduceLROnPlateau"),
    ],
)
def test_what_servers_cannot_do_is_refused_with_what_to_do(once: Any, said: str) -> None:
    model, optimizer = model_of()
    with pytest.raises(UsageError, match=said):
        refuse(model, optimizer, once(optimizer))


def test_several_optimizers_and_running_statistics_are_refused() -> None:
    model, optimizer = model_of()
    both = one_optimizer([optimizer, torch.optim.SGD(model.parameters(), lr=0.1)])
    with pytest.raises(UsageError, match="one optimizer"):
        refuse(model, both, Once())
    with pytest.raises(UsageError, match="running statistics of 1"):
        refuse(*model_of(nn.BatchNorm1d(4)), Once())
    refuse(*model_of(nn.BatchNorm1d(4, track_running_stats=False)), Once())
    refuse(model, optimizer, Once(LambdaLR(optimizer, lambda _: 1.0)))


def test_hooks_that_would_never_be_called_are_refused_when_training_begins() -> None:
    _, optimizer = model_of()
    refuse_hooks(optimizer, Once())
    once = Once()
    once.on_step.append(lambda _: None)
    with pytest.raises(UsageError, match="on_step"):
        refuse_hooks(optimizer, once)
    optimizer.register_step_pre_hook(lambda *_: None)
    with pytest.raises(UsageError, match="scheduler"):
        refuse_hooks(optimizer, Once())


# -- tables


def test_without_servers_a_table_is_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTDT_SERVERS", raising=False)
    table = antdt.Embedding(10, 4, seed=3)
    rows = table(torch.tensor([[1, 2], [2, 9]]))
    assert rows.shape == (2, 2, 4)
    rows.sum().backward()
    assert table.weight.grad is not None and table.weight.grad[2].tolist() == [2.0] * 4
    assert torch.equal(antdt.Embedding(10, 4, seed=3).weight, table.weight)


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Embedding:
    """A table in a launch with servers."""
    monkeypatch.setenv("ANTDT_SERVERS", "2")
    return antdt.Embedding(10, 4, seed=3)


class Held:
    """In place of servers. `asked`: each time, which rows."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows, self.asked = rows, list[list[int]]()

    def look_up(self, table: Embedding, ids: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        self.asked.append(ids.tolist())
        return self.rows[ids].requires_grad_()


def test_with_servers_only_rows_in_use_travel_each_once(remote: Embedding) -> None:
    assert remote.weight.shape == (0, 4)
    held = Held(torch.arange(40.0).view(10, 4))
    remote.connect(held)
    found = remote(torch.tensor([[7, 2], [7, 7]]))
    assert held.asked == [[2, 7]]
    assert found[:, 1].tolist() == held.rows[[2, 7]].tolist() or found[0, 0].tolist() == held.rows[7].tolist()
    with pytest.raises(UsageError, match="not among 10"):
        remote(torch.tensor([10]))


def test_a_table_on_servers_says_where_it_is_and_is_whole_when_it_was_put_together(remote: Embedding) -> None:
    with pytest.raises(UsageError, match="in the loop over the Agent only"):
        remote(torch.tensor([1]))
    weight = first_values(3, "", torch.arange(10), 4, 0.01)
    remote.hold(weight)
    assert torch.equal(remote(torch.tensor([4])), weight[[4]])


# -- files


class Strategy:
    """In place of the strategy."""

    step_number, lineage, void = 4, bytes(range(16)), False


@pytest.fixture
def files(tmp_path: Path) -> PartFiles:
    """Of a run."""
    made = PartFiles(tmp_path, "job", Strategy(), lambda *args: assembled.append(args))  # type: ignore[arg-type]
    made.run_id = "run"
    assembled.clear()
    return made


assembled: list[Any] = []
SESSION = Session("s0", "s0.0.x", SPEC, Where("h", 1))
SESSION.generation = 2


def grant(file: str, committed: int = 4, servers: int = 2) -> records.Grant:
    members = tuple(records.Member(f"s{i}.0.x", f"s{i}", "h", i) for i in range(servers))
    return records.Grant("run", 3, members, None, None, committed, file)


def published(files: PartFiles) -> records.Checkpoint:
    stem = stem_of(2, "s0.0.x", 4)
    names = [f"{stem}-part{i}of2.part" for i in range(2)]
    parts = tuple((name, checkpoint.write_bytes(files.folder, name, name.encode())) for name in names)
    event = files.publish(SESSION, Parts(4, bytes(range(16)), 1, parts))
    assert event is not None
    return event


def test_each_server_finds_its_part_by_the_file_that_names_all(files: PartFiles) -> None:
    event = published(files)
    assert (event.step, event.lineage, event.file) == (4, bytes(range(16)), "step-000000004-g2-s0.0.x.pt")
    for part in range(2):
        found = files.part(grant(event.file), part)
        assert found is not None and found[1] == f"step-000000004-g2-s0.0.x-part{part}of2.part".encode()
    assert files.part(grant(INIT_FILE, 0), 0) is None


def test_a_part_that_is_another_one_is_not_loaded(files: PartFiles) -> None:
    event = published(files)
    name = "step-000000004-g2-s0.0.x-part1of2.part"
    checkpoint.write_bytes(files.folder, name, b"something else")
    with pytest.raises(Mismatch, match="The digest of part"):
        files.part(grant(event.file), 1)
    (files.folder / name).unlink()
    with pytest.raises(Unavailable, match="cannot be read"):
        files.part(grant(event.file), 1)


def test_a_file_of_another_step_run_or_number_of_servers_is_not_loaded(files: PartFiles) -> None:
    event = published(files)
    for wrong in (grant(event.file, committed=5), grant(event.file, servers=3)):
        with pytest.raises(ForeignState):
            files.part(wrong, 0)
    checkpoint.write_bytes(files.folder, "step-000000004-other.pt", b"no manifest")
    with pytest.raises(Mismatch, match="parameter servers"):
        files.part(grant("step-000000004-other.pt"), 0)


def test_the_final_model_is_put_together_of_all_parts(files: PartFiles) -> None:
    event = published(files)
    assert files.take_final(event.file).endswith("UTC")
    ((parts, step, lineage),) = assembled
    assert (len(parts), step, lineage) == (2, 4, bytes(range(16)))


def test_old_parts_go_with_the_file_that_names_them(files: PartFiles) -> None:
    published(files)
    assert checkpoint.prune(files.folder, 4) == 0
    assert checkpoint.prune(files.folder, 5) == 3
