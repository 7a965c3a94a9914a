"""How many samples this worker can hold at a time: what its script states, and what it has learned.

Owns some numbers of the worker's page, which its next life finds there. The unit is the micro-batch: what one forward
and backward hold. A worker that takes more samples in a step goes through them in several. Must not know what a limit
is good for.

    growth      a micro-batch is larger than any before, and PROBATION more have not passed yet
    limit       learned where memory was out (torch said so, or the kernel ended the process), or where the process was
                ended by SIGKILL soon after a growth; the latter may have had another reason, so it is lifted again,
                later each time
"""

from __future__ import annotations

import errno
import logging
import math
from pathlib import Path
from time import monotonic

from antdt.host import whereabouts
from antdt.host.whereabouts import Page

log = logging.getLogger("antdt")

PROBATION = 8
LIFTED_AFTER_S = 600.0
LATELY_S = 10.0
VMSTAT = Path("/proc/vmstat")
TOO_MUCH = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
# They say something of the machine: a disk that is full, too many open files, a device that is gone.
OF_THE_MACHINE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether it says that memory is out. Not all that do are torch.OutOfMemoryError, least on the CPU."""
    if isinstance(error, MemoryError):
        return True
    # torch.OutOfMemoryError by its name: a launcher does without torch until it starts somebody.
    named = type(error).__name__ == "OutOfMemoryError" or any(words in str(error).lower() for words in TOO_MUCH)
    return isinstance(error, RuntimeError) and named


def is_of_the_machine(error: BaseException) -> bool:
    """Whether it says something of the machine, and nothing of the samples at hand."""
    return is_out_of_memory(error) or (isinstance(error, OSError) and error.errno in OF_THE_MACHINE)


class Holds:
    """Of one worker; its training thread alone writes. stated: by the script; 0: nothing.

    at: samples of the micro-batch at hand.
    """

    def __init__(self, page: Page, stated: int = 0) -> None:
        self._numbers, self._times, self._stated = page.numbers, page.times, stated
        self.at = 0

    @property
    def limit(self) -> int:
        """Samples of a micro-batch, at most; 0: not known."""
        learned = self._numbers[whereabouts.LIMIT]
        if learned and monotonic() > self._times[whereabouts.LIMIT_UNTIL]:
            self._numbers[whereabouts.LIMIT] = learned = 0
        return min(self._stated or learned, learned or self._stated)

    def tries(self, samples: int) -> None:
        """A micro-batch of so many is about to be made."""
        self.at = samples
        numbers = self._numbers
        if samples > numbers[whereabouts.TRIED]:
            numbers[whereabouts.HELD] = max(numbers[whereabouts.HELD], numbers[whereabouts.PASSED])
            numbers[whereabouts.TRIED], numbers[whereabouts.PASSES] = samples, 0

    def passed(self) -> None:
        """It went forward and backward."""
        numbers = self._numbers
        if numbers[whereabouts.TRIED] > numbers[whereabouts.HELD]:
            numbers[whereabouts.PASSES] += 1
            numbers[whereabouts.PASSED] = max(numbers[whereabouts.PASSED], self.at)
            if numbers[whereabouts.PASSES] >= PROBATION:
                numbers[whereabouts.HELD] = numbers[whereabouts.TRIED] = numbers[whereabouts.PASSED]

    def failed(self) -> int:
        """Memory was out with it. Returns the new limit; 0 where there is nothing smaller to try."""
        smaller = _smaller(self._numbers[whereabouts.HELD], self.at)
        if smaller:
            _learn(self._numbers, smaller)
            self._times[whereabouts.LIMIT_UNTIL] = math.inf
        return smaller

    def shrink(self) -> None:
        """Memory was out where only the end of the process gives it back: its next life takes fewer at a time."""
        at, smaller = self.at, self.failed()
        if smaller:
            self._numbers[whereabouts.SHRUNK] = 1
            log.warning("memory is out with %d samples at a time: started again, it takes %d", at, smaller)


def learn_from_kill(page: Page, *, by_kernel: bool) -> str:
    """For the launcher of a worker that was ended by SIGKILL: what it is to hold from now on, as half a sentence; empty
    where memory need not have been the reason.

    by_kernel: the kernel is known to have ended processes meanwhile for lack of memory.
    """
    numbers = page.numbers
    tried, held = numbers[whereabouts.TRIED], numbers[whereabouts.HELD]
    if not tried or not (by_kernel or 0 < held < tried):
        return ""
    smaller = _smaller(held, tried)
    if not smaller:
        return ""
    _learn(numbers, smaller)
    numbers[whereabouts.SHRUNK] = 1
    lifted_s = math.inf if by_kernel else LIFTED_AFTER_S * 2.0 ** numbers[whereabouts.STRIKES]
    numbers[whereabouts.STRIKES] += 1
    page.times[whereabouts.LIMIT_UNTIL] = monotonic() + lifted_s
    why = "for lack of memory" if by_kernel else f"soon after its micro-batches grew from {held} samples to {tried}"
    lifted = "" if by_kernel else f" for {lifted_s:.0f} s"
    return f"{why}: it takes {smaller} at a time{lifted}, and its samples are not blamed"


class KernelKills:
    """Whether the kernel has ended a process of this machine for lack of memory within the last seconds."""

    def __init__(self, file: Path = VMSTAT) -> None:
        self._file = file
        self._read_at_s, self._before = monotonic(), kernel_kills(file)
        self._earlier = self._before

    def look(self) -> None:
        """Now and then."""
        if monotonic() - self._read_at_s >= LATELY_S:
            self._earlier, self._before = self._before, kernel_kills(self._file)
            self._read_at_s = monotonic()

    def lately(self) -> bool:
        """Since one or two LATELY_S ago."""
        return kernel_kills(self._file) > self._earlier


def kernel_kills(file: Path = VMSTAT) -> int:
    """How many processes the kernel has ended for lack of memory since it was started; 0 where it does not say."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _smaller(held: int, at: int) -> int:
    """The largest size that has passed before, or half of it."""
    return held if 0 < held < at else at // 2


def _learn(numbers: memoryview[int], limit: int) -> None:
    numbers[whereabouts.LIMIT] = min(numbers[whereabouts.LIMIT] or limit, limit)
    numbers[whereabouts.HELD] = min(numbers[whereabouts.HELD], limit)
    numbers[whereabouts.TRIED] = numbers[whereabouts.PASSED] = numbers[whereabouts.HELD]
