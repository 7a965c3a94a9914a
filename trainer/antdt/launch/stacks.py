"""The stacks of a worker that hangs, for an operator: taken on this machine, sent to the topic that operators read.

Owns whom they are taken of and what is said with them. A launcher has neither threads nor a client, so each answer is
the work of a child, and nobody waits for it. A worker that moves does not notice it. Of one that does not, py-spy,
where it is installed, tells the frames of C as well, which stops it for a moment.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkProcess

from antdt_schemas import codec, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.room import record_bytes_max
from confluent_kafka import KafkaException, Producer

from antdt.host import stacks, whereabouts
from antdt.host.child import in_child
from antdt.host.whereabouts import Page
from antdt.launch.output import say

TEXT_BYTES_MAX = 48 << 10
FIELDS_BYTES = 2 << 10
SEND_S, ROOM_S = 10.0, 3.0
STILL_S, HANGS_S = 1.0, 5.0
OUTSIDE = '  File "<frozen runpy>"'  # below it a worker is what its launcher has forked
NATIVE, NATIVE_S = "py-spy", 8.0
LINE_CHARS_MAX = 200  # names of C++ are longer than anybody reads


@dataclass(frozen=True, slots=True)
class Wanted:
    """Somebody wants the stacks of a worker. asked: where in `measurements` it says so."""

    worker: str
    by: str
    asked: int


@dataclass(frozen=True, slots=True)
class Subject:
    """One worker as its launcher knows it. pid: 0 where no process of it runs. handle: where that writes its stacks."""

    worker: str
    incarnation: str
    pid: int
    page: Page
    handle: int


class Stacks:
    """Answers for the workers of one launch: of each one at a time, and the newest question of those that wait."""

    def __init__(
        self,
        connection: Connection,
        job: str,
        launcher: str,
        subject: Callable[[str], Subject | None],
        forget: Callable[[], None],
    ) -> None:
        """subject: a worker of this launch by its name. forget: what a child drops that is the launcher's alone."""
        self._connection, self._job, self._launcher = connection, job, launcher
        self._subject, self._forget = subject, forget
        self._wanted: dict[str, Wanted] = {}
        self._children: dict[str, ForkProcess] = {}

    def ask(self, wanted: Wanted) -> None:
        """One of another launch's workers is that one's business."""
        if self._subject(wanted.worker) is not None:
            self._wanted[wanted.worker] = wanted

    def look(self) -> None:
        """Begins what waits. Cheap: call it as often as you like."""
        for worker in [name for name, child in self._children.items() if child.exitcode is not None]:
            del self._children[worker]
        for worker in list(self._wanted):
            subject = self._subject(worker)
            if subject is not None and worker not in self._children:
                wanted = self._wanted.pop(worker)
                say(f"antdt launch: {wanted.by}: they are taken and sent")
                self._children[worker] = in_child(lambda s=subject, w=wanted: self._answer(s, w))  # type: ignore[misc]

    def _answer(self, subject: Subject, wanted: Wanted) -> None:
        self._forget()
        topic = topics.STEPS.name(self._job)
        room = record_bytes_max(self._connection, [topic], ROOM_S) - FIELDS_BYTES
        found = taken(subject, wanted, self._launcher, min(TEXT_BYTES_MAX, room))
        producer = Producer(self._connection.producer(**{"linger.ms": 0}))
        with suppress(KafkaException):  # whoever waits for it says that it did not come
            producer.produce(topic, codec.encode(found), subject.worker, 0)
            producer.flush(SEND_S)


def taken(subject: Subject, wanted: Wanted, launcher: str, bytes_max: int) -> records.Stack:
    """The stacks of a worker as they are now, or why there are none."""
    standing, text = subject.page.standing(), ""
    problem = "no process of it runs: it has ended, or has not begun"
    if subject.pid:
        problem = stacks.refusal(subject.pid, subject.handle)
    if not problem:
        page, still = subject.page, standing.phase_s > STILL_S
        dumped = stacks.dump(subject.pid, subject.handle, page.numbers[whereabouts.CLIENT] if still else 0)
        text = stacks.told(dumped, page.threads(), page.numbers[whereabouts.MAIN], OUTSIDE)
        silent = f"its process has not answered within {stacks.WITHIN_S:g} s: it may wait in the kernel"
        problem = "" if text else silent
        if standing.phase_s > HANGS_S:
            text += native(subject.pid)
    data = text.encode()
    kept = data[:bytes_max].decode(errors="ignore")
    return records.Stack(
        subject.worker, subject.incarnation, wanted.asked, launcher, subject.pid, standing.phase, standing.phase_s,
        standing.detail, kept, max(0, len(data) - bytes_max), problem,
    )  # fmt: skip


def native(pid: int) -> str:
    """The frames of C among those of Python, by py-spy; empty where it is not installed."""
    program = shutil.which(NATIVE)
    if program is None:
        return ""
    command = [program, "dump", "--native", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NATIVE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"\n\n{NATIVE}: {error}"
    said = inner(done.stdout) if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
    return f"\n\nwith the frames of C, by {NATIVE}:\n{said}"


def inner(said: str) -> str:
    """Of what py-spy says, the frames of the script and what it calls; whatever is very long is cut."""
    threads = re.split(r"^(?=Thread )", said, flags=re.MULTILINE)
    kept = [re.split(r"\n[^\n]*\(<frozen runpy>", thread)[0].strip() for thread in threads[1:]]
    lines = "\n\n".join(kept).splitlines()
    return "\n".join(line if len(line) <= LINE_CHARS_MAX else f"{line[:LINE_CHARS_MAX]}…" for line in lines)
