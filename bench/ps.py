"""What a parameter server carries: rows of a table and dense gradients, beside torch.distributed.rpc and gloo.

`python -m bench.ps --json FILE`. Every process has one thread of torch; all are on this machine. The transports run one
after the other in each repetition, so that all meet the same machine. An exchange is one gradient to the server, which
applies it, and the next parameters back.

    rows    2 workers, 1 server, 10,000 rows of 16 numbers of a table of a million, SGD
    dense   1 worker, 1 server, 64 MB there and 64 MB back; GB/s is of both together

The peers apply the same updates; they check, stage and order nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from antdt.strategies.ps.client import Exchange
from antdt.strategies.ps.core.facts import Mode
from antdt.strategies.ps.layout import Layout, layout_of
from antdt.strategies.ps.server import Server
from antdt.strategies.ps.state import ServerState
from torch import distributed
from torch.distributed import rpc

from bench.common import machine, spread, write

ROWS, WIDTH, ROWS_A_STEP, SETS = 1_000_000, 16, 10_000, 16
DENSE = 16 * 2**20
RATE = 0.01
HOST = "127.0.0.1"


class Table(torch.nn.Module):
    """As `antdt.Embedding` is to a server."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(0, WIDTH))
        self.rows, self.width, self.std, self.seed = ROWS, WIDTH, 1.0, 0


def made(what: str) -> tuple[torch.nn.Module, Any, Layout]:
    """The model, its optimizer, and where its parameters lie."""
    model = (
        torch.nn.ModuleDict({"table": Table()}) if what == "rows" else torch.nn.Linear(DENSE // 1024, 1024, bias=False)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    return model, optimizer, layout_of(model, optimizer)


def id_sets(seed: int) -> list[torch.Tensor]:
    """What a worker's batches ask for, in ascending order and each id once."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(ROWS, generator=generator)[:ROWS_A_STEP].sort().values for _ in range(SETS)]


def timed(exchange: Callable[[int], None], warm_up: int, seconds: float, start: Any, counts: Any) -> None:
    """How many exchanges of one worker there are, after the first ones, which touch all memory; and their time."""
    for number in range(warm_up):
        exchange(number)
    start.wait()
    count, begin_s = 0, time.perf_counter()
    while time.perf_counter() - begin_s < seconds:
        exchange(count)
        count += 1
    counts.put((count, time.perf_counter() - begin_s))


# -- ours


def serve(what: str, port: Any, end: Any) -> None:
    """A server until it is told to end."""
    torch.set_num_threads(1)
    model, optimizer, layout = made(what)
    server = Server(ServerState(layout, model, optimizer, 0, 1), Mode("asp"), "bench", lambda name, data: b"")
    own = server.bind(HOST)
    server.begin(1, [(HOST, own)])
    port.put(own)
    while not end.is_set():
        server.turn(0.2)
    server.close()


def work(what: str, number: int, port: int, seconds: float, start: Any, counts: Any) -> None:
    """One worker."""
    torch.set_num_threads(1)
    _, _, layout = made(what)
    exchange = Exchange(layout, "bench", f"w{number}")
    exchange.connect(1, [(HOST, port)])
    sets = id_sets(number) if what == "rows" else []
    gradient = torch.randn(ROWS_A_STEP, WIDTH)
    exchange.pull({"table": sets[0]} if sets else {})

    def one(step: int) -> None:
        ranges = (number, 0, 0, step, 1)
        if not sets:
            exchange.push(ranges, 1, 1.0)
            return
        ids, following = sets[step % SETS], sets[(step + 1) % SETS]
        exchange.push(ranges, 1, 1.0, rows={"table": (ids, gradient)}, next_rows={"table": following})

    timed(one, 2 * SETS if sets else 3, seconds, start, counts)
    exchange.bye()
    exchange.close()


# -- peers

_held: dict[str, torch.Tensor] = {}


def held(name: str, *shape: int) -> torch.Tensor:
    """Parameters of a peer's server."""
    if name not in _held:
        _held[name] = torch.zeros(*shape)
    return _held[name]


def rows_of(ids: torch.Tensor, gradient: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """On the server of rpc."""
    table = held("rows", ROWS, WIDTH)
    table.index_copy_(0, ids, table.index_select(0, ids).sub_(gradient, alpha=RATE))
    return table.index_select(0, following)


def dense_of(gradient: torch.Tensor) -> torch.Tensor:
    """On the server of rpc."""
    return held("dense", DENSE).sub_(gradient, alpha=RATE)


def rpc_server(what: str, workers: int, port: int) -> None:
    """A process that others call."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR=HOST, MASTER_PORT=str(port))
    rpc.init_rpc("server", rank=0, world_size=workers + 1)
    rpc.shutdown()


def rpc_worker(what: str, number: int, workers: int, port: int, seconds: float, start: Any, counts: Any) -> None:
    """One that calls."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR=HOST, MASTER_PORT=str(port))
    rpc.init_rpc(f"w{number}", rank=number + 1, world_size=workers + 1)
    sets = id_sets(number) if what == "rows" else []
    gradient = torch.randn(ROWS_A_STEP, WIDTH) if sets else torch.zeros(DENSE)

    def one(step: int) -> None:
        if sets:
            rpc.rpc_sync("server", rows_of, (sets[step % SETS], gradient, sets[(step + 1) % SETS]))
        else:
            rpc.rpc_sync("server", dense_of, (gradient,))

    timed(one, 2 * SETS if sets else 3, seconds, start, counts)
    rpc.shutdown()


def gloo_server(what: str, workers: int, port: int) -> None:
    """Takes what any worker sends, in the order of who comes; a gradient of zeros beyond the end stops it."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://{HOST}:{port}", rank=0, world_size=workers + 1)
    ids, following = torch.empty(ROWS_A_STEP, dtype=torch.int64), torch.empty(ROWS_A_STEP, dtype=torch.int64)
    gradient = torch.empty(ROWS_A_STEP, WIDTH) if what == "rows" else torch.empty(DENSE)
    goes_on, left = torch.empty(1), workers
    while left:
        sender = distributed.recv(goes_on, tag=1)
        if not goes_on.item():
            left -= 1
            continue
        if what == "rows":
            distributed.recv(ids, sender, tag=2)
            distributed.recv(gradient, sender, tag=3)
            distributed.recv(following, sender, tag=4)
            distributed.send(rows_of(ids, gradient, following), sender, tag=5)
        else:
            distributed.recv(gradient, sender, tag=3)
            distributed.send(dense_of(gradient), sender, tag=5)
    distributed.destroy_process_group()


def gloo_worker(what: str, number: int, workers: int, port: int, seconds: float, start: Any, counts: Any) -> None:
    """One that sends and receives."""
    torch.set_num_threads(1)
    rank = number + 1
    distributed.init_process_group("gloo", init_method=f"tcp://{HOST}:{port}", rank=rank, world_size=workers + 1)
    sets = id_sets(number) if what == "rows" else []
    gradient = torch.randn(ROWS_A_STEP, WIDTH) if sets else torch.zeros(DENSE)
    answer = torch.empty_like(gradient)

    def one(step: int) -> None:
        distributed.send(torch.ones(1), 0, tag=1)
        if sets:
            distributed.send(sets[step % SETS], 0, tag=2)
        distributed.send(gradient, 0, tag=3)
        if sets:
            distributed.send(sets[(step + 1) % SETS], 0, tag=4)
        distributed.recv(answer, 0, tag=5)

    timed(one, 2 * SETS if sets else 3, seconds, start, counts)
    distributed.send(torch.zeros(1), 0, tag=1)
    distributed.destroy_process_group()


# -- runs


def free_port() -> int:
    """One that nobody has right now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def measured(transport: str, what: str, workers: int, seconds: float) -> float:
    """Exchanges a second of all workers together."""
    spawn = multiprocessing.get_context("spawn")
    start, counts, end, ports = spawn.Barrier(workers + 1), spawn.Queue(), spawn.Event(), spawn.Queue()
    if transport == "antdt":
        server = spawn.Process(target=serve, args=(what, ports, end))
        server.start()
        common: tuple[Any, ...] = (ports.get(timeout=120), seconds, start, counts)
        target: Callable[..., None] = work
    else:
        port = free_port()
        entry, target = (rpc_server, rpc_worker) if transport == "rpc" else (gloo_server, gloo_worker)
        server = spawn.Process(target=entry, args=(what, workers, port))
        server.start()
        common = workers, port, seconds, start, counts
    processes = [spawn.Process(target=target, args=(what, number, *common)) for number in range(workers)]
    for process in processes:
        process.start()
    start.wait(300)
    found = [counts.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(60)
    end.set()
    server.join(60)
    return sum(count / took_s for count, took_s in found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    transports = ("antdt", "rpc", "gloo")
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.repetitions):
        for what, workers in (("rows", 2), ("dense", 1)):
            for transport in transports:
                found.setdefault((what, transport), []).append(measured(transport, what, workers, options.seconds))
    results: dict[str, Any] = {"machine": machine()}
    for (what, transport), rates in found.items():
        unit = "exchanges_a_s" if what == "rows" else "gb_a_s"
        values = rates if what == "rows" else [rate * 2 * 4 * DENSE / 1e9 for rate in rates]
        result = spread(values, 0 if what == "rows" else 2)
        results[f"{what}_{transport}"] = {"unit": unit, **result}
        print(
            f"{what:>6}  {transport:>6}  {result['median']:>9,} {unit}  [{result['min']:,} to {result['max']:,}]",
            flush=True,
        )
    write(options.json, results)


if __name__ == "__main__":
    main()
