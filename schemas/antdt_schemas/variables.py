"""The variables of the environment that are ours, by name: what is spelt otherwise is read by nobody."""

from __future__ import annotations

from collections.abc import Iterable

PREFIX = "ANTDT_"
KAFKA_PREFIX = "ANTDT_KAFKA_"  # of single settings of the Kafka client, whatever they are called
# What people set; what a launcher, or a supervisor, sets for the processes that it starts.
BY_PEOPLE = (
    "ADVERTISE", "BROKER_JARS", "CHECKPOINTS", "CLOUDEVENTS", "DATA", "GRACE_S", "HARDWARE", "JOB", "METRICS_HOST",
    "METRICS_PORT", "NODE", "READY_FILE", "SECRET",
)  # fmt: skip
BY_LAUNCHERS = (
    "INCARNATION", "LAUNCH", "LAUNCHER", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PLACE", "RANK", "RESTARTS", "ROLE",
    "SERVERS", "TAKE_OVER", "WORKER", "WORLD_SIZE",
)  # fmt: skip
NAMES = tuple(PREFIX + name for name in (*BY_PEOPLE, *BY_LAUNCHERS))


def unknown(names: Iterable[str]) -> list[str]:
    """Those of these names that look like ours, and are none."""
    return sorted(n for n in names if n.startswith(PREFIX) and not n.startswith(KAFKA_PREFIX) and n not in NAMES)
