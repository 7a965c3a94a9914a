"""The one error tree.

    AntdtError                  what is no bug of ours; each names its exit code
     ├─ UsageError          2   the user's mistake, a ValueError too: says what to do about it
     ├─ Unavailable        75   broker, disk or peer is away: start again here
     ├─ Superseded         42   another leader took office
     ├─ UnknownJob          2   no such job on this broker
     ├─ JobTaken           42   the name belongs to another run
     ├─ Mismatch           42   an identity differs: both values are named, nothing starts afresh
     │   ├─ ForeignState   42   a folder that belongs to another job, run or topic
     │   ├─ LogTruncated   42   the log is shorter than what was read from it before
     │   └─ LogTampered    42   hash chain, digest or sequence do not hold
     ├─ Undecodable        42   bytes that are no record of ours
     │   └─ UnknownSchema  42   a fingerprint that this version does not know
     ├─ NotFinite          42   gradients or the model are not finite: started again, it would meet the same samples
     ├─ Refused            42   the ledger refused what this worker asked, with its reason
     └─ Occupied           42   somebody else runs this worker: was there first, has its place, or took over

Not an error: a worker or a launch that ends with INCOMPLETE (3) has trained on all but what is in quarantine.

Our own bugs are assertions, and they stay on: Python must not run with -O.
"""

from __future__ import annotations

import signal
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of every process of ours."""

    DONE = 0
    BUG = 1
    USAGE = 2
    INCOMPLETE = 3
    NEVER_RETRY = 42
    RESTART_HERE = 75
    RESTART_ELSEWHERE = 76
    KILLED = 137  # told to end, and gone before its work was saved: what is in no checkpoint is done again
    DRAINED = 143  # told to end, and its work is saved


def how(code: int) -> str:
    """How a process has ended, in words. code: its exit status; negative for a signal."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


class AntdtError(Exception):
    """A fault of the world outside, or the user's. `hint` says what to do about it."""

    exit_code = ExitCode.RESTART_HERE

    def __init_subclass__(cls, exit_code: ExitCode | None = None) -> None:
        cls.exit_code = cls.exit_code if exit_code is None else exit_code

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.hint = hint


class UsageError(AntdtError, ValueError, exit_code=ExitCode.USAGE):
    """The user's mistake; the message says what to do about it."""


class Unavailable(AntdtError):
    """Broker, disk or peer is away."""


class Superseded(AntdtError, exit_code=ExitCode.NEVER_RETRY):
    """Another leader took office; what this one wrote since is void. Restarting would only take it back."""


class UnknownJob(AntdtError, exit_code=ExitCode.USAGE):
    """No such job on this broker."""


class JobTaken(AntdtError, exit_code=ExitCode.NEVER_RETRY):
    """The job's name belongs to another run."""


class Mismatch(AntdtError, exit_code=ExitCode.NEVER_RETRY):
    """Two identities that must be equal differ."""

    def __init__(self, what: str, expected: object, found: object, hint: str = "") -> None:
        super().__init__(f"{what} differs: expected {expected}, found {found}.", hint)
        self.what, self.expected, self.found = what, expected, found


class ForeignState(Mismatch):
    """A folder that belongs to another job, run or topic."""


class LogTruncated(Mismatch):
    """The log is shorter than what was read from it before."""


class LogTampered(Mismatch):
    """Hash chain, digest or sequence do not hold at an offset."""


class Undecodable(AntdtError, exit_code=ExitCode.NEVER_RETRY):
    """Bytes that are no record of ours."""


class UnknownSchema(Undecodable):
    """A schema fingerprint that this version does not know."""


class NotFinite(AntdtError, exit_code=ExitCode.NEVER_RETRY):
    """Gradients or the model hold a NaN or an infinity, and going on would not mend it."""


class Refused(AntdtError, exit_code=ExitCode.NEVER_RETRY):
    """The ledger refused what this worker asked."""


class Occupied(AntdtError, exit_code=ExitCode.NEVER_RETRY):
    """Somebody else runs this worker: was there first, has its place, or took over. Who came back would take turns."""


def unknown_job(job: str) -> UnknownJob:
    """What to say of a job that the broker does not have."""
    return UnknownJob(
        f"Job {job!r} is not on this broker.", f"Start it with `antdt up {job}`, or see `antdt topics list`."
    )


if not __debug__:  # pragma: no cover
    raise RuntimeError("antdt checks its invariants with assertions: run Python without -O and without PYTHONOPTIMIZE.")
