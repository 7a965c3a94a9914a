"""Samples as everybody names them: positions of an epoch, taken from a lease.

Owns their order as plain numbers, which is that of steps, commits and lineages. Must not know who takes them.
"""

from __future__ import annotations

from typing import NamedTuple


class Range(NamedTuple):
    """`length` positions of `epoch` from `start`, taken from a lease. `token` is any signed 64-bit number."""

    lease: int
    token: int
    epoch: int
    start: int
    length: int
