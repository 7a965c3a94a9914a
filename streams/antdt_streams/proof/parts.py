"""An exported log proven part by part, in processes of their own: as many at a time as there are cores.

Each part begins at a waypoint and must arrive at the next one (see `waypoints`). Only what holds is proven here. Of
anything else nothing is said: the log is then read in one piece, and that reader names what is wrong and where.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context, parent_process
from pathlib import Path

from antdt_schemas.container import LogFile
from antdt_schemas.errors import AntdtError

from antdt_streams.ledger.stored import Identity
from antdt_streams.proof import waypoints
from antdt_streams.proof.audit import Account
from antdt_streams.proof.coverage import Coverage
from antdt_streams.proof.walker import Anchors
from antdt_streams.proof.waypoints import Waypoint

AHEAD = 2  # parts for each process, at work or waiting for it: what bounds the memory of this one

log = logging.getLogger("antdt.parts")


@dataclass(frozen=True, slots=True)
class Part:
    """From a waypoint (None: the first entry) to the next one (None: the end of the file)."""

    path: Path
    identity: Identity
    start: Waypoint | None
    end: Waypoint | None
    anchors: dict[int, bytes]
    counting: bool = True


class PartBroken(Exception):
    """This part does not lead from its waypoint to the next one: a log that breaks, or a waypoint that is wrong."""


def cores() -> int:
    """How many processes can work at once."""
    return len(os.sched_getaffinity(0))


def prove(path: Path, anchors: Anchors, processes: int | None = None, *, counting: bool = True) -> Account | None:
    """The account of the whole log in a file, as `Account.read` would leave it; None if it was not proven in parts:
    there is one core, or no waypoint, or something does not hold.

    anchors: rolling hashes that the log must meet, beside that of the file itself.
    counting: for an audit, not for a mere replay.

    Raises:
        UsageError: the file cannot be read.
    """
    count = cores() if processes is None else processes
    if count < 2 or not waypoints.beside(path).exists():
        return None
    with LogFile(path) as file:
        header = file.header
    whole = {**header.anchors, **anchors}
    pool, account = ProcessPoolExecutor(count, get_context("spawn"), _begin), None
    try:
        identity = Identity(header.job, header.topic_id)
        found = _proven(pool, parts_of(path, header.next_offset, identity, whole, counting), count * AHEAD)
        account = joined(found)
    except (PartBroken, AntdtError, BrokenExecutor) as error:
        log.warning("event=parts-broken file=%s reason=%s: it is read again in one piece", path, error)
    finally:
        pool.shutdown(wait=account is not None, cancel_futures=True)
    return account


def parts_of(path: Path, end: int, identity: Identity, anchors: Anchors, counting: bool = True) -> Iterator[Part]:
    """The parts between the waypoints beside a file that ends before offset `end`, each with the anchors in it."""
    start: Waypoint | None = None
    # One at the end of the file would leave the last part without an entry to be told by.
    for stop in chain((w for w in waypoints.reading(path) if w.next_offset < end), (None,)):
        low, high = start.next_offset if start else 0, stop.next_offset if stop else 1 << 63
        due = {offset: expected for offset, expected in anchors.items() if low <= offset < high}
        yield Part(path, identity, start, stop, due, counting)
        start = stop


def _proven(pool: ProcessPoolExecutor, parts: Iterator[Part], depth: int) -> Iterator[Account]:
    """The accounts of all parts, in order."""
    waiting: deque[Future[Account]] = deque()
    for part in parts:
        if len(waiting) == depth:
            yield waiting.popleft().result()
        waiting.append(pool.submit(prove_part, part))
    while waiting:
        yield waiting.popleft().result()


def joined(accounts: Iterator[Account]) -> Account:
    """The last account, with what those before it found."""
    whole = next(accounts)
    for account in accounts:
        if account.coverage is not None and whole.coverage is not None:
            account.coverage.follow(whole.coverage)
        whole = account
    return whole


# -- in the process


def prove_part(part: Part) -> Account:
    """Read one part. Of all but the last one, the state and the places of samples stay here.

    Raises:
        PartBroken: it does not hold.
    """
    account = Account(Coverage() if part.counting else None)
    if part.start is not None:
        _depart(account, part.start, part.identity)
    end = part.end
    with LogFile(part.path) as file:
        broken = account.read(_between(file, account.fold.position.next_offset, end), part.anchors)
    if broken is not None:
        raise PartBroken(broken.message)
    if end is not None:
        _arrive(account, end, part.identity, part.anchors)
    return account


def _between(file: LogFile, start: int, end: Waypoint | None) -> Iterator[tuple[int, bytes]]:
    """The entries from an offset on, up to a waypoint."""
    stop = end.next_offset if end else 1 << 63
    for block in file.blocks(start):
        yield from [(offset, payload) for offset, _, payload in block if start <= offset < stop]
        if block[-1].offset >= stop - 1:
            return


def _depart(account: Account, start: Waypoint, identity: Identity) -> None:
    try:
        account.fold = start.fold(identity)
        assert account.fold.state is not None, "no job"
        account.coverage = account.coverage and Coverage.opened(account.fold.state)
    except Exception as error:  # whatever a file from elsewhere may hold
        raise PartBroken(f"the waypoint at offset {start.next_offset}: {type(error).__name__} {error}") from error


def _arrive(account: Account, end: Waypoint, identity: Identity, anchors: Anchors) -> None:
    fold, coverage = account.fold, account.coverage
    if not waypoints.stands(fold) or waypoints.packed(fold, identity) != end.unpacked():
        raise PartBroken(f"the state before offset {end.next_offset} is not that of the waypoint there")
    assert fold.state is not None
    if fold.proven != end.proven and end.next_offset - 1 not in anchors:  # an anchor there proves more
        raise PartBroken(f"the waypoint at offset {end.next_offset} says that offset {end.proven} is proven")
    if coverage is not None and not coverage.agrees(fold.state):
        raise PartBroken(f"what was counted before offset {end.next_offset} disagrees with the state")
    account.fold, account.coverage = type(fold)(cached=False), coverage and coverage.closed()


def _begin() -> None:
    gc.disable()  # steps and numbers by the thousand, none of which refers to another
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process that was killed says nothing, and its pool would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
