"""Looks at the topics of a job every so often, while whoever asks goes on: an answer that is late holds up nobody."""

from __future__ import annotations

import logging
import threading
from time import monotonic

from antdt_schemas.connection import Connection
from antdt_schemas.errors import Mismatch, Unavailable, UsageError

from antdt_streams.kafka.topic_rules import ABSENT, Difference
from antdt_streams.kafka.topics_admin import Examined, fit

log = logging.getLogger("antdt.topics")


class TopicsWatch:
    """One look at a time, in a thread of its own."""

    def __init__(self, connection: Connection, job: str, every_s: float, missing_s: float) -> None:
        """missing_s: how long a topic may be missing. Whoever creates one again has deleted it before."""
        self.connection, self.job, self.every_s, self.missing_s = connection, job, every_s, missing_s
        self._began_s, self._whole_s = 0.0, monotonic()
        self._thread: threading.Thread | None = None
        self._found: Examined | None = None
        self._failure: Exception | None = None
        self._said: set[Difference] = set()

    def look(self) -> Examined | None:
        """What a look has found since this was called last; None most of the time.

        Raises:
            AntdtError: the topics are gone, or not fit to run on any more.
        """
        if self._thread is not None and self._thread.is_alive():
            return None
        found, failure, self._found, self._failure = self._found, self._failure, None, None
        if failure is not None:
            raise failure
        if found is None and monotonic() - self._began_s >= self.every_s:
            self._began_s = monotonic()
            self._thread = threading.Thread(target=self._look, name="antdt-topics", daemon=True)
            self._thread.start()
        return found

    def _look(self) -> None:
        try:
            self._found = fit(self.connection, self.job)
            self._whole_s = monotonic()
            self._say(self._found)
        except Mismatch as error:
            if error.found != ABSENT or monotonic() - self._whole_s > self.missing_s:
                self._failure = error
            else:
                log.warning("event=topic-missing reason=%r", str(error))
        except (Unavailable, UsageError) as error:  # if it is more than a moment, reading and writing fail as well
            log.info("event=topics-not-looked-at reason=%r", str(error))
        except Exception as error:  # noqa: BLE001  raised by `look`
            self._failure = error

    def _say(self, found: Examined) -> None:
        for difference in found.differences:
            if difference not in self._said:
                self._said.add(difference)
                log.warning("event=topic-differs what=%r mend=%r", str(difference), difference.mend(self.job))
