"""The lineage hash of a model: h_s = H(h_{s-1}, s, composition of s).

Members compute it from what they reduced, the ledger from what was committed, an auditor from the log: equal hashes
mean equal contents, step by step.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

DIGEST_SIZE = 16
ROOT = bytes(DIGEST_SIZE)


def next_lineage(previous: bytes, step: int, ranges: Sequence[int]) -> bytes:
    """Lineage after `step`.

    ranges: flat quadruples (lease, epoch, start, length) in rank order.
    """
    assert len(previous) == DIGEST_SIZE, previous
    assert len(ranges) % 4 == 0, ranges
    return blake2b(previous + _words(1 + len(ranges)).pack(step, *ranges), digest_size=DIGEST_SIZE).digest()


def lineages(previous: bytes, packed: bytes, ends: Sequence[int]) -> list[bytes]:
    """Lineages after many steps.

    packed: the number and the ranges of each step as big-endian 64-bit words, one step behind the other; `ends` says
    where each of them ends, in bytes.
    """
    assert len(previous) == DIGEST_SIZE, previous
    found, start = [], 0
    for end in ends:
        previous = blake2b(previous + packed[start:end], digest_size=DIGEST_SIZE).digest()
        found.append(previous)
        start = end
    return found


@lru_cache(maxsize=64)
def _words(count: int) -> struct.Struct:
    return struct.Struct(f">{count}q")


def chain(previous: bytes, offset: int, payload: bytes) -> bytes:
    """Rolling hash of a log after the entry `payload` at `offset`."""
    return blake2b(previous + offset.to_bytes(8, "big") + payload, digest_size=DIGEST_SIZE).digest()


def chains(previous: bytes, offset: int, payloads: Sequence[bytes]) -> list[bytes]:
    """Rolling hashes after each of several entries, the first of which lies at `offset`."""
    found = []
    for number, payload in enumerate(payloads, offset):
        previous = blake2b(previous + number.to_bytes(8, "big") + payload, digest_size=DIGEST_SIZE).digest()
        found.append(previous)
    return found
