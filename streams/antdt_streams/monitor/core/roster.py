"""The nodes that are known, in the order of their names, and the rows they are kept in.

Owns admission: which incarnation of a worker a record belongs to. Bounded by `nodes_max`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from antdt_schemas.errors import Undecodable
from antdt_schemas.records import StepBatch

from antdt_streams.monitor.core.node import Health, Track, health_from_row, to_row, track_from_row
from antdt_streams.monitor.core.options import DetectorOptions
from antdt_streams.storage.rows import decode_row, encode_row

TRACK, HEALTH = b"track/", b"health/"


class Roster:
    """Tracks and healths by worker. Invariant: both hold exactly the workers of `names`, which is sorted."""

    def __init__(self, options: DetectorOptions) -> None:
        self.options = options
        self.names: list[str] = []
        self.tracks: dict[str, Track] = {}
        self.health: dict[str, Health] = {}
        self.dirty: set[bytes] = set()
        self.strategy = ""  # of the job, as its nodes say

    def admit(self, record: StepBatch) -> Track | None:
        """The track that this record continues, None when it is of an incarnation or generation that was replaced.

        A new incarnation starts afresh; in a newer generation steps may begin again further back, and a node that
        came along keeps its rate and its baseline.
        """
        track = self.tracks.get(record.worker)
        if track is None:
            if len(self.names) >= self.options.nodes_max:
                raise Undecodable(f"Steps of worker {record.worker}: {len(self.names)} other nodes are known already.")
            insort(self.names, record.worker)
            track = Track(record.worker, record.incarnation, "", record.hardware, record.generation)
            self._set(track)
        elif record.generation < track.generation or record.incarnation == track.former:
            return None
        elif record.incarnation != track.incarnation:
            track = track.restart(record.incarnation, record.generation, record.hardware)
            self._set(track)
        elif record.generation > track.generation:
            track.begin(record.generation)
        track.batch_size_max = max(record.batch_size_max, 0)
        track.role, track.stage = record.role, record.stage
        self.strategy = record.strategy or self.strategy
        self.touch(TRACK, record.worker)
        return track

    def _set(self, track: Track) -> None:
        self.tracks[track.worker] = track
        self.health[track.worker] = Health(warm=self.options.warm_up_windows)
        self.touch(HEALTH, track.worker)

    def forget(self, worker: str) -> None:
        del self.names[bisect_left(self.names, worker)], self.tracks[worker], self.health[worker]
        self.touch(TRACK, worker)
        self.touch(HEALTH, worker)

    def members(self, generation: int) -> Iterator[Track]:
        return (track for worker in self.names if (track := self.tracks[worker]).generation == generation)

    def touch(self, kind: bytes, worker: str) -> None:
        """A row of this kind has changed."""
        self.dirty.add(kind + worker.encode())

    def row(self, key: bytes) -> bytes | None:
        """The row of a key, None when its node is gone."""
        if key.startswith(TRACK):
            track = self.tracks.get(key[len(TRACK) :].decode())
            return None if track is None else encode_row(to_row(track))
        health = self.health.get(key[len(HEALTH) :].decode())
        return None if health is None else encode_row(to_row(health))

    def all_keys(self) -> list[bytes]:
        return [kind + worker.encode() for worker in self.names for kind in (TRACK, HEALTH)]

    def load(self, key: bytes, row: bytes) -> None:
        if key.startswith(TRACK):
            track = track_from_row(decode_row(row))
            self.tracks[track.worker] = track
            insort(self.names, track.worker)
        else:
            self.health[key[len(HEALTH) :].decode()] = health_from_row(decode_row(row))
