"""The settings of the embedded broker as text: pure, so that a test can read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from antdt_schemas.data_folder import HOST

ONES = """
num.partitions default.replication.factor min.insync.replicas num.network.threads num.replica.fetchers
offsets.topic.replication.factor offsets.topic.num.partitions log.cleaner.threads
transaction.state.log.replication.factor transaction.state.log.min.isr transaction.state.log.num.partitions
share.coordinator.state.topic.replication.factor share.coordinator.state.topic.min.isr
share.coordinator.state.topic.num.partitions
"""
MEBIBYTES = """
offsets.load.buffer.size transaction.state.log.load.buffer.size transaction.state.log.segment.bytes
offsets.topic.segment.bytes
"""
# One node, small: 154 MB resident and an answer 3.2 s after the start were measured.
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    # After a kill the controller refuses the broker until its old session has expired: 13 s with the defaults.
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    **dict.fromkeys(ONES.split(), "1"),
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # A misspelt topic is an error, and every topic has the settings that it was created with.
    "auto.create.topics.enable": "false",
    "num.io.threads": "2",
    "background.threads": "2",
    # 128 MB by default, allocated at the start; must be above 1 MiB for each cleaner thread.
    "log.cleaner.dedupe.buffer.size": "2097153",
    "log.cleaner.io.buffer.size": "65536",
    "log.cleaner.backoff.ms": "1000",
    "log.initial.task.delay.ms": "1000",
    "log.retention.check.interval.ms": "5000",
    **dict.fromkeys(MEBIBYTES.split(), "1048576"),
    "metadata.log.segment.bytes": "8388608",
    # message.max.bytes stays at Kafka's default of 1 MiB: writers split their records before they reach it, and what
    # works here works on any other broker.
}

JAVA_FLAGS = (
    *["-Xms96m", "-Xss512k", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:ReservedCodeCacheSize=64m"],
    *["-XX:-UsePerfData", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true"],
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
    "-Dorg.slf4j.simpleLogger.showThreadName=false",
)


def server_properties(folder: Path, port: int, controller_port: int, extra: Mapping[str, str]) -> str:
    """`server.properties` of a broker that listens on 127.0.0.1 only; `extra` wins over every default."""
    addresses = {
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "log.dirs": str(folder / "data"),
    }
    lines = {**SETTINGS, **addresses, **extra}
    return "".join(f"{key}={_escaped(value)}\n" for key, value in lines.items())


def _escaped(value: str) -> str:
    """A value as `java.util.Properties` reads it back."""
    value = value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    head = len(value) - len(value.lstrip(" "))
    units = (c if c.isascii() else re.sub("....", r"\\u\g<0>", c.encode("utf-16-be").hex()) for c in value[head:])
    return "\\ " * head + "".join(units)
