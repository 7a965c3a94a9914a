"""The settings of our Kafka clients: as they were merged, where each came from, what is not used. Secrets masked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from antdt_schemas.connection import BOOTSTRAP, COMMON, CONSUMER, ENV_BOOTSTRAP, PRODUCER, Connection, masked
from antdt_schemas.errors import AntdtError
from antdt_schemas.settings_ours import OURS

from antdt_streams.doctor.checks import Check, Finding, Setup, ok, unknown, warning

OWN = "antdt"


@dataclass(frozen=True, slots=True)
class Setting:
    """One property as librdkafka is given it. origin: a file, a variable, a flag; antdt where it is ours."""

    key: str
    value: str
    origin: str


def configuration(connection: Connection) -> list[Setting]:
    """All of them, by name; what only a producer or a consumer has says so."""
    rows = [Setting(BOOTSTRAP, connection.bootstrap, connection.origins.get(BOOTSTRAP, "code"))]
    ours = {key: (value, OWN) for key, value in {"client.id": connection.client_id, **COMMON}.items()}
    ours |= {key: (value, f"{OWN}, of producers") for key, value in PRODUCER.items()}
    ours |= {key: (value, f"{OWN}, of consumers") for key, value in CONSUMER.items()}
    for key, value in connection.properties.items():
        if key not in OURS:
            ours[key] = value, connection.origins.get(key, "code")
    rows += [Setting(key, masked(key, _shown(value)), origin) for key, (value, origin) in sorted(ours.items())]
    return rows


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def settings(setup: Setup) -> Iterator[Finding]:
    """Whether they can be read at all; and what of them is without effect."""
    error = setup.shared.get("settings")
    if isinstance(error, AntdtError):
        raise error
    if setup.connection is None:
        yield unknown(setup.absent["broker"])
        return
    for line in setup.connection.ignored:
        yield warning(line.rstrip("."), "take it out where that was not meant; it is without effect here")
    origins = sorted({origin for key, origin in setup.connection.origins.items() if key != BOOTSTRAP})
    came = f", from {', '.join(origins)}" if origins else ""
    yield ok(f"{len(setup.connection.properties)} beside those of antdt{came}")


CHECKS = (Check("settings", f"client.properties, flags, {ENV_BOOTSTRAP} and the like", settings),)
