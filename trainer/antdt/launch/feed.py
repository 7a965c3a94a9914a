"""What the Controller says that is for launchers, for one of them, which has no threads and no Kafka client.

Owns a child process that follows the decisions from the first one there is, and a pipe from it: full, it makes the
child wait. The child ends at whatever goes wrong and begins anew, from the start: an order to start a worker again
names an incarnation, so reading it again does no harm; who wanted stacks before somebody read of it does not wait.
Must not know what an order does.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.context import ForkProcess
from time import monotonic
from typing import Any, NoReturn

from antdt_schemas import codec, framing, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError, ExitCode, how
from antdt_schemas.offsets import watermarks
from antdt_schemas.polling import Place, Reader
from confluent_kafka import KafkaException

from antdt.host.child import in_child
from antdt.launch.output import say
from antdt.launch.slots import Restart
from antdt.launch.stacks import Wanted

PROBE_S = 10.0  # of a broker that says nothing: whether it is there
REACH_S = 5.0
WAIT_S = 0.5
PAUSE_S, PAUSE_MAX_S = 1.0, 30.0  # from the end of a child to the next one
PIPE_BYTES = 1 << 16
TEXT_CHARS_MAX = 250
PR_SET_NAME, NAME = 15, "antdt-feed"  # as `ps` calls it: 15 bytes at most


class Feed:
    """The launcher's end of it."""

    def __init__(self, connection: Connection, job: str, closes: Callable[[], Sequence[int]]) -> None:
        """closes: gives the descriptors that are the launcher's alone."""
        self._connection, self._job, self._closes = connection, job, closes
        self._child: ForkProcess | None = None
        self._handle, self._rest = -1, b""
        self._begin_at_s, self._pause_s = 0.0, PAUSE_S
        self._hears = self._away = False

    @property
    def handles(self) -> list[int]:
        return [self._handle] if self._handle >= 0 else []

    def look(self) -> list[Restart | Wanted]:
        """The orders that have come. Starts who follows them where nobody does. Cheap: call it as often as you like."""
        if self._child is None:
            if monotonic() >= self._begin_at_s:
                self._begin()
            return []
        code = self._child.exitcode  # asked before the last words are read
        found = self._read()
        if code is not None:
            self.close()
            self._begin_at_s = monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)
            self._is_away(f"who follows them {how(code)}")
        return found

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.join()
            os.close(self._handle)
            self._child, self._handle, self._rest, self._hears = None, -1, b"", False

    def _begin(self) -> None:
        self._handle, writing = os.pipe()
        os.set_blocking(self._handle, False)
        closes = [self._handle, *self._closes()]
        self._child = in_child(lambda: _follow(self._connection, self._job, writing, closes))
        os.close(writing)

    def _read(self) -> list[Restart | Wanted]:
        with suppress(BlockingIOError):
            self._rest += os.read(self._handle, PIPE_BYTES)
        *lines, self._rest = self._rest.split(b"\n")
        found: list[Restart | Wanted] = []
        for line in lines:
            said = json.loads(line)
            if "order" in said:
                incarnation, by, reason = said["order"]
                found.append(Restart(incarnation, by, reason, self._hears))
            elif "stack" in said:
                found.append(Wanted(*said["stack"]))
            elif "away" in said:
                self._is_away(said["away"])
            else:
                self._is_back()
        return found

    def _is_away(self, why: str) -> None:
        if not self._away:
            self._away = True
            say(f"antdt launch: orders to start a worker again are not heard for now: {why}")

    def _is_back(self) -> None:
        self._hears, self._pause_s = True, PAUSE_S
        if self._away:
            self._away = False
            say("antdt launch: orders to start a worker again are heard, those of before as well")


def _follow(connection: Connection, job: str, writing: int, closes: Sequence[int]) -> NoReturn:
    """The life of the child."""
    for handle in closes:
        os.close(handle)
    ctypes.CDLL(None).prctl(PR_SET_NAME, NAME.encode())
    logging.disable()  # what is wrong is said by the launcher, once
    try:
        for line in _heard(connection, job):
            _write(writing, line)
    except (AntdtError, KafkaException) as error:
        _write(writing, {"away": _short(str(error))})
    sys.exit(int(ExitCode.RESTART_HERE))


def _heard(connection: Connection, job: str) -> Iterator[dict[str, Any]]:
    """Orders as they come, and once that all there were have been read.

    Raises:
        Unavailable: the broker is away, or gives nothing.
    """
    place, reader = Place(topics.DECISIONS.name(job)), Reader(connection)
    first, end = watermarks(reader.consumer, *place, REACH_S)
    reader.assign({place: first})
    hears, asked_s = False, monotonic()
    while True:
        for message in reader.poll(WAIT_S):
            order = order_of(framing.unframed(place.topic, message.value()), message.offset())
            if order is not None:
                yield {"order": order}
            elif (message.offset() or 0) >= end and (wanted := wanted_of(message.value())) is not None:
                yield {"stack": wanted}
        if not hears and reader.position(place) >= end:
            hears = True
            yield {"hears": end}
        if monotonic() - asked_s > PROBE_S:
            watermarks(reader.consumer, *place, REACH_S)
            asked_s = monotonic()


def order_of(payload: bytes | None, offset: int) -> tuple[str, str, str] | None:
    """What a Restart is made of, if this decision is one: the incarnation, who orders it, and why."""
    try:
        decision = codec.decode(payload, records.Decision)
    except AntdtError:
        return None  # every worker has said so
    if decision.action is not records.Action.KILL_RESTART:
        return None
    by = f"policy {_short(decision.policy)} (version {decision.policy_version}, decision {offset})"
    reason = decision.reason
    if decision.author:
        by, reason = (
            f"{_short(decision.author)} (decision {offset})",
            reason.removeprefix(f"{decision.author} orders it: "),
        )
    return _short(decision.target), by, _short(reason)


def wanted_of(payload: bytes | None) -> tuple[str, str, int] | None:
    """What a Wanted is made of, if this decision is one: the worker, who wants its stacks, and where that is asked."""
    try:
        decision = codec.decode(payload, records.Decision)
    except AntdtError:
        return None
    if decision.action is not records.Action.NONE or not decision.target:
        return None
    return _short(decision.target), _short(decision.reason), decision.cause.offset


def _short(text: str) -> str:
    return " ".join(text.split())[:TEXT_CHARS_MAX].rstrip(".")


def _write(writing: int, line: Mapping[str, Any]) -> None:
    os.write(writing, json.dumps(line).encode() + b"\n")
