"""Workers and servers in threads of this process, over real sockets: the model is that of one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import antdt
import pytest
import torch
from antdt.files import checkpoint
from antdt.files.part_files import PartFiles
from antdt.host import whereabouts
from antdt.host.whereabouts import At
from antdt.strategies.base import GenerationClosed, Here, Outcome, Part, Watches
from antdt.strategies.once import Once
from antdt.strategies.ps.core.facts import Version
from antdt.strategies.ps.member import ServedMember
from antdt.strategies.ps.options import ParameterServer
from antdt.strategies.ps.parts import Buffer
from antdt.strategies.ps.serving import Serving
from antdt.strategies.ps.tables import first_values
from antdt.worker.instructions import Parts
from antdt.worker.session import Session, Where
from antdt_schemas import records
from antdt_schemas.errors import Unavailable, UsageError
from antdt_schemas.lineage import ROOT, next_lineage
from antdt_schemas.ranges import Range
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from tests.unit.test_session import SPEC

HOST = "127.0.0.1"
SERVERS = 2
Script = Callable[[], tuple[nn.Module, torch.optim.Optimizer, Once]]


def adam() -> tuple[nn.Module, torch.optim.Optimizer, Once]:
    """A script's model and optimizer, with a schedule."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    groups = [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)
    return model, optimizer, Once(LambdaLR(optimizer, lambda step: 1 / (1 + step)))


def waits(act: Callable[[], None], phase: At) -> threading.Thread:
    """Somebody does this, and says that it waits for servers meanwhile."""
    page = whereabouts.mine()
    page.enter(phase, "something")
    thread = threading.Thread(target=act)
    thread.start()
    until_s = time.monotonic() + 10
    while page.phase is not At.REDUCING:
        assert thread.is_alive() and time.monotonic() < until_s, page.standing()
    return thread


class NoFiles:
    """All begin with what the script makes."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving

    def restore(self, grant: records.Grant, rank: int) -> None:
        self.serving.load(None)


class Cluster:
    """Servers of one script. `versions`: decided so far, at the primary."""

    def __init__(self, script: Script, options: ParameterServer) -> None:
        self.script, self.options = (
            script,
            ParameterServer(options.mode, options.staleness, options.backup, servers=SERVERS),
        )
        self.versions, self._stop, self._failed = list[Version](), threading.Event(), list[BaseException]()
        self.servers = [self._server(part) for part in range(SERVERS)]
        self.grant = self._granted(1)
        self._threads: list[threading.Thread] = []
        self.workers: list[ServedMember] = []

    def _server(self, part: int) -> Serving:
        model, optimizer, once = self.script()
        one = Serving(model, optimizer, self.options, Here(HOST, lambda: HOST, "job", f"s{part}", True))
        one.accompany(once)
        return one

    def _granted(self, generation: int) -> records.Grant:
        at = [one.address for one in self.servers]
        members = tuple(records.Member(f"s{i}.0", f"s{i}", *where) for i, where in enumerate(at))
        return records.Grant("run", generation, members, None, None, 0, "init")

    def begin(self) -> None:
        for part, one in enumerate(self.servers):
            one.form(self.grant, part, lambda: False)
            one.align(self.grant, part, NoFiles(one))
        self.go_on()

    def _serve(self, one: Serving) -> None:
        try:
            while not self._stop.is_set():
                self.versions += [found for found in one.turn(0.01) if isinstance(found, Version)]
        except BaseException as error:  # noqa: BLE001 - raised by the test
            self._failed.append(error)

    def go_on(self) -> None:
        """After a stop, in the same generation."""
        self._stop.clear()
        self._threads = [threading.Thread(target=self._serve, args=(one,)) for one in self.servers]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "a server does not end"

    def end(self) -> None:
        self.stop()
        for one in [*self.workers, *self.servers]:
            one.end()
        if self._failed:
            raise self._failed[0]

    def worker(self, name: str) -> ServedMember:
        model, optimizer, once = self.script()
        one = ServedMember(model, optimizer, self.options, Here(HOST, lambda: HOST, "job", name))
        one.accompany(once)
        one.incarnation = f"{name}.0"
        one.form(self.grant, -1, lambda: False)
        one.align(self.grant, -1, NoFiles(self.servers[0]))
        self.workers.append(one)
        return one


@pytest.fixture
def cluster() -> Iterator[Callable[..., Cluster]]:
    """Makes clusters that end with the test."""
    made: list[Cluster] = []

    def make(script: Script = adam, **options: Any) -> Cluster:
        made.append(Cluster(script, ParameterServer(**options)))
        made[-1].begin()
        return made[-1]

    yield make
    for one in made:
        one.end()


DRAWN = torch.Generator().manual_seed(1)
X, Y = torch.randn(64, 6, generator=DRAWN), torch.randint(3, (64,), generator=DRAWN)


def contribute(worker: ServedMember, samples: Sequence[int], lease: int = 1) -> Outcome:
    """One contribution of these samples, which lie behind each other."""
    worker.announce(Part([Range(lease, 7, 0, samples[0], len(samples))], 0, len(samples)))
    loss = functional.cross_entropy(worker.model(X[list(samples)]), Y[list(samples)])
    worker.backward(loss, len(samples))
    return worker.finish(lambda _: None)


def test_who_waits_for_the_parameters_of_servers_says_so(cluster: Callable[..., Cluster]) -> None:
    """Where a generation begins, and where it has samples again: nobody would look for the server that hangs."""
    here = cluster()
    worker = here.worker("w0")
    worker.idle(leaving=False)
    here.stop()
    thread = waits(lambda: worker.announce(Part([Range(1, 7, 0, 0, 8)], 0, 8)), At.IDLE)
    here.go_on()
    thread.join(10)
    assert whereabouts.mine().phase is At.IDLE
    worker.abort()
    here.stop()
    worker.incarnation = "w0.1"
    worker.form(here.grant, -1, lambda: False)
    thread = waits(lambda: worker.align(here.grant, -1, NoFiles(here.servers[0])), At.FORMING)
    here.go_on()
    thread.join(10)
    standing = whereabouts.mine().standing()
    assert (standing.phase, standing.detail) == ("forming", "something")


def of_one_process(script: Script, batches: Sequence[Sequence[int]]) -> nn.Module:
    model, optimizer, once = script()
    for batch in batches:
        optimizer.zero_grad()
        functional.cross_entropy(model(X[list(batch)]), Y[list(batch)]).backward()
        optimizer.step()
        for one in once.schedulers:
            one.step()
    return model


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6), name


def test_two_workers_of_uneven_parts_make_the_steps_of_one_process(cluster: Callable[..., Cluster]) -> None:
    here = cluster()
    workers = [here.worker("w0"), here.worker("w1")]
    cuts = [(8 * step, 8 * step + 3, 8 * step + 8) for step in range(8)]
    with ThreadPoolExecutor(2) as pool:
        for low, cut, high in cuts:
            parts = range(low, cut), range(cut, high)
            outcomes = list(pool.map(contribute, workers, parts, [1, 2]))
            assert [one.applied for one in outcomes] == [True, True]
    alone = of_one_process(adam, [range(low, high) for low, _, high in cuts])
    for worker in workers:
        assert worker.step_number == 8
        assert_equal(worker.model, alone)


def baseline(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    reward = x.sum(1)
    return (functional.cross_entropy(m(x), y, reduction="none") * (reward - reward.mean()).sigmoid()).mean()


def negatives(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(m(x + 0.1) @ m(x).T, torch.arange(len(x)))


TOGETHER: dict[str, tuple[Callable[..., torch.Tensor], str]] = {
    "without a graph": (baseline, "without a gradient"),
    "with a graph": (lambda m, x, y: (m(x) - m(x).mean(0)).square().mean(), "puts the samples"),
    "a root of a mean": (lambda m, x, y: functional.cross_entropy(m(x), y).sqrt(), "is not linear"),
    "negatives": (negatives, "compares the samples"),
}


def train(worker: ServedMember, loss_of: Callable[..., torch.Tensor], parts: int = 1) -> None:
    """A few steps of 16 samples, each in so many micro-batches, as an Agent has them made."""
    for step in range(6):
        worker.announce(Part([Range(1, 7, 0, 16 * step % 64, 16)], 0, 16))
        for at in range(parts):
            low = (16 * step + at * 16 // parts) % 64
            x, y = X[low : low + 16 // parts], Y[low : low + 16 // parts]
            worker.watch((x, y), len(x))
            loss = loss_of(worker.model, x, y)
            worker.watcher.leave()
            try:
                worker.backward(loss, len(x), at == parts - 1)
            finally:
                worker.watcher.end()
        worker.finish(lambda _: None)


@pytest.mark.parametrize("name", TOGETHER)
def test_what_depends_on_the_samples_of_one_contribution_is_refused_where_several_make_a_step(
    cluster: Callable[..., Cluster], name: str
) -> None:
    loss_of, match = TOGETHER[name]
    with pytest.raises(UsageError, match=match):
        train(cluster(mode="bsp").worker("w0"), loss_of)
    own_steps = cluster(mode="asp")
    train(own_steps.worker("w0"), loss_of)
    with pytest.raises(UsageError, match=match):
        train(own_steps.worker("w1"), loss_of, parts=2)


def test_a_plain_loss_is_watched_and_not_refused(cluster: Callable[..., Cluster]) -> None:
    worker = cluster(mode="bsp").worker("w0")
    assert isinstance(worker, Watches)
    train(worker, lambda m, x, y: functional.cross_entropy(m(x), y), parts=2)


def test_lineage_is_that_of_what_is_in_a_version(cluster: Callable[..., Cluster]) -> None:
    here = cluster()
    worker = here.worker("w0")
    contribute(worker, range(8))
    contribute(worker, range(8, 12))
    first = next_lineage(ROOT, 1, (1, 0, 0, 8))
    assert worker.lineage == next_lineage(first, 2, (1, 0, 8, 4))
    here.stop()  # what was decided is handed out behind the answers
    assert [(one.version, one.lineage) for one in here.versions] == [(1, first), (2, worker.lineage)]


def test_each_contribution_is_a_version_where_nobody_waits(cluster: Callable[..., Cluster]) -> None:
    here = cluster(mode="asp")
    workers = [here.worker("w0"), here.worker("w1")]
    for worker in workers:
        for step in range(3):
            assert contribute(worker, range(8 * step, 8 * step + 8)).applied
    here.stop()
    assert len(here.versions) == 6 and workers[1].step_number == 6


def test_a_gradient_that_is_not_finite_counts_its_samples_and_learns_nothing(cluster: Callable[..., Cluster]) -> None:
    here = cluster()
    worker = here.worker("w0")
    before = [param.clone() for param in worker.model.parameters()]
    worker.announce(Part([Range(1, 7, 0, 0, 4)], 0, 4))
    worker.backward(functional.cross_entropy(worker.model(X[:4] * float("nan")), Y[:4]), 4)
    outcome = worker.finish(lambda _: None)
    assert outcome.applied and outcome.skipped == ("w0",) and worker.step_number == 1
    assert all(torch.equal(a, b) for a, b in zip(before, worker.model.parameters(), strict=True))


def test_positions_without_a_record_are_in_a_version_that_learns_nothing(cluster: Callable[..., Cluster]) -> None:
    here = cluster(mode="asp")
    worker = here.worker("w0")
    before = [param.clone() for param in worker.model.parameters()]
    worker.announce(Part([Range(1, 7, 0, 0, 4)], 0, 8, empty=4))
    outcome = worker.finish(lambda _: None)
    assert (outcome.applied, outcome.skipped, outcome.total, worker.step_number) == (True, None, 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, worker.model.parameters(), strict=True))


def test_a_worker_that_waits_is_called_off_from_another_thread(cluster: Callable[..., Cluster]) -> None:
    here = cluster()
    first, other = here.worker("w0"), here.worker("w1")
    assert other.stands
    timer = threading.Timer(0.2, first.close)
    timer.start()
    with pytest.raises(GenerationClosed):
        contribute(first, range(4))
    first.abort()
    assert not first.stands


class Sparse(nn.Module):
    """A table, and what follows from it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = antdt.Embedding(50, 6, std=0.1)
        self.linear = nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(self.table(ids).sum(1))
        return out


def sparse() -> tuple[nn.Module, torch.optim.Optimizer, Once]:
    """A script's, with a table."""
    torch.manual_seed(0)
    model = Sparse()
    return model, torch.optim.Adagrad(model.parameters(), lr=0.1), Once()


IDS = torch.randint(50, (64, 4), generator=torch.Generator().manual_seed(2))


def test_a_table_on_servers_is_trained_as_one_in_the_process_and_put_together(
    cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTDT_SERVERS", "2")
    here = cluster(sparse)
    worker = here.worker("w0")
    for step in range(6):
        samples = slice(8 * step, 8 * step + 8)
        worker.announce(Part([Range(1, 7, 0, 8 * step, 8)], 0, 8))
        worker.backward(functional.cross_entropy(worker.model(IDS[samples]), Y[samples]), 8)
        worker.finish(lambda _: None)
    assert worker.model.table.weight.shape == (0, 6)
    here.stop()
    worker.assemble([bytes(one._serving().state.snapshot(Buffer())) for one in here.servers], 6, worker.lineage)

    monkeypatch.setenv("ANTDT_SERVERS", "0")
    alone, optimizer, _ = sparse()
    first = first_values(alone.table.seed, "table", torch.arange(50), 6, 0.1)  # type: ignore[union-attr,arg-type]
    with torch.no_grad():
        alone.table.weight.copy_(first)  # type: ignore[union-attr,operator]
    for step in range(6):
        samples = slice(8 * step, 8 * step + 8)
        optimizer.zero_grad()
        functional.cross_entropy(alone(IDS[samples]), Y[samples]).backward()
        optimizer.step()
    assert_equal(worker.model, alone)


def test_a_checkpoint_in_parts_is_read_as_weights(
    cluster: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTDT_SERVERS", "2")
    here = cluster(sparse)
    worker = here.worker("w0")
    worker.announce(Part([Range(1, 7, 0, 0, 8)], 0, 8))
    worker.backward(functional.cross_entropy(worker.model(IDS[:8]), Y[:8]), 8)
    worker.finish(lambda _: None)
    here.stop()
    files = PartFiles(tmp_path, "job", worker)  # type: ignore[arg-type]
    files.run_id = "run"
    parts = []
    for part, one in enumerate(here.servers):
        name = f"step-000000001-g1-s0.0-part{part}of2.part"
        digest = checkpoint.write_bytes(files.folder, name, one._serving().state.snapshot(Buffer()))
        parts.append((name, digest))
    session = Session("s0", "s0.0", SPEC, Where(HOST, 1), role="server")
    event = files.publish(session, Parts(1, worker.lineage, 0, tuple(parts)))
    assert event is not None

    monkeypatch.setenv("ANTDT_SERVERS", "0")
    model = antdt.load_model(files.folder / event.file, sparse()[0])
    assert torch.equal(model.linear.weight, worker.model.linear.weight)
    assert model.table.weight.shape == (50, 6)
    state = antdt.load_model(files.folder / event.file)
    trained = state["table.ids"]
    assert trained.tolist() == sorted({int(i) for i in IDS[:8].flatten()})
    assert torch.equal(model.table.weight[trained], state["table.rows"])
    with pytest.raises(UsageError, match="another model"):
        antdt.load_model(files.folder / event.file, nn.Linear(2, 2))


def test_rows_that_nobody_gives_any_more_let_the_body_of_the_loop_come_to_its_end(
    cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in the script's own code would end it."""
    monkeypatch.setenv("ANTDT_SERVERS", "2")
    worker = cluster(sparse).worker("w0")
    worker.announce(Part([Range(1, 7, 0, 0, 8)], 0, 8))
    worker.close()
    loss = functional.cross_entropy(worker.model(IDS[:8]), Y[:8])
    with pytest.raises(GenerationClosed):
        worker.backward(loss, 8)
    worker.abort()
    with pytest.raises(Unavailable, match="between two batches"):
        worker.model(IDS[:8])


def test_what_needs_all_workers_is_refused_when_it_is_called(cluster: Callable[..., Cluster]) -> None:
    worker = cluster().worker("w0")
    calls: list[Callable[[], Any]] = [
        lambda: worker.skip(1, "why"),
        worker.reduce,
        lambda: worker.update([worker.optimizer]),
        worker.stop,
        lambda: worker.exchange(None, inside=False),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="ParameterServer: agent"):
            call()
    worker.announce(Part([Range(1, 7, 0, 0, 4)], 0, 4))
    with pytest.raises(UsageError, match="instead of reduction='sum'"):
        worker.backward(functional.cross_entropy(worker.model(X[:4]), Y[:4], reduction="sum"), 4, summed=True)
    with pytest.raises(UsageError, match=r"optimizer.step\(\) was called by the script"):
        worker.optimizer.step()
