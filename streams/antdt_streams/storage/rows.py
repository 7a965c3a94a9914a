"""Rows that a service's state is kept in, whose they are, and the position of a record in its input.

Owns the one canonical encoding: the same history gives the same bytes in every process, so digests can be compared.
Knows no store and no record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from antdt_schemas.topics import RECORD_BYTES_MAX

NOWHERE = (-1, -1)


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where a record stands in its topic."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose rows these are: the job, and Kafka's id of the topic they are made of, new with every topic of that name.

    record_bytes_max: what the topics of its outputs take.
    """

    job: str
    topic_id: str
    record_bytes_max: int = RECORD_BYTES_MAX


class Marks(dict[Any, tuple[int, int]]):
    """Source of records -> (offset, index) of the newest cause that was taken. Whoever was restarted writes again what
    it wrote, with the same causes: such repeats are dropped by this.
    """

    def note(self, source: Any, at: tuple[int, int]) -> bool:
        """Whether a cause is new; it is not any more."""
        is_new = at > self.get(source, NOWHERE)
        if is_new:
            self[source] = at
        return is_new


def json_encoder(*, separators: tuple[str, str] = (",", ":"), **options: Any) -> Callable[[Any], str]:
    """What `json.JSONEncoder(**options, separators=separators).encode` is, for trees of plain values, in a third of its
    time: for each value that one makes its encoder in C anew, and looks for circles.
    """
    made = json.JSONEncoder(**options, separators=separators, check_circular=False)
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # a Python without it
        return made.encode
    text = json.encoder.encode_basestring_ascii if made.ensure_ascii else json.encoder.encode_basestring
    between, behind_key = separators
    encode = make(None, made.default, text, None, behind_key, between, made.sort_keys, made.skipkeys, made.allow_nan)
    return lambda value: "".join(encode(value, 0))


_ENCODE = json_encoder(sort_keys=True, allow_nan=False)


def encode_row(value: Any) -> bytes:
    """JSON without spaces and with sorted keys; floats round-trip (repr), NaN and infinities are our bug."""
    return _ENCODE(value).encode()


def decode_row(row: bytes) -> Any:
    """The value of `encode_row`; tuples come back as lists."""
    return json.loads(row)


def digest_rows(rows: Mapping[bytes, bytes]) -> bytes:
    """16 bytes over all rows, whatever their order; lengths are hashed too, so no two sets of rows run together."""
    total = blake2b(digest_size=16)
    for key in sorted(rows):
        for part in (key, rows[key]):
            total.update(len(part).to_bytes(8, "big"))
            total.update(part)
    return total.digest()
