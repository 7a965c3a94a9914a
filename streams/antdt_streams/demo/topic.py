"""What `antdt demo --scene topic` shows: a job that trains on a Kafka topic while events are written to it, loses a
worker, and ends when somebody says so.

Owns the order of what happens. Must not know how a topic is read.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError, ExitCode, Unavailable

from antdt_streams.demo.run import GRACE_S, POLL_S, Watch
from antdt_streams.host.child import end, send, spawn
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.ask import ask
from antdt_streams.local.place import Place
from antdt_streams.local.services import SERVICES, environment_of, start_services
from antdt_streams.local.supervise import Supervisor, last_words
from antdt_streams.views.job import audit_of

EXAMPLE = ("-m", "antdt.examples.clicks")
EVENTS = 4000  # written at a time
WITHIN_S = 120.0
VICTIM = "w1"


class TopicScene:
    """One job. Whatever ends it, nothing is left running but the topic, which `clean` removes."""

    def __init__(self, place: Place, connection: Connection, workers: int, say: Callable[[str], None]) -> None:
        self.place, self.connection, self.workers, self.say = place, connection, workers, say
        self.environ = dict(os.environ) | environment_of(connection, place)

    def run(self, job: str) -> dict[str, Any]:
        """The result is what `--json` writes."""
        topics_admin.create(self.connection, job)
        topic, logs = topic_of(job), self.place.data / "logs" / job
        logs.mkdir(parents=True, exist_ok=True)
        self._wait_for(self._write(topic, logs), f"{EVENTS:,} events are written to the topic {topic}")
        watch, supervisor = Watch(self.connection, job), start_services(job, self.place, self.connection, SERVICES)
        launcher = self._launch(job, topic, logs)
        writer: subprocess.Popen[bytes] | None = None
        try:
            watch.start()
            turn = _Turn(watch, launcher, supervisor, logs)
            turn.until(lambda: watch.progress.committed > 0)
            self.say(f"{self.workers} workers train on it; meanwhile {EVENTS:,} more events are written")
            writer = self._write(topic, logs)
            turn.until(lambda: watch.progress.committed > EVENTS)
            self.say(f"{VICTIM} is killed: what it had read and not trained on is read by others, or by its next life")
            kill(launcher, VICTIM)
            self._wait_for(writer, "the events are written")
            turn.until(lambda: watch.progress.committed >= 2 * EVENTS)
            self.say("the topic is ended (`antdt end`): the job is done with what it knows")
            ask(self.connection, job, lambda author: records.End(author, "the demo is over"), self.place.secret)
            turn.until(lambda: launcher.poll() is not None)
        finally:
            for process in (launcher, writer):
                if process is not None:
                    end(process, GRACE_S)
            watch.stop()
            supervisor.stop()
        if launcher.returncode != ExitCode.DONE:
            raise Unavailable(
                f"The workers ended with status {launcher.returncode}: {last_words(logs / 'workers.log')}"
            )
        return {"audit": audit_of(self.connection, job), "jobs": [job], "topic": topic}

    def _write(self, topic: str, logs: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, *EXAMPLE, "--topic", topic, "--write", str(EVENTS)]
        with (logs / "events.log").open("ab") as out:
            return spawn(command, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)

    def _wait_for(self, writer: subprocess.Popen[bytes], what: str) -> None:
        self.say(what)
        if writer.wait(WITHIN_S):
            raise AntdtError("The events could not be written: see the log beside those of the workers.")

    def _launch(self, job: str, topic: str, logs: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "antdt.launch", "--job", job, "-n", str(self.workers), "--logs", str(logs)]
        command += ["--", *EXAMPLE, "--topic", topic, "--growing", "--batch-size", "64", "--delay-ms", "2"]
        with (logs / "workers.log").open("ab") as out:
            return spawn(command, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)


class _Turn:
    """Keeps everything going while something is waited for."""

    def __init__(self, watch: Watch, launcher: subprocess.Popen[bytes], supervisor: Supervisor, logs: Path) -> None:
        self.watch, self.launcher, self.supervisor, self.logs = watch, launcher, supervisor, logs

    def until(self, holds: Callable[[], bool]) -> None:
        """Raises Unavailable: it does not come about in time, or the workers are gone."""
        until_s = monotonic() + WITHIN_S
        while not holds():
            sleep(POLL_S)
            self.supervisor.poll()
            if self.watch.failure is not None:
                raise self.watch.failure
            if self.launcher.poll() is not None and not holds():
                said = last_words(self.logs / "workers.log")
                raise Unavailable(f"The workers ended with status {self.launcher.returncode}: {said}")
            if monotonic() > until_s:
                raise Unavailable(f"The job stands at step {self.watch.progress.step} for {WITHIN_S:.0f} s.")


def kill(launcher: subprocess.Popen[bytes], worker: str) -> None:
    """By SIGKILL, found by the log that it writes to."""
    with suppress(OSError):
        for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
            with suppress(OSError):
                if str(Path(f"/proc/{pid}/fd/1").readlink()).endswith(f"/{worker}.log"):
                    send(int(pid), signal.SIGKILL)


def topic_of(job: str) -> str:
    """The topic that the scene writes to."""
    return f"{job}.clicks"


def clean(connection: Connection, job: str) -> None:
    """On somebody else's broker nothing is left behind."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    with suppress(KafkaException):
        AdminClient(connection.admin()).delete_topics([topic_of(job)])[topic_of(job)].result(10)
