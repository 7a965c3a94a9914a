"""The broker's classes as one file that Java maps, instead of finding, checking and linking 6,000 at every start.

Owns that file: Java's class-data sharing, made once for these jars and this Java, beside the jars. It is a head start
and nothing else: whatever is wrong with it, or with the folder, ends in a start without it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from antdt_schemas.connection import Connection
from antdt_schemas.data_folder import try_lock
from antdt_schemas.errors import AntdtError, Unavailable, UsageError
from antdt_schemas.topics import STEPS

from antdt_streams.broker.jars import KAFKA_VERSION
from antdt_streams.host.child import spawn

PREFIX = f"kafka-{KAFKA_VERSION}-"
SCRATCH = "archive."
MAKING_S = 10
MAKING_TIMEOUT_S = 120.0
EXERCISE_S = 5.0
# Runs a broker in a folder with one more option of Java, and ends it.
Record = Callable[[str, Path], None]
KEPT = 3  # of other Javas: 65 MB each


def sharing_flags(java: Path, jars: Path, flags: Sequence[str], record: Record) -> tuple[str, ...]:
    """Java's options that use the archive beside the folder `jars`, or none; the first call for a Java makes it.

    flags: the options that the broker is started with, class path included.
    """
    try:
        identity = _identity(java, jars, flags)
        found = _found(jars.parent, identity)
        if found is None:
            found = _made(java, jars.parent, identity, flags, record)
    except OSError:  # a folder that is read-only or full, a file that is gone meanwhile
        return ()
    return _use(found) if found is not None and found.stat().st_size else ()


def _use(archive: Path) -> tuple[str, ...]:
    # A damaged byte in it would end Java with a crash; its checksums cost 0.05 s and end in a start without it.
    return (f"-XX:SharedArchiveFile={archive}", "-Xshare:auto", "-XX:+VerifySharedSpaces")


def _identity(java: Path, jars: Path, flags: Sequence[str]) -> str:
    """Of this build of Java wherever it lies, of these jars and options. Java itself passes over what does not fit."""
    home = java.resolve().parent.parent
    files = [java, home / "lib" / "modules", home / "lib" / "server" / "libjvm.so", *sorted(jars.iterdir())]
    stats = [(file.name, file.stat()) for file in files if file.exists()]
    seen = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(repr((seen, *flags)).encode()).hexdigest()[:16]


def _found(cache: Path, identity: str) -> Path | None:
    """The archive, or an empty file: this Java makes none. Its name says its size: Java 17 dies of one that was cut."""
    for file in cache.glob(f"{PREFIX}{identity}-*.jsa"):
        if file.stat().st_size == int(file.stem.rpartition("-")[2]):
            return file
    return None


def _made(java: Path, cache: Path, identity: str, flags: Sequence[str], record: Record) -> Path | None:
    """It gets its name when it is complete and Java has accepted it. Who finds somebody else at it does not wait."""
    with _alone(cache) as alone:
        if not alone:
            return None
        for leftover in cache.glob(f"{SCRATCH}*"):  # of somebody who was killed: nobody else is at work here
            shutil.rmtree(leftover, ignore_errors=True)
        say = f"Preparing Apache Kafka {KAFKA_VERSION} for fast starts (once, some {MAKING_S} s) …"
        print(say, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=SCRATCH) as scratch:
            archive = Path(scratch) / "classes.jsa"
            try:
                _make(java, archive, flags, record)
            except UsageError:
                raise
            except (AntdtError, subprocess.SubprocessError):
                archive.write_bytes(b"")  # it would fail again, and cost as much, at every start
            _keep_few(cache)
            name = cache / f"{PREFIX}{identity}-{archive.stat().st_size}.jsa"
            with archive.open("rb") as file:
                os.fsync(file.fileno())  # or a power cut could leave its name without its bytes
            archive.replace(name)
            return name


def _make(java: Path, archive: Path, flags: Sequence[str], record: Record) -> None:
    classes = archive.with_suffix(".txt")
    record(f"-XX:DumpLoadedClassList={classes}", archive.parent / "broker")
    dump = ["-Xshare:dump", f"-XX:SharedClassListFile={classes}", f"-XX:SharedArchiveFile={archive}"]
    _run([java, *flags, *dump])
    _run([java, *flags, *_use(archive), "-Xshare:on", "-version"])


def _run(command: Sequence[str | Path]) -> None:
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = spawn([str(part) for part in command], **quiet)
    try:
        code = process.wait(MAKING_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    if code:
        raise subprocess.CalledProcessError(code, command)


def _keep_few(cache: Path) -> None:
    """Each update of Java leaves one behind. Who has it mapped goes on with it."""
    by_age = sorted(cache.glob("kafka-*.jsa"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for file in by_age[KEPT:]:
        file.unlink(missing_ok=True)


@contextmanager
def _alone(cache: Path) -> Iterator[bool]:
    lock = try_lock(cache / ".archive.lock")
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def exercise(connection: Connection) -> None:
    """What every job asks of a broker, so that Java notes the classes that it takes: topics, a record, a reader."""
    from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

    from antdt_streams.kafka import topics_admin

    topics_admin.create(connection, "prepare")
    topic = STEPS.name("prepare")
    try:
        producer = Producer(connection.producer())
        producer.produce(topic, b"x", partition=0)
        producer.flush(EXERCISE_S)
        consumer = Consumer(connection.consumer(group_id="antdt.prepare"))
        consumer.assign([TopicPartition(topic, 0, 0)])
        consumer.poll(EXERCISE_S)
        consumer.commit(offsets=[TopicPartition(topic, 0, 1)], asynchronous=False)
        consumer.close()
    except KafkaException as error:
        raise Unavailable(str(error)) from error
