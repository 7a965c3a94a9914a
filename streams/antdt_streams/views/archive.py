"""All topics of a job in one zip archive: the shard log as a container with its checker, the others as JSON lines."""

from __future__ import annotations

import json
import os
import tempfile
import time
import zipfile
from pathlib import Path

from antdt_schemas import container
from antdt_schemas.connection import Connection
from antdt_schemas.errors import UnknownJob, UsageError
from antdt_schemas.topics import SHARD_LOG, TOPICS, Topic

from antdt_streams.kafka.reader import TopicReader, told
from antdt_streams.proof import checker
from antdt_streams.proof.source import open_topic

LOG_NAME = "shard-log.avro"


def write(connection: Connection, job: str, file: Path) -> dict[str, int]:
    """Returns how many records each file in the archive has.

    Raises UnknownJob, and UsageError where FILE cannot be written.
    """
    counts: dict[str, int] = {}
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as name:
            folder = Path(name)
            with open_topic(connection, job) as log:
                counts[LOG_NAME] = container.write(folder / LOG_NAME, job, log.topic_id, log.entries).entries
            with zipfile.ZipFile(folder / "archive", "w", zipfile.ZIP_DEFLATED) as out:
                out.write(folder / LOG_NAME, LOG_NAME, zipfile.ZIP_STORED)
                out.write(checker.lay_beside(folder / LOG_NAME), checker.NAME)
                for topic in TOPICS:
                    if topic is not SHARD_LOG:
                        counts[f"{topic.suffix}.jsonl"] = _topic(out, connection, job, topic)
            with (folder / "archive").open("rb") as made:
                os.fsync(made.fileno())
            (folder / "archive").replace(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror or error}.") from error
    return counts


def _topic(out: zipfile.ZipFile, connection: Connection, job: str, topic: Topic) -> int:
    count = 0
    entry = zipfile.ZipInfo(f"{topic.suffix}.jsonl", time.localtime()[:6])
    entry.compress_type = zipfile.ZIP_DEFLATED
    with out.open(entry, "w", force_zip64=True) as lines:
        try:
            with TopicReader(connection, job, topic) as reader:
                for raw in reader.to_end():
                    line = told(topic, raw)
                    line |= {"value": raw.value.hex()} if "error" in line else {}
                    lines.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                    count += 1
        except UnknownJob:  # this topic is missing
            return 0
    return count
