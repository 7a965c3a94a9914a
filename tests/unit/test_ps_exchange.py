"""Workers and servers over real sockets, in threads: what is in the model is what one process would have made of it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from antdt.files import checkpoint
from antdt.strategies.base import GenerationClosed
from antdt.strategies.ps.client import Exchange, Included, Late
from antdt.strategies.ps.core.facts import Mode
from antdt.strategies.ps.parts import assemble

from tests.helpers.parameter_servers import Made, RemoteTable, group


def dense(kind: Callable[..., Any] = torch.optim.Adam) -> Made:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))
    return model, kind(model.parameters(), lr=0.05), None


def sparse(kind: Callable[..., Any] = torch.optim.SGD) -> Made:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"table": RemoteTable(1000, 6), "out": torch.nn.Linear(6, 1)})
    return model, kind(model.parameters(), lr=0.1), None


def ranges(worker: int, step: int, length: int = 4) -> tuple[int, ...]:
    return (worker, -step, 0, step * 100 + worker * 10, length)


def fill(exchange: Exchange, model: torch.nn.Module) -> None:
    """Parameters of the last answer into a model."""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for block, flat in zip(exchange.layout.blocks, exchange.parameters, strict=True):
            for name, value in block.split(flat):
                named[name].copy_(value)


def take(exchange: Exchange, model: torch.nn.Module) -> None:
    """A model's gradients into what is pushed."""
    named = dict(model.named_parameters())
    for block, flat in zip(exchange.layout.blocks, exchange.gradients, strict=True):
        for name, value in block.split(flat):
            value.copy_(named[name].grad)
            named[name].grad = None


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize(
    "kind",
    [
        partial(torch.optim.SGD, momentum=0.9, weight_decay=0.01),
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adagrad,
        torch.optim.RMSprop,
    ],
)
def test_synchronous_workers_make_the_model_of_one_process(kind: Any, servers: int, tmp_path: Path) -> None:
    make = partial(dense, kind)
    alone, optimizer, _ = make()
    data = torch.randn(10, 2, 4, 5, generator=torch.Generator().manual_seed(1))
    with group(make, servers, Mode("bsp"), tmp_path) as made:
        workers = [made.worker(f"w{number}") for number in range(2)]
        models = [make()[0] for _ in workers]
        ready = threading.Barrier(2)

        def work(number: int) -> None:
            exchange, model = workers[number], models[number]
            exchange.pull()
            ready.wait()  # from here on both are counted
            for step in range(10):
                fill(exchange, model)
                model(data[step, number]).square().sum().backward()
                take(exchange, model)
                answer = exchange.push(ranges(number, step), 4, weight=4)
                assert isinstance(answer, Included)
                assert (answer.version, answer.staleness) == (step + 1, 0)
            exchange.bye()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for step in range(10):
            optimizer.zero_grad()
            alone(data[step].flatten(0, 1)).square().mean().backward()
            optimizer.step()
        found, reference = workers[0].parameters, dict(alone.named_parameters())
        for block, flat in zip(workers[0].layout.blocks, found, strict=True):
            for name, value in block.split(flat):
                assert torch.allclose(value, reference[name], atol=1e-5), name
        assert [len(version.contributions) for version in made.versions] == [2] * 10
        assert len({server.lineage for server in made.servers}) == 1
        for exchange in workers:
            exchange.close()


@pytest.mark.parametrize("servers", [1, 2])
def test_rows_come_on_demand_and_with_answers(servers: int, tmp_path: Path) -> None:
    with group(sparse, servers, Mode("asp"), tmp_path) as made:
        exchange = made.worker("w0")
        ids = torch.tensor([0, 3, 17, 500, 999])
        first = exchange.pull({"table": ids}).rows["table"]
        assert torch.equal(exchange.rows("table", ids), first)
        for flat in exchange.gradients:
            flat.zero_()
        some = ids[1:4]
        answer = exchange.push(
            ranges(0, 0), 2, weight=2, rows={"table": (some, torch.ones(3, 6))}, next_rows={"table": ids}
        )
        expected = first.clone()
        expected[1:4] -= 0.1 / 2
        assert torch.allclose(answer.rows["table"], expected)
        assert torch.allclose(exchange.rows("table", ids), expected)
        assert sum(server.state.tables[0].count for server in made.servers) == 3
        exchange.close()


def test_who_comes_late_computes_once_more_and_is_then_carried(tmp_path: Path) -> None:
    with group(dense, 2, Mode("bsp"), tmp_path) as made:
        fast, slow = made.worker("fast"), made.worker("slow")
        fast.pull()
        slow.pull()
        with made.lock:
            made.servers[0].backup = 1
        assert isinstance(fast.push(ranges(0, 0), 4, 4), Included)
        late = slow.push(ranges(1, 0), 4, 4)
        assert isinstance(late, Late)
        assert (late.version, late.attempt) == (1, 1)
        assert isinstance(fast.push(ranges(0, 1), 4, 4), Included)
        carried = slow.push(ranges(1, 0), 4, 4)
        assert isinstance(carried, Included)
        assert (carried.version, carried.staleness) == (3, 1)
        assert [[c.incarnation for c in v.contributions] for v in made.versions] == [["fast"], ["fast"], ["slow"]]
        fast.close()
        slow.close()


def test_nobody_waits_for_an_idle_worker_nor_for_a_lost_one(tmp_path: Path) -> None:
    with group(dense, 2, Mode("bsp"), tmp_path) as made:
        a, b, c = (made.worker(name) for name in "abc")
        for worker in (a, b, c):
            worker.pull()
        b.idle()
        with made.lock:
            made.servers[0].lost(["c"])
        assert isinstance(a.push(ranges(0, 0), 4, 4), Included)
        with pytest.raises(GenerationClosed):
            c.push(ranges(2, 0), 4, 4)
        b.pull()
        thread = threading.Thread(target=lambda: b.push(ranges(1, 1), 4, 4))
        thread.start()
        assert isinstance(a.push(ranges(0, 1), 4, 4), Included)
        thread.join()
        assert [len(version.contributions) for version in made.versions] == [1, 2]
        for worker in (a, b, c):
            worker.close()


def test_who_waits_is_told_when_the_generation_ends(tmp_path: Path) -> None:
    with group(dense, 1, Mode("bsp"), tmp_path) as made:
        a, b = made.worker("a"), made.worker("b")
        a.pull()
        b.pull()
        sent = a.gradients
        thread = threading.Timer(0.05, a.abort)
        thread.start()
        with pytest.raises(GenerationClosed):
            a.push(ranges(0, 0), 4, 4)
        assert a.gradients is not sent  # that memory may still be on its way
        thread.join()
        a.close()
        b.close()


def test_all_servers_go_back_to_one_checkpoint(tmp_path: Path) -> None:
    for make in (dense, partial(sparse, torch.optim.Adam)):
        folder = tmp_path / str(id(make))
        with group(make, 2, Mode("asp"), folder) as made:
            exchange = made.worker("w0")

            def train(steps: range, exchange: Exchange = exchange, rows: bool = make is not dense) -> None:
                exchange.pull()
                for step in steps:
                    gen = torch.Generator().manual_seed(step)
                    for flat in exchange.gradients:
                        flat.normal_(generator=gen)
                    ids = torch.arange(step, 900 + step, 7)
                    more = {"table": (ids, torch.randn(len(ids), 6, generator=gen))} if rows else {}
                    exchange.push(ranges(0, step), 4, 4, rows=more)

            train(range(3))
            with made.lock:
                made.servers[0].checkpoint("c3")
            train(range(3, 5))
            expected, lineage = [copy.deepcopy(flat) for flat in exchange.parameters], made.servers[0].lineage
            while not made.saved:
                assert not made.wrong
                threading.Event().wait(0.01)
            saved = made.saved[0]
            assert (saved.version, saved.name) == (3, "c3")
            made.stop()
            parts = [checkpoint.read_bytes(folder / name[-13:], name, "job") for name, _ in saved.parts]
            for server, part in zip(made.servers, parts, strict=True):
                server.leave()
                server.state.load(part)
                assert (server.version, server.lineage) == (3, saved.lineage)
            whole, tables = assemble(parts)
            made.start()
            exchange.connect(made.generation, made.peers)
            exchange.pull()
            for block, flat in zip(exchange.layout.blocks, exchange.parameters, strict=True):
                for name, value in block.split(flat):
                    assert torch.equal(value, whole[name])
            for name, (ids, rows) in tables.items():
                assert torch.equal(exchange.rows(name, ids), rows)
            train(range(3, 5))
            assert all(torch.equal(a, b) for a, b in zip(expected, exchange.parameters, strict=True))
            assert made.servers[1].lineage == lineage
            exchange.close()
