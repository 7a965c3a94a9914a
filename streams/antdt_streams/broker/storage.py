"""The storage of a broker's folder, formatted: what Kafka's tool wrote once, written again with ids of its own.

Starting Java for the tool costs half of what a start of the broker costs, and what it writes differs in two ids and in
times only. So the first folder is formatted by it, and its one binary file, the features of this release, is kept
beside the jars. A kept file is used if its name says its hash; whatever is wrong with it ends in the tool.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from contextlib import suppress
from pathlib import Path

from antdt_streams.broker.jars import KAFKA_VERSION
from antdt_streams.broker.settings import SETTINGS
from antdt_streams.host.files import write_whole

META = "meta.properties"
FEATURES = "__cluster_metadata-0/00000000000000000000-0000000000.checkpoint"
KEPT = f"kafka-{KAFKA_VERSION}-features-"


def is_formatted(data: Path) -> bool:
    """Whether a broker may start on it: the file with the ids is written last."""
    return (data / META).exists()


def copy_format(data: Path, cache: Path) -> bool:
    """Format `data` as Kafka's tool did a folder before; False if nothing of that is kept in `cache`."""
    features = _kept(cache)
    if features is None:
        return False
    (data / FEATURES).parent.mkdir(parents=True, exist_ok=True)
    write_whole(data / FEATURES, features)
    ids = {"version": 1, "cluster.id": random_id(), "node.id": SETTINGS["node.id"], "directory.id": random_id()}
    write_whole(data / META, "".join(f"{key}={value}\n" for key, value in ids.items()).encode())
    return True


def keep_format(data: Path, cache: Path) -> None:
    """Keep what the tool has written to `data`, if the cache can be written."""
    with suppress(OSError):
        features = (data / FEATURES).read_bytes()
        write_whole(cache / f"{KEPT}{_hash(features)}", features)


def random_id() -> str:
    """A random id as Kafka writes it: 22 characters, and no option of the command line."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


def _kept(cache: Path) -> bytes | None:
    with suppress(OSError):
        for file in cache.glob(f"{KEPT}*"):
            features = file.read_bytes()
            if file.name == f"{KEPT}{_hash(features)}":
                return features
    return None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
