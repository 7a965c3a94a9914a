"""What a launcher knows of its workers that they cannot say themselves.

Owns a process beside them which speaks for a worker that has fallen silent though it runs: C code that holds the GIL
lets no other thread of it send a heartbeat. It says what the worker is at, so that the ledger takes it for busy, or
stuck, and not for dead; and it ends a worker that was given up. For a worker that is stopped (SIGSTOP) or dead nobody
speaks. Must not know how workers are started.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.context import ForkProcess
from pathlib import Path
from time import monotonic

from antdt_schemas import auth, codec, framing, records, topics
from antdt_schemas.errors import AntdtError
from antdt_schemas.offsets import watermarks
from antdt_schemas.polling import new_consumer
from confluent_kafka import Producer, TopicPartition

from antdt.connect.settings import Settings
from antdt.host import whereabouts
from antdt.host.child import in_child
from antdt.host.whereabouts import TOGETHER, At, Page, Standing
from antdt.launch.output import say

LOOK_S = 0.5
SILENT_S = 2.0
EVERY_S = 1.0
IDLE_S = 10.0
REACH_S = 5.0
NEWS = -1  # the number of a request whose answer nobody awaits
GIVEN_UP = (records.Status.LOST, records.Status.REJOIN)
DEAD_OR_STOPPED = "TtZXx"


def began(page: Page, pid: int | None, restarts: int) -> None:
    """The launcher has started this life of a worker."""
    page.numbers[whereabouts.LIFE], page.numbers[whereabouts.PID] = restarts, pid or 0


def missing(pages: Iterable[Page], job: str) -> str:
    """One sentence of what a launch that has ended did not train on."""
    said = max((page.said(whereabouts.MISSING) for page in pages), key=len)
    return f"antdt launch: {said}. The rest is done. Mend the data and run `antdt readmit {job}`, then launch again."


class Watch:
    """The launcher's look at its workers, in passing. It forks somebody to speak for them when there is a need."""

    def __init__(self, pages: Mapping[str, Page], life: Callable[[str, int], str], settings: Settings) -> None:
        """life: the incarnation of a worker's life of that number."""
        self.pages, self.life, self.settings = pages, life, settings
        self._changes = dict.fromkeys(pages, -1)
        self._looked_s = 0.0
        self._child: ForkProcess | None = None

    def look(self) -> None:
        """Cheap: call it as often as you like."""
        if monotonic() - self._looked_s < LOOK_S:
            return
        self._looked_s = monotonic()
        if any(self.silent()) and (self._child is None or not self._child.is_alive()):
            self._child = in_child(lambda: Voucher(self).serve())

    def silent(self) -> Iterator[str]:
        """Workers that run, and have neither spoken nor moved for a while. Ask at intervals."""
        for name, page in self.pages.items():
            beat_s, pid, before = page.times[whereabouts.BEAT], page.numbers[whereabouts.PID], self._changes[name]
            self._changes[name] = page.changes
            if 0 < beat_s < monotonic() - SILENT_S and pid > 0 and page.changes == before:
                if state_of(pid) not in DEAD_OR_STOPPED:
                    yield name


class Voucher:
    """The process that speaks for them, until they speak for themselves."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._pages, self._settings = watch, watch.pages, watch.settings
        connection, topic = self._settings.connection, topics.REPLIES.name(self._settings.job)
        self._producer = Producer(connection.producer(**{"linger.ms": 0}))
        self._consumer = new_consumer(connection.consumer())
        partitions = sorted({topics.replies_partition(name) for name in self._pages})
        ends = [watermarks(self._consumer, topic, p, REACH_S)[1] for p in partitions]
        self._consumer.assign([TopicPartition(topic, p, end) for p, end in zip(partitions, ends, strict=True)])

    def serve(self) -> None:
        needed_s = monotonic()
        while monotonic() - needed_s < IDLE_S:
            for name in self._watch.silent():
                needed_s = monotonic()
                self._speak_for(name, self._pages[name])
            until = monotonic() + EVERY_S
            while monotonic() < until:
                self._listen()

    def _speak_for(self, name: str, page: Page) -> None:
        said = said_of(page.standing(), monotonic() - page.times[whereabouts.BEAT])
        detail = f"its process runs, but lets no thread of it speak: {said.detail}".removesuffix(": ")
        # The generation is not known here: an older one is answered with where the worker stands.
        body = records.Heartbeat(0, 0, said.phase, said.phase_s, said.allowed_s, detail)
        request = records.Request(name, self._incarnation(name, page), NEWS, body, b"")
        topic = topics.REQUESTS.name(self._settings.job)
        payload = framing.framed(topic, codec.encode(auth.sign(request, self._settings.secret)))
        with suppress(BufferError):  # the broker is away: so it is for the ledger
            self._producer.produce(topic, payload, name, 0)
            self._producer.poll(0)

    def _incarnation(self, name: str, page: Page) -> str:
        return page.said(whereabouts.NAME) or self._watch.life(name, page.numbers[whereabouts.LIFE])

    def _listen(self) -> None:
        """A worker that was given up, and does not move, hears nothing of it: it is ended here."""
        message = self._consumer.poll(0.1)
        if message is None or message.error() is not None:
            return
        with suppress(AntdtError):
            reply = codec.decode(framing.unframed(message.topic() or "", message.value()), records.Reply)
            page = self._pages.get(reply.worker)
            if page is not None and reply.status in GIVEN_UP and reply.number == NEWS:
                self._end(reply, page)

    def _end(self, reply: records.Reply, page: Page) -> None:
        pid = page.numbers[whereabouts.PID]
        if reply.incarnation == self._incarnation(reply.worker, page) and reply.worker in list(self._watch.silent()):
            what = f"{reply.worker} was given up, and lets no thread of it speak: it is ended, to be started again"
            say(f"antdt launch: {what}. It was {page.phase.name.lower()}.")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def said_of(standing: Standing, silent_s: float) -> Standing:
    """What is said of a process that is silent for so long. It waits for nobody: whatever comes, it cannot go on."""
    if standing.phase in TOGETHER:
        return Standing(At.USER.name.lower(), silent_s, standing.allowed_s, standing.phase)
    return replace(standing, phase_s=max(standing.phase_s, silent_s))


def state_of(pid: int) -> str:
    """State of a process, as the kernel's letter; X if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"
