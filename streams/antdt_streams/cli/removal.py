"""What a job has left on a broker and on this machine, and how it goes.

The shard log is the last to go, so a removal that was cut in the middle can be done again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from antdt_schemas import launch_locks

from antdt_streams.kafka import topics_admin
from antdt_streams.local.place import Place
from antdt_streams.views.jobs import records_of, running_of
from antdt_streams.views.liveness import services_of

LEFT = ("checkpoints", "logs")  # of which somebody may still have need


@dataclass(frozen=True, slots=True)
class Found:
    """topics: by name, how many records each holds. folders: of this machine that go; left: that stay. running: what
    answers, or is launched from here; None if it cannot be told.
    """

    topics: dict[str, int]
    groups: list[str]
    folders: list[Path]
    left: list[Path]
    running: tuple[str, ...] | None

    def lines(self) -> Iterator[str]:
        """What goes, for people."""
        yield from (f"topic {name}, {count:,} records" for name, count in self.topics.items())
        yield from (f"consumer group {group}" for group in self.groups)
        yield from (f"folder {folder}" for folder in self.folders)


def look(place: Place, job: str) -> Found:
    """Raises UnknownJob."""
    topics_admin.topic_ids(place.connection, job)
    launches = launch_locks.folder_of(place.data, job)
    workers = sorted(lock.stem for lock in launches.glob("*.lock") if not launch_locks.is_free(launches, lock.stem))
    services = running_of(services_of(place.connection, job, sure=True))
    return Found(
        records_of(place.connection, job),
        topics_admin.groups(place.connection, job),
        [folder for folder in (place.data / "state" / job, launches) if folder.is_dir()],
        [folder for folder in (place.data / name / job for name in LEFT) if folder.is_dir()],
        (*(services or ()), *workers) if workers or services is not None else None,
    )


def remove(place: Place, job: str, found: Found) -> None:
    """State first, which is nothing without its log."""
    for folder in found.folders:
        shutil.rmtree(folder)
    topics_admin.delete_groups(place.connection, job, found.groups)
    topics_admin.delete(place.connection, job)
