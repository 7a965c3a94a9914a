"""Headers by which others tell what a record is without opening it: CloudEvents 1.0, binary mode of the Kafka binding.

On topics with few records only; in steps, requests and replies they would be as large as what they are of. So they
would be in the shard log, which is kept for ever: there, they are half of it (measured: 178 of 370 bytes an entry on
disk), and only on request. Nothing of ours reads them: what a record says, its hash and its place in a replay are those
of its value.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from functools import cache
from hashlib import blake2b

from antdt_schemas import codec
from antdt_schemas.errors import UsageError
from antdt_schemas.topics import DEAD_LETTERS, DECISIONS, MEASUREMENTS, SHARD_LOG

ENV = "ANTDT_CLOUDEVENTS"
FEW = (DECISIONS, MEASUREMENTS, DEAD_LETTERS)
# Value of the environment -> the topics that have them; without one, those with few records.
CHOICES = {"": FEW, "off": (), "all": (*FEW, SHARD_LOG)}
VERSION = 1  # of the records: grows when a reader of old could not read one
ID_BYTES = 8

Headers = list[tuple[str, str | bytes | None]]


@cache
def chosen() -> frozenset[str]:
    """Suffixes of the topics that have them, as the environment says. Raises UsageError."""
    said = os.environ.get(ENV, "")
    if said not in CHOICES:
        raise UsageError(f"{ENV}={said} is not known: leave it out, or say off or all.")
    return frozenset(topic.suffix for topic in CHOICES[said])


def headers(
    topic: str, partition: int, value: bytes, service: str, once: bytes = b"", now_s: float | None = None
) -> Headers:
    """Those of a record that is written into a topic of a job; none where there are to be none.

    The id is of the content: whoever writes the same again after a crash writes it under the same id. once: what makes
    it another one where the same is said anew, by an operator.
    """
    _, job, suffix = topic.split(".", 2)
    if suffix not in chosen():
        return []
    at = datetime.fromtimestamp(time.time() if now_s is None else now_s, UTC)
    name = codec.name_of(value) or "record"
    digest = blake2b(value + once, digest_size=ID_BYTES).hexdigest()
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", f"{suffix}/{partition}/{digest}".encode()),
        ("ce_source", f"/antdt/{job}/{service}".encode()),
        ("ce_type", f"dev.antdt.{name.lower()}.v{VERSION}".encode()),
        ("ce_time", f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z".encode()),
        ("content-type", b"application/avro"),
    ]
