"""antdt export --as openlineage | intoto: what a log says, in a form that other tools read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from antdt_schemas import records
from antdt_schemas.errors import Unavailable
from antdt_schemas.topics import DECISIONS

from antdt_streams.cli.common import note
from antdt_streams.host.files import write_whole
from antdt_streams.local.place import Place
from antdt_streams.proof import intoto, openlineage
from antdt_streams.proof.chronicle import tell
from antdt_streams.proof.source import LogSource


@dataclass(frozen=True, slots=True)
class Wanted:
    """form: openlineage or intoto. live: the log is in its topic, so the others are there as well."""

    form: str
    live: bool
    checkpoints: Path | None
    namespace: str


def write(wanted: Wanted, log: LogSource, file: Path, place: Place) -> None:
    """Raises LogTampered where the log, or a file of the model, is not what it is said to be."""
    told = tell(log.entries, log.anchors)
    if wanted.form == "intoto":
        found = intoto.statements(told, log.topic_id, _policies(wanted, log.job, place), wanted.checkpoints)
    else:
        found = openlineage.events(told, log.topic_id, wanted.namespace)
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found)
    try:
        write_whole(file, lines.encode())
    except OSError as error:
        raise Unavailable(f"{file} cannot be written: {error.strerror or error}.") from error
    if wanted.form == "intoto" and not found:
        note("The log records no file of the model yet: there is nothing to state.")
    what = "events" if wanted.form == "openlineage" else "statements, one a file of the model"
    click.echo(f"{file}: {len(found):,} {what}")


def _policies(wanted: Wanted, job: str, place: Place) -> list[dict[str, Any]] | None:
    """The log names plans only; who decided them is in another topic."""
    if not wanted.live:
        note("Which policies decided is not in a file of the log: `policies` is null.")
        return None
    from antdt_streams.kafka.reader import TopicReader, decoded

    with TopicReader(place.connection, job, DECISIONS) as reader:
        return intoto.policies_of(decision for _, decision in decoded(reader.to_end(), records.Decision))
