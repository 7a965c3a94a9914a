"""A service as a process: from its name and a folder to an exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

from antdt_schemas import framing
from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError, ExitCode
from antdt_schemas.exporting import Where, serving
from antdt_schemas.topics import DEAD_LETTERS, SNAPSHOTS

from antdt_streams.host.logs import log_to_stderr
from antdt_streams.host.readiness import Readiness
from antdt_streams.host.tracing import tracing
from antdt_streams.kafka import topics_admin
from antdt_streams.runtime.figures import RuntimeFigures
from antdt_streams.runtime.partitions import Partitions, Policy
from antdt_streams.runtime.service import Batch, Service
from antdt_streams.runtime.sink import Halted, KafkaSink
from antdt_streams.runtime.source import Membership, Source
from antdt_streams.storage.rocks import RowStore, open_or_rebuild
from antdt_streams.storage.rows import Identity
from antdt_streams.storage.snapshots import TopicShelf

log = logging.getLogger("antdt.run")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Who this instance is, bounds, and what an operator may allow.

    instance, session_timeout_ms: see Membership.
    stop_timeout_s: a stop that takes longer is cut off; the state is that of the last commit, as after a kill.
    metrics: where they are served, if they are.
    """

    instance: str | None = None
    session_timeout_ms: int | None = None
    policy: Policy = field(default_factory=Policy)
    reach_timeout_s: float = 10.0
    stop_timeout_s: float = 5.0
    metrics: Where = field(default_factory=Where)


def run_service(
    connection: Connection, job: str, service: Service, folder: Path, options: RunOptions | None = None
) -> int:
    """Run a service of a job until SIGTERM or SIGINT; its exit code. `folder` is its own, nobody else's.

    Logs go to stderr, one line each; the last one says why it ended.
    """
    options = options or RunOptions()
    options.metrics.check()
    connection = connection.named(job, service.name, options.instance or "")
    log_to_stderr(job, service.name)
    readiness = Readiness.of(os.environ)
    # Signals first: importing Faust takes a while, and a stop may come meanwhile.
    with _signals() as asked, _cut_off(options.stop_timeout_s) as cut_off:
        try:
            connection.check_reachable(options.reach_timeout_s)
            framing.begin()
            topics = topics_admin.fit(connection, job)
            for difference in topics.differences:
                log.warning("event=topic-differs what=%r mend=%r", str(difference), difference.mend(job))
            with closing(open_or_rebuild(folder / "rows")) as store:
                written = topics.record_bytes_max(*service.outputs.values(), DEAD_LETTERS)
                identity = Identity(job, topics.ids[service.input.suffix], written)
                shelf = TopicShelf(connection, job, service.name, topics.record_bytes_max(SNAPSHOTS))
                _run(connection, identity, service, store, shelf, options, asked, cut_off, readiness)
        except Halted as error:
            log.warning("event=stopped reason=%r", str(error))
        except AntdtError as error:
            log.error("event=ended code=%d reason=%r", error.exit_code, str(error))  # noqa: TRY400  says it all
            return int(error.exit_code)
        except Exception:
            log.exception("event=ended code=%d reason='a bug of ours'", ExitCode.BUG)
            return int(ExitCode.BUG)
        finally:
            readiness.withdraw()
    return int(ExitCode.DRAINED)


def _run(
    connection: Connection,
    identity: Identity,
    service: Service,
    store: RowStore,
    shelf: TopicShelf,
    options: RunOptions,
    asked: threading.Event,
    cut_off: threading.Timer,
    readiness: Readiness,
) -> None:
    """asked: whether a signal came before the event loop was there. cut_off: to be started when stopping begins."""
    from antdt_streams.runtime.faust_app import Host

    halted = threading.Event()
    membership = Membership(f"antdt.{identity.job}.{service.name}", options.instance, options.session_timeout_ms)
    sink = KafkaSink(connection, halted, identity.record_bytes_max, service.name)
    wanted = options.metrics.port is not None
    observer = service.figures() if wanted and service.figures is not None else None
    partitions = Partitions(service, identity, store, sink, shelf, options.policy, observer)
    topic = service.input.name(identity.job)
    source = Source(connection, topic, identity.topic_id, membership, partitions, halted)
    source.on_joined = readiness.say
    figures = RuntimeFigures(partitions, source)

    def on_end() -> None:
        source.halt()
        cut_off.start()

    async def hosted() -> None:
        take = partial(_take, partitions, topic, membership.group)
        host = Host(membership.group, store.folder.with_name("faust"), source.read, take, on_end)
        _on_signals(asyncio.get_running_loop(), host.end)
        if asked.is_set():
            host.end()
        await host.run(lambda: log.info("event=started topic=%s instance=%s", topic, options.instance or "-"))

    try:
        with serving(options.metrics, identity.job, service.name, figures, observer):
            asyncio.run(hosted())
    finally:
        source.halt()
        sink.close()
        shelf.close()


def _take(partitions: Partitions, topic: str, group: str, batch: Batch) -> None:
    traced = tracing()
    with traced.processing(topic, group, batch.partition, len(batch.records)) if traced else nullcontext():
        partitions.take(batch)


# -- stopping


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set until the event loop takes them over; the handlers of before come back."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)


@contextmanager
def _cut_off(timeout_s: float) -> Iterator[threading.Timer]:
    """A timer that ends the process: once it is started, stopping is bounded whatever hangs. No state is torn by it."""
    timer = threading.Timer(timeout_s, os._exit, (int(ExitCode.RESTART_HERE),))
    timer.daemon = True
    try:
        yield timer
    finally:
        timer.cancel()
