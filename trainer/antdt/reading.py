"""The thread that reads a topic ahead of training: what is leased, in the order of taking, as far as there is room.

Owns when something is read, and when somebody asks where a topic ends by now. Must not know what a record is.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from time import monotonic
from typing import Any, cast

from antdt_schemas.errors import Unavailable, UsageError

from antdt.connect.alone import Alone
from antdt.connect.client import Client
from antdt.connect.settings import Settings
from antdt.connect.topics import KafkaTopic, connection_of
from antdt.data.topics import Topic, TopicSource
from antdt.worker.session.reading import Found, ReadLeases

IDLE_S = 0.01
ENDS_EVERY_S = 1.0  # how often the first member asks where a topic that grows ends
STOP_S = 5.0

log = logging.getLogger("antdt")


def reached(data: Any, settings: Settings) -> Any:
    """A topic, reached over the job's connection unless it has properties of its own; other data as they are.

    Raises UsageError: it grows, and there is no job to end it.
    """
    if not isinstance(data, Topic):
        return data
    if settings.alone and not data.bounded:
        raise UsageError("A topic that grows needs a job, whose ledger ends it: `antdt launch`, or bounded=True.")
    if data.broker is not None:
        return data
    connection = connection_of(data.properties, settings.connection, alone=settings.alone)
    return replace(data, broker=KafkaTopic(data.name, connection))


class Reading:
    """Of one worker; for data that are no topic it does nothing. What fails in it is raised where training waits for
    the connection.
    """

    def __init__(self, source: Any, client: Client | Alone) -> None:
        self.source, self.client = source if isinstance(source, TopicSource) else None, client
        self._halt = threading.Event()
        self._ends_at_s = 0.0
        self._thread = threading.Thread(target=self._run, name="antdt-topic", daemon=True)

    def start(self) -> None:
        """From now on what is leased is read."""
        if self.source is not None:
            self._thread.start()

    def stop(self) -> None:
        """The end; bounded, and whatever is under way is forgotten."""
        self._halt.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)
        if self.source is not None and not self._thread.is_alive():
            self.source.broker.close()

    @property
    def _leases(self) -> ReadLeases:
        return cast(ReadLeases, self.client.session.leases)

    def _run(self) -> None:
        try:
            while self.source is not None and not self._halt.is_set():
                if not self._turn(self.source):
                    self._halt.wait(IDLE_S)
        except BaseException as error:  # noqa: BLE001  the training thread raises it
            self.client.fail(error)

    def _turn(self, source: TopicSource) -> bool:
        """Read what comes next. Returns whether there was anything to read."""
        client = self.client
        with client.lock:
            live = self._leases.live
            chunk = self._leases.to_read() if source.has_room else None
        source.keep(live)
        if chunk is None:
            self._ask_for_ends(source)
            return False
        found = source.read(chunk)
        if found.faulty and isinstance(client, Alone):
            found = _passed_over(found)
        with client.changed:
            wanted = self._leases.was_read(chunk, found)
            client.changed.notify_all()
        return wanted

    def _ask_for_ends(self, source: TopicSource) -> None:
        client = self.client
        due = client.session.rank == 0 and not source.topic.bounded and not isinstance(client, Alone)
        if due and monotonic() - self._ends_at_s >= ENDS_EVERY_S:
            try:
                ends = {partition: end for partition, (_, end) in source.broker.bounds().items()}
            except Unavailable as error:  # whether it stays away is for those to say who need something of it
                log.warning("where %s ends by now is not known: %s", source.topic.name, error)
            else:
                with client.lock:
                    self._leases.ends = ends
            self._ends_at_s = monotonic()


def _passed_over(found: Found) -> Found:
    """Without a job there is no quarantine: what cannot be decoded was said, and is left out."""
    vacant = [*found.vacant, *((one.position, 1) for one in found.faulty)]
    return Found(found.end, sorted(vacant))
