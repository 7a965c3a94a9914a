"""Events of jobs whose steps have a fixed size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Excluded:
    """These positions are left out of every step from this generation on: there is evidence against their sample,
    alone, here or in an epoch before.
    """

    generation: int
    epoch: int
    start: int
    length: int
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Lifted:
    """These positions were to be left out, which no step has done: they are taken after all, since their sample was
    readmitted.
    """

    epoch: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Resized:
    """Steps that are executed from this generation on have another global batch. stated: what scripts state as theirs
    from now on.
    """

    generation: int
    batch_size: int
    stated: int
    author: str
    reason: str
    plan: int = 0


@dataclass(frozen=True, slots=True)
class Stopped:
    """The job ends behind this step: what is left is not meant to be trained."""

    step: int
    author: str
    reason: str
