"""One job that is looked at: followed while it goes on, begun anew after what may pass, and what is wrong is said.

Owns the documents of the page, and their bytes, which all viewers of the same view share. Knows no HTTP.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from time import monotonic
from typing import Any

from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError, UnknownJob, unknown_job
from antdt_schemas.topics import SHARD_LOG, STEPS
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from antdt_streams.views.glance import View
from antdt_streams.views.health import health_of
from antdt_streams.views.history import sampled
from antdt_streams.views.jobs import running_of, state_of
from antdt_streams.views.past import Past
from antdt_streams.views.top import LASTS, Top

DOCUMENT = "antdt.page/1"
LOOK_S = 0.5
PROBE_EVERY_S, PROBE_S = 3.0, 2.5
HEALTH_EVERY_S = 10.0
AGAIN_S = 3.0
VIEWS_KEPT = 64

log = logging.getLogger("antdt.web")


class Live(threading.Thread):
    """A job, watched until `stop`. `begun` is set once there is something to show, or it is known why there is not.

    trouble: what keeps the page from being true now, and since when; the last document stays.
    """

    def __init__(self, connection: Connection, job: str) -> None:
        super().__init__(name=f"live-{job}", daemon=True)
        self.connection, self.job = connection, job
        self.begun = threading.Event()
        self.top: Top | None = None
        self.trouble: dict[str, Any] | None = None
        self.unknown = False
        self.health: dict[str, Any] | None = None
        self._past: Past | None = None
        self._version = self._missing = 0
        self._payloads: dict[View, tuple[tuple[int, int, int], bytes]] = {}
        self._halt = threading.Event()

    def run(self) -> None:
        while not self._halt.is_set():
            top = None
            try:
                top = Top(self.connection, self.job, early=True)
                top.follow.start()
                self.top = top
                self.begun.set()
                self._watch(top)
            except AntdtError as error:
                self._say(str(error), gone=isinstance(error, UnknownJob))
            except Exception as error:  # a bug of ours must not leave a page that seems to live
                log.exception("event=page-failed job=%s", self.job)
                self._say(f"The page has failed: {type(error).__name__}: {error}")
            finally:
                if top is not None:
                    top.follow.stop()
            self.begun.set()
            self._halt.wait(AGAIN_S)

    def _watch(self, top: Top) -> None:
        """Until it fails, which is raised, or nobody looks any more."""
        admin = AdminClient(self.connection.admin())
        probe_at, health_at, answers = 0.0, 0.0, True
        self._missing, remembers = 0, False
        while not self._halt.wait(LOOK_S):
            if top.follow.failure is not None:
                raise top.follow.failure
            now = monotonic()
            if now >= probe_at and self.begun.is_set():
                answers = self._probe(admin)
                probe_at = monotonic() + PROBE_EVERY_S
                if answers and top.follow.current.is_set():
                    self._say("")
            if not remembers and top.follow.current.is_set():
                remembers = True
                self._remember(top)
            if answers and now >= health_at:
                self._look_at_health()
                health_at = monotonic() + HEALTH_EVERY_S

    def _probe(self, admin: AdminClient) -> bool:
        """Whether the broker answers. Raises UnknownJob once it has said twice that there is no such job."""
        name = SHARD_LOG.name(self.job)
        try:
            found = admin.list_topics(name, timeout=PROBE_S).topics[name]
        except KafkaException as error:
            self._say(f"The broker {self.connection.bootstrap} does not answer: {error.args[0].str()}.")
            return False
        gone = found.error is not None and found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
        self._missing = self._missing + 1 if gone else 0
        if self._missing > 1:
            raise unknown_job(self.job)
        return not gone

    def _remember(self, top: Top) -> None:
        """How long steps took before this began to look."""
        try:
            for some in sampled(self.connection, self.job, int(time.time() * 1000), LASTS[STEPS.suffix]):
                with top.follow.changed:
                    for record, offset, time_ms in some:
                        top.pace.on_record(STEPS, record, offset, time_ms)
        except AntdtError as error:
            log.info("event=history-not-known job=%s reason=%r", self.job, str(error))
        self._version += 1

    def _look_at_health(self) -> None:
        try:
            self.health = health_of(self.connection, self.job)
        except (AntdtError, KafkaException) as error:
            log.info("event=health-not-known job=%s reason=%r", self.job, str(error))
        self._version += 1

    def _say(self, sentence: str, *, gone: bool = False) -> None:
        """What is wrong now; nothing: all is well again. The same thing keeps its beginning."""
        before = self.trouble["sentence"] if self.trouble else ""
        self.unknown = gone
        if sentence == before:
            return
        since_ms = self.trouble["since_ms"] if self.trouble and sentence else int(time.time() * 1000)
        self.trouble = {"sentence": sentence, "since_ms": since_ms, "gone": gone} if sentence else None
        self._version += 1
        log.info("event=page-trouble job=%s sentence=%r", self.job, sentence)

    # -- what is shown

    def document(self, view: View) -> dict[str, Any]:
        """The job as it is now. Raises UnknownJob where it never was there."""
        top = self.top
        if top is None:
            raise UnknownJob(self.trouble["sentence"] if self.trouble else f"Nothing is known of job {self.job} yet.")
        with top.follow.changed:
            found = top.document(view)
        sources = {source.topic.suffix: [source.read, source.skipped] for source in top.follow.sources}
        rest = {"live": True, "end": found["offset"], "current": top.follow.current.is_set(), "read": sources}
        return self._framed(found) | rest | {"trouble": self.trouble, "health": self.health}

    def at(self, offset: int, view: View) -> dict[str, Any]:
        """The job as it was after the entry at this offset. Raises UsageError where there is none."""
        if self._past is None:
            self._past = Past(self.connection, self.job)
        glance = self._past.glance(offset)
        letters = {"count": self._past.dead_letters(glance.newest.time_ms), "newest": None}
        end = self.top.newest.offset if self.top is not None else offset
        rest = {"live": False, "end": max(end, offset), "trouble": None, "health": {"dead_letters": letters}}
        return self._framed(glance.document(view)) | rest

    def _framed(self, found: dict[str, Any]) -> dict[str, Any]:
        """Ages are for whoever looks at it to tell."""
        running = running_of(self.health["services"]) if self.health else None
        standing = {"file": found["done"], "samples_total": found["samples"]["total"],
                    "next_generation": found["waits"]} | found  # fmt: skip
        del found["last_entry_s"]
        now_ms = int(time.time() * 1000)
        return {"document": DOCUMENT, "now_ms": now_ms, "state": state_of(standing, running)} | found

    def payload(self, view: View) -> bytes:
        """The document as JSON: the same object as long as nothing has changed."""
        top = self.top
        mark = (id(top), top.follow.changes + top.follow.current.is_set() if top else 0, self._version)
        kept = self._payloads.get(view)
        if kept is not None and kept[0] == mark:
            return kept[1]
        made = to_json(self.document(view))
        if len(self._payloads) >= VIEWS_KEPT:
            self._payloads.clear()
        self._payloads[view] = mark, made
        return made

    def stop(self) -> None:
        self._halt.set()


def to_json(found: Any) -> bytes:
    """What every browser can read: no NaN is in it."""
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
