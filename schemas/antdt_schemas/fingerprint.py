"""What tells one data set from another of the same type and length: marks of a few of its samples.

A fingerprint is a row of marks of 8 bytes: first that of all keys (names of files, mostly) in their order, then those
of single samples. A mark's first byte says what it was made of: 0 nothing, and then it is not compared; up to 127 the
sample at one of `places`; above that the first, second, … sample of a stream. Only marks made of the same are compared:
what is random in a sample for one worker may not have shown for another one. Whoever had less time has fewer marks.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

MARK_SIZE = 8
PLACES_MAX = 32
UNKNOWN = bytes(MARK_SIZE)
STREAM = 128


class Difference(NamedTuple):
    """place: which sample it is; None: the list of all keys. Marks in hexadecimal."""

    place: int | None
    first: str
    second: str


def mark(made_of: int, content: bytes) -> bytes:
    assert 0 < made_of < 256, made_of
    return bytes([made_of]) + blake2b(content, digest_size=MARK_SIZE - 1).digest()


@lru_cache(maxsize=64)
def places(samples: int) -> tuple[int, ...]:
    """Which samples are looked at, the most telling first: the ends, then any, the same for all workers."""
    out = dict.fromkeys((0, samples - 1))
    for number in range(4 * PLACES_MAX):
        if len(out) >= min(PLACES_MAX, samples):
            break
        digest = blake2b(f"{samples}/{number}".encode(), digest_size=8).digest()
        out[int.from_bytes(digest, "big") % samples] = None
    return tuple(out)


def first_difference(first: bytes, second: bytes, samples: int) -> Difference | None:
    """Where two fingerprints of data sets of this length differ, as far as they can be compared."""
    at = places(samples)
    for number in range(min(len(first), len(second)) // MARK_SIZE):
        one, other = (each[number * MARK_SIZE : (number + 1) * MARK_SIZE] for each in (first, second))
        if one != other and one[0] == other[0] != 0:
            place = None if number == 0 else number - 1 if one[0] >= STREAM else at[number - 1]
            return Difference(place, one.hex(), other.hex())
    return None
