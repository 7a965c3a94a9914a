"""`python train.py` without a job: the same loop in one process, by the same life, with nobody to ask."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import antdt
import pytest
import torch
from antdt.connect import alone
from antdt.connect.settings import Settings
from antdt_schemas import records
from antdt_schemas.errors import ExitCode, UsageError
from antdt_schemas.records import Status
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

SIZE, BATCH = 96, 16
X = torch.rand(SIZE, 4, generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(torch.arange(SIZE), X, X.sum(1, keepdim=True))


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing speaks of a job."""
    for name in [name for name in os.environ if name.startswith("ANTDT_") or name in ("RANK", "WORLD_SIZE")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("antdt.begun._in_a_job", [])
    monkeypatch.setattr("antdt.host.told._at_s", [])


def made(**options: Any) -> tuple[torch.nn.Module, Any]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    data = options.pop("data", DATA)
    if not isinstance(data, DataLoader):
        options.setdefault("batch_size", BATCH)
    return model, antdt.Agent(model, torch.optim.Adam(model.parameters()), data, **options)


def loss_of(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return functional.mse_loss(model(batch[1]), batch[2])


def trained(model: torch.nn.Module, agent: Any) -> list[list[int]]:
    """The samples of each step."""
    steps: list[list[int]] = []
    before = -1
    for batch in agent:
        if agent.step_number != before:
            before = agent.step_number
            steps.append([])
        steps[-1] += batch[0].tolist()
        agent.step(loss_of(model, batch))
    assert agent.ended
    return steps


def single(steps: list[list[int]]) -> torch.nn.Module:
    """What a plain loop makes of the same batches."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters())
    for chosen in steps:
        optimizer.zero_grad()
        loss_of(model, DATA[chosen]).backward()
        optimizer.step()
    return model


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("steps", [1, 6, 8, 15])
def test_so_many_steps_are_made_across_epochs(steps: int) -> None:
    model, agent = made(steps=steps, scheduler=None)
    assert (agent.total_steps, len(agent)) == (steps, steps)
    ends: list[int] = []
    agent.on_epoch(ends.append)
    found = trained(model, agent)
    assert len(found) == agent.step_number == agent.total_steps == steps
    assert {len(step) for step in found} == {BATCH}
    assert same(model, single(found))
    assert ends == list(range(-(-steps * BATCH // SIZE))), "the last epoch ends with the last step"


def test_epochs_nest_where_steps_are_counted() -> None:
    model, agent = made(steps=8)
    seen = []
    for epoch in agent.epochs():
        for batch in epoch:
            agent.step(loss_of(model, batch))
        seen.append((epoch.number, agent.step_number))
    assert seen == [(0, 6), (1, 8)]


def test_a_stop_is_the_end_of_it() -> None:
    model, agent = made(epochs=3)
    for batch in agent:
        if agent.step_number == 7:
            agent.stop("enough")
        agent.step(loss_of(model, batch))
    assert agent.step_number == 7


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"steps": 3, "epochs": 2}, "epochs or steps, not both"),
        ({"steps": 0}, "at least one"),
        ({"steps": 3, "options": antdt.AgentOptions(order="shards")}, "counts steps of a fixed size"),
        ({"options": antdt.AgentOptions(learning_rate_with_batch="cubic")}, "take one of 'linear', 'sqrt'"),
    ],
)
def test_an_end_that_cannot_be_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        made(**options)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        order = list(range(SIZE))
        random.shuffle(order)
        return iter([DATA[i] for i in order])


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro-batches": {"options": antdt.AgentOptions(micro_batch_size_max=5)},
    "data processes": {"num_workers": 1, "collate_fn": torch.utils.data.default_collate},
    "a stream": {"data": Stream(), "size": SIZE},
    "files asked for": {"options": antdt.AgentOptions(checkpoint_every_steps=1)},
    "an odd batch": {"batch_size": 17},
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_sample_of_every_epoch_is_in_the_model_as_a_plain_loop_has_it(kind: str) -> None:
    model, agent = made(epochs=3, **KINDS[kind])
    steps = trained(model, agent)
    assert Counter(i for step in steps for i in step) == Counter(list(range(SIZE)) * 3)
    assert agent.step_number == len(steps) == 3 * -(-SIZE // KINDS[kind].get("batch_size", BATCH))
    assert same(model, single(steps))
    assert agent.rank == 0


def test_a_loader_gives_the_batches_that_it_gives_by_itself() -> None:
    loader = DataLoader(DATA, BATCH)
    steps = trained(*made(data=loader, epochs=2))
    assert steps == [batch[0].tolist() for _ in range(2) for batch in loader]
    model, agent = made(data=DataLoader(DATA, BATCH, sampler=WeightedRandomSampler(X[:, 0], 2 * BATCH)), epochs=3)
    drawn = trained(model, agent)
    assert [len(step) for step in drawn] == [BATCH] * 6
    assert same(model, single(drawn)) and agent.source.size == 2 * BATCH


def test_the_same_again_is_the_same_again() -> None:
    assert trained(*made(epochs=2)) == trained(*made(epochs=2)) != trained(*made(epochs=2, seed=8))


def test_one_line_says_it_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "_said", [])
    with caplog.at_level(logging.WARNING, "antdt"):
        for _ in range(2):
            trained(*made())
    assert [r.getMessage() for r in caplog.records] == [alone.SAID]
    assert alone.SAID.startswith("antdt: no job is named: training in this process alone, nothing is recorded. ")


def test_memory_that_runs_out_costs_the_step_and_no_sample() -> None:
    model, agent = made(epochs=2, options=antdt.AgentOptions(micro_batch_size_max=8))
    failed, steps = False, dict[int, list[int]]()
    for batch in agent:
        if agent.step_number == 3 and not failed:
            failed = True

            def full(gradient: Any) -> Any:
                raise torch.OutOfMemoryError("out of memory")

            hook = next(model.parameters()).register_hook(full)
            assert not agent.step(loss_of(model, batch))
            hook.remove()
            continue
        steps.setdefault(agent.step_number, []).extend(batch[0].tolist())
        agent.step(loss_of(model, batch))
    assert agent.ended and failed
    assert Counter(i for step in steps.values() for i in step) == Counter(list(range(SIZE)) * 2)
    assert same(model, single(list(steps.values())))


def test_what_one_model_has_learned_of_memory_is_not_for_the_next() -> None:
    test_memory_that_runs_out_costs_the_step_and_no_sample()
    model, agent = made()
    assert len(trained(model, agent)) == agent.step_number == SIZE // BATCH
    sizes = []
    model, agent = made()
    for batch in agent:
        sizes.append(len(batch[0]))
        agent.step(loss_of(model, batch))
    assert set(sizes) == {BATCH}, "in one go"


def test_leaving_the_loop_is_no_end(caplog: pytest.LogCaptureFixture) -> None:
    model, agent = made()
    with caplog.at_level(logging.WARNING, "antdt"):
        for batch in agent:
            agent.step(loss_of(model, batch))
            if agent.step_number == 2:
                break
    assert not agent.ended and agent.step_number == 2
    assert caplog.records[-1].getMessage() == (
        "w0 left the loop early, behind step 2: its model is the one in this process."
    )


def test_an_error_of_the_script_comes_through() -> None:
    model, agent = made()

    def loop() -> None:
        for batch in agent:
            agent.step(loss_of(model, batch) * (1 // (3 - agent.step_number)))

    with pytest.raises(ZeroDivisionError):
        loop()


def test_told_to_end_it_leaves_behind_the_step_in_which_it_says_so() -> None:
    model, agent = made()
    before = signal.getsignal(signal.SIGTERM)

    def loop() -> None:
        for batch in agent:
            if agent.step_number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            agent.step(loss_of(model, batch))

    with pytest.raises(SystemExit) as end:
        loop()
    assert end.value.code == ExitCode.DRAINED
    assert agent.step_number == 4  # the one at hand, and that of the good-bye, in which it does its part
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_folder_for_checkpoints_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTDT_CHECKPOINTS", str(tmp_path))
    model, agent = made(epochs=3, options=antdt.AgentOptions(checkpoint_every_steps=4))
    trained(model, agent)
    (run,) = tmp_path.iterdir()
    steps = sorted(int(path.name.split("-")[1]) for path in run.glob("step-*.pt"))
    assert steps == [4, 8, 12, 16, 18], "as many as a ledger keeps, and the last one"
    (last,) = run.glob("step-000000018-*")
    saved = torch.load(last, weights_only=False)
    assert "model" in saved


# -- one after the other


def test_a_finished_agent_is_not_iterated_again() -> None:
    model, agent = made()
    trained(model, agent)
    with pytest.raises(UsageError, match=r"iterated already.*pass epochs=N"):
        next(iter(agent))


def test_models_are_trained_one_after_the_other_and_none_of_them_twice() -> None:
    threads = threading.active_count()
    losses = [next(m.parameters()).sum().item() for rate in (1, 2, 3) for m in [trained_at(rate)]]
    assert len(set(losses)) == 3
    assert threading.active_count() <= threads + 1, "nothing stays behind"
    hook, gone = sys.excepthook, [weakref.ref(trained_at(1))]
    gc.collect()
    assert gone[0]() is None and sys.excepthook is hook, "a loop over many models holds none of them"
    model, agent = made()
    trained(model, agent)
    with pytest.raises(UsageError, match=r"trained this model before: pass epochs=N"):
        antdt.Agent(model, torch.optim.SGD(model.parameters(), 0.1), DATA, batch_size=BATCH)


def trained_at(rate: int) -> torch.nn.Module:
    model, agent = made(batch_size=BATCH * rate)
    trained(model, agent)
    return model


# -- who is alone


@pytest.mark.parametrize(
    "environ", [{}, {"ANTDT_DATA": "/d", "ANTDT_NODE": "n"}, {"WORLD_SIZE": "1", "RANK": "0"}, {"ANTDT_SECRET": ""}]
)
def test_nothing_speaks_of_a_job(environ: dict[str, str]) -> None:
    found = Settings.here(environ)
    assert (found.alone, found.world_size, found.rank) == (True, 1, 0)


@pytest.mark.parametrize(
    ("environ", "speaks"),
    [
        ({"ANTDT_KAFKA_BOOTSTRAP_SERVERS": "b:9092"}, "ANTDT_KAFKA_BOOTSTRAP_SERVERS"),
        ({"ANTDT_WORKER": "w1", "ANTDT_DATA": "/d"}, "ANTDT_WORKER"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "WORLD_SIZE"),
        ({"ANTDT_SECRET": "x"}, "ANTDT_SECRET"),
    ],
)
def test_what_speaks_of_a_job_or_of_others_is_not_trained_alone(environ: dict[str, str], speaks: str) -> None:
    with pytest.raises(UsageError, match=f"No job is named, although {speaks} is set"):
        Settings.here(environ)


def test_a_named_job_is_one() -> None:
    assert not Settings.here({"ANTDT_JOB": "j"}).alone
    assert Settings.of({"ANTDT_JOB": "j"}, job="other").job == "other"


# -- the book


def book() -> alone.Book:
    return alone.Book(records.JobSpec("d", 10, bytes(16), "sequential", 2, 0, 2, 4, 1, 4, "allreduce"))


def ask(found: alone.Book, body: Any, number: int = 1) -> records.Reply:
    return found.answers(records.Request("w0", "w0.0", number, body, b""))[0]


def join() -> records.Join:
    return records.Join("worker", "h", 1, "n", "", 0, records.JobSpec("d", 10, b"", "", 2, 0, 2, 4, 1, 4, "allreduce"))


def commit(first: int, *lengths: int) -> records.Commit:
    made = tuple((1, 1, 0, 0, length) for length in lengths)
    return records.Commit(1, first, made, (0,) * len(made), b"", -1)


def test_what_a_model_holds_is_committed_before_more_is_leased() -> None:
    found = book()
    grant = ask(found, join()).grant
    assert grant is not None and grant.restore_file == "init" and grant.generation == 1
    assert ask(found, records.Lease(1, 8)).leases == (1, 1, 0, 0, 10)
    ask(found, commit(1, 4))
    assert ask(found, records.Lease(1, 8)).leases == (1, 1, 0, 4, 6, 2, 1, 1, 0, 10)
    grant = ask(found, records.Regroup(1, 3, b"", "h", 1)).grant
    assert grant is not None and (grant.source, grant.source_step, grant.restore_file) == ("w0.0", 3, None)
    assert ask(found, records.Lease(2, 8)).status is Status.WAIT
    ask(found, commit(1, 4, 4))
    assert ask(found, records.Lease(2, 8)).leases == (), "one step of three is missing"
    ask(found, commit(3, 4))
    assert (found.committed, found.done) == (3, 12)
    assert ask(found, records.Lease(2, 8)).leases == (3, 1, 1, 2, 8)


def test_the_end_is_a_file_of_the_last_step_with_everything() -> None:
    found = book()
    ask(found, join())
    ask(found, commit(1, 10, 10))
    assert found.finished
    first, *more = found.answers(records.Request("w0", "w0.0", 9, records.Checkpoint(1, 2, b"", "f"), b""))
    assert first.status is Status.OK and [m.status for m in more] == [Status.END]


def test_a_model_that_was_lost_is_refused() -> None:
    found = book()
    ask(found, join())
    reply = ask(found, records.Regroup(1, None, b"", "h", 1))
    assert reply.status is Status.REFUSED and "records nothing" in reply.reason
