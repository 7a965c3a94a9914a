"""How large a record may be, asked of the broker: a topic may take far less than Kafka's default."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from antdt_schemas.connection import Connection
from antdt_schemas.topics import MESSAGE_BYTES, RECORD_BYTES_MAX, record_bytes

SETTING = "max.message.bytes"

log = logging.getLogger("antdt.connection")


def record_bytes_max(connection: Connection, names: Sequence[str], timeout_s: float = 5.0) -> int:
    """Bytes of a record that each of these topics takes; Kafka's default where this client may not ask."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]

    admin = AdminClient(connection.admin())
    asked = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    try:
        found = [f.result(timeout_s) for f in admin.describe_configs(asked, request_timeout=timeout_s).values()]
    except (KafkaException, TimeoutError) as error:
        log.debug("event=room-not-known reason=%r", str(error))
        return RECORD_BYTES_MAX
    sizes = [entries[SETTING].value for entries in found if SETTING in entries]
    return min(record_bytes(int(size or MESSAGE_BYTES)) for size in sizes) if sizes else RECORD_BYTES_MAX
