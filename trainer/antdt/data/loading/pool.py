"""The data processes of one trainer: started before anything else, told what to load, ended with it.

Owns the processes, their links, and which piece is whose. Must not know which pieces are wanted, nor in which order
they are used. A link is a pair of sockets: whoever dies is noticed by the other at once, nothing is shared that a
killed process could leave locked, and no thread runs in the trainer.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import socket
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from antdt_schemas.errors import Unavailable, UsageError

from antdt.data.loading.beginning import Beginning
from antdt.data.loading.packing import unpack
from antdt.data.loading.worker import NUMBER_BYTES, Order, Outcome, Setup, serve
from antdt.data.readers import Piece, Reader
from antdt.host import whereabouts
from antdt.host.child import garbage_is_the_parents

END_S = 5.0
FULL_S = 0.02


Samples = tuple[int, int, int]  # epoch, start, length


class SampleFailed(Exception):
    """The data set raised: which samples, and the traceback of the data process."""

    def __init__(self, said: str, samples: Samples | None = None) -> None:
        super().__init__(said)
        self.samples = samples


class DataProcessDied(Unavailable):
    """A data process ended, and nobody told it to. `samples`: those that it was loading."""

    samples: Samples | None = None


@dataclass(slots=True)
class Job:
    """A piece that is being loaded, or is there. `descriptor`: of its packed outcome, until that was looked at."""

    number: int
    piece: Piece
    process: int
    descriptor: int | None = None
    outcome: Outcome | None = None

    @property
    def done(self) -> bool:
        """Whether it has come."""
        return self.descriptor is not None or self.outcome is not None

    def looked_at(self) -> Outcome:
        """What came of it."""
        if self.outcome is None:
            assert self.descriptor is not None
            descriptor, self.descriptor = self.descriptor, None
            self.outcome = unpack(descriptor)
        return self.outcome

    def throw_away(self) -> None:
        """Nobody will look at it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Pool:
    """Invariant: a job is in `_waiting`, and counts in `_loads`, until it has come or nobody wants it any more.

    The trainer never waits for a process to listen: what a link has no room for is sent later. A process may wait for
    the trainer, which comes for what it needs. Were both to wait, nothing would ever move again.
    """

    def __init__(self, reader: Reader, setup: Setup, context: str | None) -> None:
        """setup: what all of them have in common; `count` says how many.

        Raises:
            UsageError: there is no such context, or the data set cannot be passed on to a process of it.
        """
        if context not in (None, *multiprocessing.get_all_start_methods()):
            methods = ", ".join(multiprocessing.get_all_start_methods())
            raise UsageError(f"multiprocessing_context={context!r}: this system has {methods}.")
        self._waiting: dict[int, Job] = {}
        self._number = 0
        self._links: list[socket.socket] = []
        self._processes: list[BaseProcess] = []
        self._beginnings: list[Beginning] = []
        self._unsent = [deque[bytes]() for _ in range(setup.count)]
        self._loads = [0] * setup.count  # samples that each one is to load
        atexit.register(self.close)  # before multiprocessing's own, which would wait for them
        try:
            for number in range(setup.count):
                self._start(reader, replace(setup, number=number), multiprocessing.get_context(context))
        except BaseException as error:
            self.close()
            if not isinstance(error, pickle.PicklingError | AttributeError | TypeError):
                raise
            raise UsageError(
                f"The data set or worker_init_fn cannot be passed on to a process that is started by {context!r}: "
                f"{error}. Define them at the top of a module, or use multiprocessing_context='fork'."
            ) from error

    def _start(self, reader: Reader, setup: Setup, context: Any) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._links.append(here)
        foreign = self._links if context.get_start_method() == "fork" else ()
        beginning = Beginning()
        self._beginnings.append(beginning)
        setup = replace(setup, beginning=beginning)
        process = context.Process(
            target=serve, args=(there, reader, setup, tuple(foreign)), name=f"antdt-data-{setup.number}", daemon=True
        )
        with there, garbage_is_the_parents():
            process.start()
        self._processes.append(process)

    def submit(self, piece: Piece) -> Job:
        """Have it loaded by whoever has least to do."""
        self._number += 1
        job = Job(self._number, piece, self._loads.index(min(self._loads)))
        self._waiting[job.number] = job
        self._loads[job.process] += piece.length
        self._tell(job.process, Order(job.number, piece))
        return job

    def drop(self, jobs: Iterable[Job]) -> None:
        """Nobody wants these any more: what was not begun is not loaded, what comes is thrown away."""
        by_process: dict[int, list[int]] = {}
        for job in jobs:
            if self._no_more(job.number) is not None:
                by_process.setdefault(job.process, []).append(job.number)
            job.throw_away()
        for process, numbers in by_process.items():
            self._tell(process, Order(dropped=tuple(numbers)))

    def receive(self, timeout_s: float) -> bool:
        """Take what has come; waits for something where nothing has. Returns whether anything has.

        Raises:
            DataProcessDied: one of them is gone.
        """
        for process in range(len(self._links)):
            self._send(process)
        if any(self._unsent):
            timeout_s = min(timeout_s, FULL_S)
        ready = wait(self._links, timeout_s)
        for link in ready:
            assert isinstance(link, socket.socket)
            try:
                data, descriptors, _, _ = socket.recv_fds(link, NUMBER_BYTES, 1)
            except ConnectionError:
                data, descriptors = b"", []
            if not data:
                self._died(self._links.index(link))
            whereabouts.mine().progress()
            job = self._no_more(int.from_bytes(data, "little"))
            if job is None:
                os.close(descriptors[0])
            else:
                job.descriptor = descriptors[0]
        return bool(ready)

    def _no_more(self, number: int) -> Job | None:
        job = self._waiting.pop(number, None)
        if job is not None:
            self._loads[job.process] -= job.piece.length
        return job

    def _tell(self, process: int, order: Order) -> None:
        self._unsent[process].append(pickle.dumps(order))
        self._send(process)

    def _send(self, process: int) -> None:
        unsent = self._unsent[process]
        try:
            while unsent:
                self._links[process].send(unsent[0], socket.MSG_DONTWAIT)
                unsent.popleft()
        except BlockingIOError:
            return
        except ConnectionError:
            self._died(process)

    def _died(self, number: int) -> None:
        process = self._processes[number]
        process.join(END_S)
        code = process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        epoch, start, length = self._beginnings[number].read()
        mine = [job.piece for job in self._waiting.values() if job.process == number]
        lost = next((p for p in mine if length and p.epoch == epoch and p.start <= start < p.stop), None)
        doing = f" while it was loading {lost.name(start - lost.start)}" if lost else ""
        died = DataProcessDied(
            f"Data process {number} (pid {process.pid}) {how}{doing}.",
            "If the system was short of memory, take a smaller num_workers, prefetch_factor or chunk_size.",
        )
        died.samples = (epoch, start, length) if lost else None
        raise died

    @property
    def pids(self) -> list[int]:
        """Of the processes that were started."""
        return [process.pid for process in self._processes if process.pid is not None]

    def close(self) -> None:
        """End them, whatever they are doing."""
        atexit.unregister(self.close)
        self._waiting.clear()
        for link in self._links:
            with suppress(OSError):
                link.close()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(END_S)
        for beginning in self._beginnings:
            beginning.close()
        self._links, self._processes, self._beginnings = [], [], []
