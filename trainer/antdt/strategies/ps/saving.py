"""A server's part of a checkpoint, written beside its work; and at the primary, which parts of it are there.

Rules
    The part is copied where the order says so, and hashed and written by a thread. The copy is not touched before that
    thread has ended, also if the generation ends first: its file is then named by nobody.
    A checkpoint is told when every part is durable, and all are of one version and lineage.

Must not know sockets, nor where files are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from antdt_schemas.errors import Mismatch

from antdt.strategies.ps import wire
from antdt.strategies.ps.links import Bell
from antdt.strategies.ps.parts import Buffer
from antdt.strategies.ps.state import ServerState

Write = Callable[[str, memoryview], bytes]


class Saved(NamedTuple):
    """A checkpoint that is whole. parts: of each server, in their order, its file and that file's digest."""

    version: int
    lineage: bytes
    name: str
    parts: tuple[tuple[str, bytes], ...]


class Saving:
    """Of one server. Invariant: at most one thread of this generation writes."""

    def __init__(self, state: ServerState, write: Write, bell: Bell) -> None:
        self._state, self._write, self._bell = state, write, bell
        self._buffer = Buffer()
        self._job: _Job | None = None
        self._left: list[_Job] = []
        self._name = ""
        self._parts: dict[int, wire.Saved] = {}

    @property
    def is_open(self) -> bool:
        """At the primary: a checkpoint was begun, and not all of its parts are there."""
        return bool(self._name)

    def begin(self, name: str) -> None:
        """At the primary: parts of this one are collected from now on."""
        self._name, self._parts = name, {}

    def save(self, name: str) -> None:
        """Copy this server's part, and write it. Raises NotFinite."""
        assert self._job is None, f"{name} is to be saved while {self._job} is written"
        state = self._state
        file = f"{name}-part{state.part}of{state.servers}.part"
        data = state.snapshot(self._buffer)
        told = wire.Saved(name, state.version, state.lineage.hex(), file, "")
        self._job = _Job(told, data, self._write, self._bell)

    def written(self) -> wire.Saved | None:
        """This server's part, once it is durable; it is told once. Raises what writing it has raised."""
        job = self._job
        if job is None or not job.is_done:
            return None
        self._job = None
        if job.wrong is not None:
            raise job.wrong
        return job.told

    def collect(self, part: int, saved: wire.Saved) -> Saved | None:
        """At the primary: a part is durable. The checkpoint, if it was the last one of its parts.

        Raises Mismatch if servers have saved different versions.
        """
        if saved.name != self._name:
            return None
        self._parts[part] = saved
        if len(self._parts) < self._state.servers:
            return None
        parts = [self._parts[number] for number in range(self._state.servers)]
        first, self._name = parts[0], ""
        for one in parts:
            if (one.version, one.lineage) != (first.version, first.lineage):
                what = f"Version and lineage of {one.file}"
                raise Mismatch(what, (first.version, first.lineage), (one.version, one.lineage))
        files = tuple((one.file, bytes.fromhex(one.digest)) for one in parts)
        return Saved(first.version, bytes.fromhex(first.lineage), first.name, files)

    def forget(self) -> None:
        """The generation is over."""
        self._name, self._parts = "", {}
        if self._job is not None:
            self._left, self._job, self._buffer = [*self._left, self._job], None, Buffer()
        self._left = [job for job in self._left if job.is_alive()]

    def close(self) -> None:
        """Wait for whoever still writes."""
        for job in self._left:
            job.join()


class _Job(threading.Thread):
    """Writes one part."""

    def __init__(self, told: wire.Saved, data: memoryview, write: Write, bell: Bell) -> None:
        super().__init__(name=f"writes {told.file}")
        self.told, self.is_done = told, False
        self._data, self._write, self._bell = data, write, bell
        self.wrong: BaseException | None = None
        self.start()

    def run(self) -> None:
        """See Thread."""
        try:
            self.told = self.told._replace(digest=self._write(self.told.file, self._data).hex())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever takes what was written
            self.wrong = error
        finally:
            self.is_done = True
            self._bell.ring()
