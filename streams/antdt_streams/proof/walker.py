"""From the entries of a log to a fold: many at once where they allow it, else one after the other.

Owns the portions in which a log is read, and who is told what was read. Which entries can go together, and what they
come to, is said in `ledger.core.columns` and `ledger.core.runs`; what is wrong with a log, in `ledger.core.fold`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from antdt_schemas.errors import AntdtError, LogTampered

from antdt_streams.ledger.core.fold import Fold, Verdict
from antdt_streams.proof.fast import columns, runs
from antdt_streams.proof.fast.runs import Run

CHUNK_ENTRIES = 2048
CHUNK_BYTES = 1 << 20  # decoding takes some ten times as much for a moment

E = TypeVar("E", bound=tuple[Any, ...])
Entries = Iterable[tuple[int, bytes]]
Anchors = Mapping[int, bytes]


class Observer(Protocol):
    """Who is told what was read, right after it."""

    def entry(self, verdict: Verdict) -> None:
        """One entry; `fold.entry` is what it said, and it ends at `fold.position`."""

    def run(self, run: Run) -> None:
        """Many entries, all of which count."""


class Walker:
    """Folds entries in. `reading` is the offset of the entry that is being read one by one, None between entries.

    anchors: rolling hashes after some offsets, known from elsewhere, that must be met.
    """

    def __init__(self, fold: Fold, anchors: Anchors | None = None, observer: Observer | None = None) -> None:
        fold.cached = False  # nobody stores rows here: their names would grow with the log
        self.fold, self.due, self.observer = fold, dict(anchors or {}), observer
        self.start = fold.position.next_offset
        self.reading: int | None = None

    def read(self, chunk: list[tuple[int, bytes]]) -> None:
        """Fold in some entries.

        Raises:
            LogTampered, Mismatch, Undecodable, UnknownSchema: the log is not what it says it is.
        """
        payloads = [payload for _, payload in chunk]
        first, size = self.fold.position.next_offset, len(chunk)
        found = None
        if size >= runs.FEWEST and all(entry[0] == offset for offset, entry in enumerate(chunk, first)):
            found = columns.decode(payloads)
        if found is None:
            self._one_by_one(chunk)
            return
        # Where a run must end: before and behind an entry that is not plain, and behind one with an anchor.
        plain = found.cycles.plain.tolist()
        ends = {n + behind for n, it_is in enumerate(plain) if not it_is for behind in (0, 1)} | {size}
        ends |= {offset - first + 1 for offset in self.due if first <= offset < first + size}
        at = 0
        for end in sorted(ends):
            tedious = runs.FEWEST
            while at < end:
                run = runs.read(self.fold, found, payloads, at, end) if plain[at] else None
                if run is None:
                    # Each time that nothing comes of it, it is asked half as often.
                    self._one_by_one(chunk[at : min(at + tedious, end)])
                    at, tedious = min(at + tedious, end), 2 * tedious
                    continue
                at, tedious = run.last, runs.FEWEST
                if self.observer is not None:
                    self.observer.run(run)
            self._check_anchor()

    def _one_by_one(self, chunk: list[tuple[int, bytes]]) -> None:
        for offset, payload in chunk:
            self.reading = offset
            verdict = self.fold.read(offset, payload)
            if self.observer is not None:
                self.observer.entry(verdict)
            self._check_anchor()
            self.reading = None

    def _check_anchor(self) -> None:
        """Of the last entry."""
        fold, offset = self.fold, self.fold.position.next_offset - 1
        expected = self.due.pop(offset, None)
        if expected is None:
            return
        if fold.position.hash != expected:
            self.reading = offset
            raise LogTampered(f"The rolling hash after offset {offset}", expected.hex(), fold.position.hash.hex())
        fold.proven = max(fold.proven, offset)

    def end(self) -> None:
        """That was all.

        Raises:
            LogTampered: an anchor lies behind it, or where there is no entry.
        """
        end = self.fold.position.next_offset
        unmet = [offset for offset in self.due if offset >= self.start]
        if not unmet:
            return
        if max(unmet) >= end:
            raise LogTampered("The end of the log", f"at least offset {max(unmet)}", end - 1)
        offset = min(unmet)
        raise LogTampered(f"The rolling hash after offset {offset}", self.due[offset].hex(), "no such entry")


def chunks(entries: Iterable[E], at: int | None = None, most: int = CHUNK_ENTRIES) -> Iterator[list[E]]:
    """The entries up to offset `at`, some at a time. What came before an error is passed on before it is raised.

    entries: tuples of an offset and what else there is, the bytes last.
    """
    chunk: list[E] = []
    size, failed = 0, None
    try:
        for entry in entries:
            if at is not None and entry[0] > at:
                break
            chunk.append(entry)
            size += len(entry[-1])
            if len(chunk) == most or size >= CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    except AntdtError as error:
        failed = error
    if chunk:
        yield chunk
    if failed is not None:
        raise failed
