"""Where this worker is: what its training thread is at, since when, and with which samples.

Owns one page of memory. The training thread writes it at every change, without a lock and in well under a microsecond;
the connection's thread reads it for heartbeats, and a launcher that has shared it reads it when the worker hangs or is
dead. A reader may meet a change half written: it looks again, or is wrong by one change. Must not know what anybody
makes of it.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from time import monotonic

WORD = 8
RANGES_KEPT = 64
TEXT_BYTES = 512
MISSING, KEY, WORDS, NAME = range(4)
# Numbers of words; SINCE, ALLOWED and BEAT are doubles. MAIN: the identity of the process's main thread,
# as Python has it; CLIENT: the number of its connection's, as the kernel has it; 0: it has none.
CHANGES, PHASE, SINCE, ALLOWED, BEAT, EPOCH, POSITION, BLAMED, INCOMPLETE, ATTEMPTS, LIFE, PID = range(12)
JOINED, TAKEN_PART, CHECKPOINT, SHRUNK, STEP, MAIN, CLIENT, AT_HAND = range(12, 20)
# What a worker has learned that it can hold (`holds`): kept for its next life. LIMIT_UNTIL is a double.
KEPT = range(AT_HAND + 1 + 3 * RANGES_KEPT, AT_HAND + 1 + 3 * RANGES_KEPT + 7)
HELD, TRIED, PASSED, PASSES, LIMIT, LIMIT_UNTIL, STRIKES = KEPT
TEXT = KEPT.stop
THREADS = TEXT * WORD + 4 * TEXT_BYTES  # where their names begin
THREADS_BYTES = 4096
SIZE = THREADS + THREADS_BYTES


class At(IntEnum):
    """What a training thread can be at. `user`: the script's own code, between two batches or behind the loop. `idle`:
    it waits for what the ledger gives, samples or room for more steps, and says so anew each time that it looks.
    """

    START = 0
    FORMING = 1
    LOADING = 2
    COMPUTING = 3
    REDUCING = 4
    USER = 5
    SAVING = 6
    ENDING = 7
    SERVING = 8
    IDLE = 9


# What members are at together, or towards each other: nobody is at it any more once the generation is over.
IDLE = At.IDLE.name.lower()
TOGETHER = frozenset(at.name.lower() for at in (At.FORMING, At.REDUCING, At.ENDING, At.IDLE))
STAYING = "staying"  # what heartbeats say of whoever is


@dataclass(frozen=True, slots=True)
class Standing:
    """What a heartbeat says of it: `phase`, for how long, for how long it was announced, and at what in particular."""

    phase: str = ""
    phase_s: float = 0.0
    allowed_s: float = 0.0
    detail: str = ""


class Page:
    """One worker's page. `detail`: what it is at in particular, for people; of this process only."""

    def __init__(self, memory: mmap.mmap | bytearray | None = None) -> None:
        """memory: SIZE bytes, all zero."""
        self._bytes = memoryview(bytearray(SIZE) if memory is None else memory)[:SIZE]
        numbers = self._bytes[: TEXT * WORD]
        self.numbers, self.times = numbers.cast("q"), numbers.cast("d")
        self.numbers[EPOCH] = -1
        self.detail = ""

    def clear(self) -> None:
        """For the next life of the worker, which keeps what this one has learned."""
        kept = self._bytes[KEPT.start * WORD : KEPT.stop * WORD].tobytes()
        self._bytes[:] = bytes(SIZE)
        self._bytes[KEPT.start * WORD : KEPT.stop * WORD] = kept
        self.numbers[EPOCH] = -1

    # -- the training thread

    def enter(self, phase: At, detail: str = "", allowed_s: float = 0.0) -> None:
        """From now on it is at this."""
        numbers, times = self.numbers, self.times
        times[SINCE] = monotonic()
        numbers[PHASE] = phase
        times[ALLOWED] = allowed_s
        numbers[EPOCH] = -1
        self.detail = detail
        numbers[CHANGES] += 1

    def progress(self) -> None:
        """It is at the same, and something came of it."""
        self.times[SINCE] = monotonic()
        self.numbers[CHANGES] += 1

    def load(self, epoch: int, position: int) -> None:
        numbers = self.numbers
        numbers[EPOCH], numbers[POSITION] = epoch, position
        self.times[SINCE] = monotonic()
        numbers[CHANGES] += 1

    def loaded(self) -> None:
        self.numbers[EPOCH] = -1

    def take(self, ranges: Sequence[tuple[int, int, int]]) -> None:
        """These samples (epoch, start, length) are at hand; without any, none are."""
        numbers, at = self.numbers, AT_HAND + 1
        numbers[AT_HAND] = 0
        for triple in ranges[:RANGES_KEPT]:
            numbers[at], numbers[at + 1], numbers[at + 2] = triple
            at += 3
        numbers[AT_HAND] = min(len(ranges), RANGES_KEPT)

    def note(self, taken_part: int, checkpoint: int) -> None:
        """A member, in a generation that was granted: the newest committed step that it took part in, and the step of
        the newest checkpoint that it knows of.
        """
        self.numbers[JOINED], self.numbers[TAKEN_PART], self.numbers[CHECKPOINT] = 1, taken_part, checkpoint

    # -- whoever reads

    @property
    def changes(self) -> int:
        return self.numbers[CHANGES]

    @property
    def phase(self) -> At:
        return At(self.numbers[PHASE])

    @property
    def loading(self) -> tuple[int, int] | None:
        """(epoch, position) of the one sample that is being loaded."""
        epoch = self.numbers[EPOCH]
        return (epoch, self.numbers[POSITION]) if epoch >= 0 else None

    def standing(self) -> Standing:
        phase, one = self.phase, self.loading
        if phase is At.START:
            return Standing()
        detail = f"position {one[1]} of epoch {one[0]}" if one and not self.detail else self.detail
        since_s = max(0.0, monotonic() - self.times[SINCE])
        return Standing(phase.name.lower(), since_s, self.times[ALLOWED], detail)

    def at_hand(self) -> tuple[int, ...]:
        """Flat triples (epoch, start, length) of the samples that are being loaded or computed; the one, if it is."""
        if self.phase not in (At.LOADING, At.COMPUTING):
            return ()
        if self.loading is not None:
            return (*self.loading, 1)
        count = min(max(self.numbers[AT_HAND], 0), RANGES_KEPT)
        return tuple(self.numbers[AT_HAND + 1 : AT_HAND + 1 + 3 * count])

    # -- words and sentences for the launcher

    def say(self, number: int, text: str) -> None:
        """Sentence MISSING: what is in quarantine in the end. KEY: what the data set calls the first sample at hand.
        WORDS: why it ended, if it said so. NAME: its incarnation, where it has come back as another one by itself.
        """
        at = TEXT * WORD + number * TEXT_BYTES
        self._bytes[at : at + TEXT_BYTES] = " ".join(text.split()).encode()[: TEXT_BYTES - 1].ljust(TEXT_BYTES, b"\0")

    def name_threads(self, names: Mapping[int, str]) -> None:
        """Names of this process's threads, by the identity that the stacks of a process that hangs have for them."""
        lines = (f"{ident:x} {' '.join(name.split())}\n" for ident, name in names.items())
        text = "".join(lines).encode()[: THREADS_BYTES - 1]
        self._bytes[THREADS:SIZE] = text.ljust(THREADS_BYTES, b"\0")

    def threads(self) -> dict[int, str]:
        """As they were named last. The last one may be cut off where there are very many."""
        text = bytes(self._bytes[THREADS:SIZE]).partition(b"\0")[0].decode(errors="ignore")
        return {int(ident, 16): name for ident, name in re.findall(r"^([0-9a-f]+) (.+)$", text, re.MULTILINE)}

    def said(self, number: int) -> str:
        at = TEXT * WORD + number * TEXT_BYTES
        return bytes(self._bytes[at : at + TEXT_BYTES]).partition(b"\0")[0].decode(errors="ignore")


def shared() -> Page:
    """A page that processes which are forked from this one share with it."""
    return Page(mmap.mmap(-1, SIZE))


# This process's own. A launcher shares another one with each worker that it forks.
_mine = Page()


def mine() -> Page:
    return _mine


def adopt(page: Page) -> None:
    global _mine  # noqa: PLW0603  one process is one worker
    _mine = page
