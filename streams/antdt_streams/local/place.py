"""Where a command works: the broker, the data folder of this machine, the job's secret."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from antdt_schemas import auth, framing
from antdt_schemas.connection import ENV_FRAMING, Connection, names_a_broker
from antdt_schemas.data_folder import BROKER, data_folder, running
from antdt_schemas.topics import check_worker

MAIN_INSTANCE = "main"


@dataclass(frozen=True)
class Place:
    """config: the file of client properties that a flag named. framing: likewise; empty where none did."""

    connection: Connection
    named: bool
    data: Path
    secret: bytes | None
    config: Path | None = None
    framing: str = ""

    def service_folder(self, job: str, service: str) -> Path:
        return self.data / "state" / job / service

    def ledger_folder(self, job: str, instance: str) -> Path:
        """Of one of several ledgers, by its name; of the only one without."""
        return self.service_folder(job, f"ledger-{check_worker(instance)}" if instance else "ledger")


def place_of(bootstrap_servers: str | None, kafka_config: Path | None, data: Path | None, framed: str = "") -> Place:
    folder = data or data_folder(os.environ)
    named = bool(bootstrap_servers or kafka_config) or names_a_broker(os.environ)
    if not named:
        bootstrap_servers = running(folder / BROKER)
    secret = os.environ.get(auth.ENV_SECRET, "")
    environ = dict(os.environ) | ({ENV_FRAMING: framed} if framed else {})
    connection = Connection.of(bootstrap_servers, kafka_config, environ)
    framing.use(connection.wire)
    return Place(connection, named, folder, secret.encode() if secret else None, kafka_config, framed)
