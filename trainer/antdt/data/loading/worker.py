"""What a data process does: loads the pieces it is told to, in order, until nobody is there to tell it any more.

Owns the process's signals, its random generators, and how a data set's failure is reported. Must not know why a piece
is wanted, nor who else loads.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import socket
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from antdt.data.loading.beginning import Beginning
from antdt.data.loading.packing import pack
from antdt.data.readers import Piece, Reader
from antdt.data.seeding import seed_generators, seed_sample
from antdt.host.child import die_with_parent, keep_garbage

MESSAGE_BYTES_MAX = 1 << 17
NUMBER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Order:
    """Load this piece under this number; or, without one, do not load the pieces of these numbers any more."""

    number: int = -1
    piece: Piece | None = None
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Samples of a piece from its beginning: all of them, or those before the one that failed, and what was said.

    failed: (first, number) of the samples that are to blame, counted from the beginning of the piece.
    """

    samples: list[Any]
    failure: str = ""
    failed: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """Who this data process is: `number` of `count`, and what it begins with.

    beginning: where it leaves what it is loading: epoch, start, length; length 0: nothing.
    """

    number: int
    count: int
    seed: int
    init: Callable[[int], None] | None = None
    beginning: Beginning | None = None


def serve(link: socket.socket, reader: Reader, setup: Setup, foreign: Sequence[socket.socket]) -> None:
    """The life of a data process. foreign: ends of other links, which a fork brought here."""
    keep_garbage()
    for other in foreign:
        other.close()
    _begin()
    failure, orders = _introduce(reader, setup), deque[Order]()
    with suppress(ConnectionError):  # the trainer is gone, or has closed its end: nobody waits for anything
        while _listen(link, orders):
            order = orders.popleft()
            assert order.piece is not None
            outcome = Outcome([], failure) if failure else _load(reader, order.piece, setup)
            _answer(link, order.number, outcome)


def _begin() -> None:
    # The trainer decides when it is over: it still finishes its step after a SIGTERM to all of its group, and one
    # traceback for a Ctrl-C is enough. A function and not SIG_IGN, which a data set's own programs would inherit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    parent = multiprocessing.parent_process()
    assert parent is not None
    die_with_parent(parent.is_alive)
    torch.set_num_threads(1)


def _introduce(reader: Reader, setup: Setup) -> str:
    """As in a worker of a DataLoader: `get_worker_info()`, then `worker_init_fn`. Returns what went wrong."""
    from torch.utils.data._utils import worker

    seed = setup.seed + setup.number
    worker._worker_info = worker.WorkerInfo(id=setup.number, num_workers=setup.count, seed=seed, dataset=reader.dataset)
    seed_generators(seed)
    try:
        if setup.init is not None:
            setup.init(setup.number)
    except Exception:  # noqa: BLE001  the trainer shows it
        return f"worker_init_fn failed in data process {setup.number}:\n{traceback.format_exc()}"
    return ""


def _listen(link: socket.socket, orders: deque[Order]) -> bool:
    """Take what was said; waits only where there is nothing to do. False: there is nobody any more."""
    while True:
        try:
            data = link.recv(MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT if orders else 0)
        except BlockingIOError:
            return True
        if not data:
            return False
        order = pickle.loads(data)
        if order.piece is not None:
            orders.append(order)
        for gone in [o for o in orders if o.number in order.dropped]:
            orders.remove(gone)


def _load(reader: Reader, piece: Piece, setup: Setup) -> Outcome:
    samples, at_once = list[Any](), reader.at_once and piece.length > 1

    def before(position: int) -> None:
        if setup.beginning is not None:
            setup.beginning.write(piece.epoch, position, piece.length if at_once else 1)
        seed_sample(setup.seed, piece.epoch, position)

    try:
        # Those before one that fails stay in the list.
        samples.extend(reader.samples(piece, before))
        if len(samples) != piece.length:
            raise ValueError(f"The data set gave {len(samples)} samples where it was asked for {piece.length}.")
    except Exception:  # noqa: BLE001  the trainer shows it
        said = f"Loading {piece.name(len(samples))} failed:\n{traceback.format_exc()}"
        return _narrowed(reader, piece, setup, said) if at_once else Outcome(samples, said, (len(samples), 1))
    finally:
        if setup.beginning is not None:
            setup.beginning.write(0, 0, 0)
    return Outcome(samples)


def _narrowed(reader: Reader, piece: Piece, setup: Setup, said: str) -> Outcome:
    """A chunk that was loaded at once failed: which of its samples does, by itself? All of them, if none."""
    for at in range(piece.length):
        one = _load(reader, piece.part(at), setup)
        if one.failed is not None:
            return Outcome([], one.failure, (at, 1))
    return Outcome([], said, (0, piece.length))


def _answer(link: socket.socket, number: int, outcome: Outcome) -> None:
    try:
        descriptor = pack(outcome)
    except Exception:  # noqa: BLE001  the trainer shows it
        said = f"Samples cannot be passed on to the trainer:\n{traceback.format_exc()}"
        descriptor = pack(Outcome([], said))
    with open(descriptor, "rb") as memory:
        socket.send_fds(link, [number.to_bytes(NUMBER_BYTES, "little")], [memory.fileno()])
