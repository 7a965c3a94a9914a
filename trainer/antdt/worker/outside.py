"""What a life has of whoever drives it: what was said to it, a clock and a lock, and the model and files it reads from.

Must not know what a life makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from antdt.strategies.base import Head


@dataclass(frozen=True, slots=True)
class LifeOptions:
    """What a script and its launcher have said. checkpoint_every_steps: 0 for the final file only. rank: as the
    launcher counts, where workers are no members.
    """

    job: str
    workers_min: int
    join_timeout_s: float
    checkpoint_every_steps: int
    grace_s: float
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Outside:
    """What a life has of the world. lock: held while the session is touched. say: a sentence for people, of a level of
    `logging`.
    """

    now_s: Callable[[], float]
    lock: AbstractContextManager[Any]
    say: Callable[[int, str], None]


class Lived(Head, Protocol):
    """The model that a worker lives with. pending_max: applied steps that may await their commit. ranges_max: of one
    part. form_patience_s: for how long generations may fail to form. undivided: all members of the generation know that
    scripts need their parts of a step in one piece, and in order.
    """

    @property
    def pending_max(self) -> int: ...
    @property
    def ranges_max(self) -> int: ...
    @property
    def form_patience_s(self) -> float: ...
    @property
    def undivided(self) -> bool: ...


class Attached(Lived, Protocol):
    """The model as a worker of servers has it. others_idle: some other worker has no samples."""

    @property
    def others_idle(self) -> bool: ...


class Served(Lived, Protocol):
    """A server's part of the model. active: workers that are at something. backup: as the script says. saved_step: of
    its own newest durable part. is_saving: files were asked for, and not all are there. wanted: another server asks for
    some.
    """

    @property
    def active(self) -> int: ...
    @property
    def backup(self) -> int: ...
    @property
    def saved_step(self) -> int: ...
    @property
    def is_saving(self) -> bool: ...
    @property
    def wanted(self) -> bool: ...


class Files(Protocol):
    """written_step: that of the file written last in this generation, -1 for none. owes: one could not be written.
    may_try: not so soon after that. owes_init: that of the model before any step could not be written.
    """

    written_step: int

    @property
    def owes(self) -> bool: ...
    @property
    def may_try(self) -> bool: ...
    @property
    def owes_init(self) -> bool: ...
