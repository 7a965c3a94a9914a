"""The exact loop over one partition of a service's input, the same under Kafka and in memory.

The order of a commit, which is all there is to it:
 1. the outputs of the batch are handed to the sink,
 2. the sink confirms that every one of them is written,
 3. changed rows and the next offset go into the store, in one write.
Whatever dies between two of these leaves a position from which the same records give the same outputs again, with the
same causes, and readers drop what they have seen. Knows no client, no clock and no store by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from antdt_schemas import codec
from antdt_schemas.errors import ForeignState, LogTruncated, Mismatch, Undecodable
from antdt_schemas.records import Cause, DeadLetter
from antdt_schemas.topics import DEAD_LETTERS

from antdt_streams.runtime.rebuild import Outdated, Written
from antdt_streams.runtime.service import Batch, Observer, Raw, Service, Sink, Store
from antdt_streams.storage.rows import NOWHERE, Identity, Marks, Position, decode_row, encode_row

LAYOUT = 1
ROWS, POSITION = b"r", b"p"
RULES = ("layout", "version")  # what another one is no fault: such a state is rebuilt
PAYLOAD_MAX_BYTES = 64 << 10
REASON_MAX = 2000


@dataclass(slots=True)
class Counters:
    """What one runner has done since it was started."""

    records: int = 0
    repeats: int = 0
    outputs: int = 0
    dead_letters: int = 0
    restores: int = 0


class PoisonError(Exception):
    """A record after which the state can no longer be trusted."""


class Runner:
    """Owns the state of one partition.

    Invariant: what is in the store is the state after exactly the records below `committed`, and every output of those
    is acknowledged.

    outdated: what another version has stored, further than the state that is loaded; `rebuild` is called before `take`.
    """

    def __init__(
        self,
        service: Service,
        identity: Identity,
        store: Store,
        sink: Sink,
        partition: int = 0,
        observer: Observer | None = None,
    ) -> None:
        """Load the partition from the store; nothing is written yet. observer: told of what is committed.

        Raises:
            ForeignState: the rows belong to another job, service or topic.
            Mismatch: they are damaged.
            Unavailable: they were being rebuilt, and what was written before cannot be read.
        """
        self.service, self.identity, self.store, self.sink, self.partition = service, identity, store, sink, partition
        self.topic = service.input.name(identity.job)
        self.counters = Counters()
        self._observer, self._unseen = observer, list[tuple[Any, Sequence[Any]]]()
        self._prefix = b"%05d/" % partition
        self._written: Written | None = None
        self.outdated: Outdated | None = None
        self._load()

    def _load(self) -> None:
        mark = dict(self.store.rows(self._prefix + POSITION)).get(self._prefix + POSITION)
        self.next_offset, self._now_ms, self._seen = 0, 0, Marks()
        self._replaced = dict[bytes, None]()
        self._unseen.clear()
        found = None if mark is None else self._checked(mark)
        self.state, reason = self._state_of(found)
        if found is not None and reason:
            self._replaced = dict.fromkeys(key for key, _ in self.store.rows(self._prefix))
            self._note_outdated(reason, found)
        elif found is not None:
            self.next_offset, self._now_ms = found["next_offset"], found["now_ms"]
            self._seen = Marks({int(p): (offset, index) for p, (offset, index) in found["seen"].items()})
            self._go_on_below(found.get("rebuilt_below", 0))
        self.committed = self.next_offset

    def _state_of(self, found: dict[str, Any] | None) -> tuple[Any, str]:
        """The state that is stored; or a new one and, where there are rows of other rules, how these differ."""
        reason = self._other_rules(found) if found is not None else ""
        if found is None or reason:
            return self.service.new_state(), reason
        skip = len(self._prefix) + len(ROWS)
        try:
            return self.service.load_state({k[skip:]: v for k, v in self.store.rows(self._prefix + ROWS)}), ""
        except Mismatch as error:  # other rules, although of the same version
            return self.service.new_state(), str(error).rstrip(".")

    def _owner(self) -> dict[str, Any]:
        rules = {"layout": LAYOUT, "version": self.service.version}
        return rules | {"job": self.identity.job, "service": self.service.name, "topic_id": self.identity.topic_id}

    def _checked(self, mark: bytes) -> dict[str, Any]:
        """The row of the position: of this job, service and topic, whoever's rules it was written by."""
        hint = "Give it a folder of its own, or remove this one: it is rebuilt from the topic."
        try:
            found: dict[str, Any] = decode_row(mark)
            of = {what: found[what] for what in ("job", "service", "topic_id", "layout", "version", "next_offset")}
        except (ValueError, TypeError, KeyError) as error:
            what = f"The position in the stored state of {self.topic}"
            raise Mismatch(what, "a row of ours", f"{bytes(mark[:40])!r}", hint) from error
        for what, expected in self._owner().items():
            if what not in RULES and of[what] != expected:
                raise ForeignState(f"The {what} of the stored state of {self.topic}", expected, of[what], hint)
        return found

    def _other_rules(self, found: dict[str, Any]) -> str:
        """How the rules differ that rows were written by, or nothing."""
        ours = self._owner()
        for what in RULES:
            if found[what] != ours[what]:
                theirs = f"{what} {found[what]} of the {self.service.name}, this is {what} {ours[what]}"
                return f"The state of {self.topic} was written by {theirs}"
        return ""

    # -- what other rules wrote

    def _note_outdated(self, reason: str, found: Mapping[str, Any]) -> None:
        reached = max(found["next_offset"], found.get("rebuilt_below", 0))  # it may have been rebuilding itself
        if self.outdated is None or reached > self.outdated.next_offset:
            told = f"{reason}: it is rebuilt from the topic, and nothing that was written is written again."
            self.outdated = Outdated(told, reached)

    def rebuild(self) -> None:
        """Where other rules have stored something further on: replay up to there, and go on behind what they wrote."""
        if self.outdated is not None:
            self._go_on_below(self.outdated.next_offset)
            self.outdated = None
            self._commit([])

    def _go_on_below(self, offset: int) -> None:
        if self._written is None and offset:
            self._written = Written.read(self.service, self.identity.job, self.sink, self.partition, offset)
        if self._written is not None:
            self._written.below = max(self._written.below, offset)

    @property
    def rebuilt_below(self) -> int:
        """What the records below this offset give is written; 0 if nothing is rebuilt."""
        return self._written.below if self._written is not None else 0

    # -- records

    def take(self, batch: Batch) -> None:
        """Process what is new in a batch and commit it. Repeated records are skipped, missing ones are an error.

        A hole is none: what is between the position and a batch that was read from there on is no record, but the
        marker of a transaction, or what compaction has removed. Nothing can be lost in it unnoticed. Reading began at
        the position, which was held against the bounds of the partition; what retention removes later is below these
        bounds, so that a fetch from there is an error and never a later record; and whatever the reader was given and
        has not passed on moves `since` beyond the position.

        Raises:
            LogTruncated: records between the position and this batch are missing.
        """
        assert batch.partition == self.partition and self.outdated is None, batch.partition
        since = batch.first_offset if batch.since is None else batch.since
        if since > self.next_offset:
            raise LogTruncated(f"The next record of {self.topic}", self.next_offset, since)
        if batch.first_offset > self.next_offset:
            self.next_offset = batch.first_offset
            self._commit([])  # so that a restore, too, begins behind it
        ahead = batch.first_offset - self.next_offset
        records = batch.records[-ahead:]
        while records:
            taken, outbox = self._fold(records)
            self._commit(outbox)
            records = records[taken:]

    def skip_to(self, offset: int, reason: str) -> None:
        """Go on at a later offset, on somebody's explicit wish; that it was done is a dead letter."""
        assert offset > self.next_offset, (offset, self.next_offset)
        letter = self._letter(self.next_offset, Raw(b"", 0), reason)
        answers = self._written.answers if self._written is not None else {}
        for at in sorted(at for at in answers if self.next_offset <= at < offset):
            assert self.service.follow is not None
            self.service.follow(self.state, None, Position(self.partition, at), self._now_ms, answers[at])
        self.next_offset = offset
        self._commit([letter])

    def rows(self) -> dict[bytes, bytes]:
        """Everything that is stored of this partition, the position among it: what a snapshot holds."""
        skip = len(self._prefix)
        return {key[skip:]: row for key, row in self.store.rows(self._prefix)}

    def adopt(self, rows: Mapping[bytes, bytes]) -> bool:
        """Go on from the rows of a snapshot instead of what is stored, in one write; False if other rules wrote them.

        Raises:
            ForeignState: they belong to another job, service or topic.
            Mismatch: they are damaged.
        """
        found = self._checked(rows.get(POSITION, b""))
        reason = self._other_rules(found)
        if reason:
            self._note_outdated(reason, found)
            return False
        changes: dict[bytes, bytes | None] = {self._prefix + key: None for key in self.rows()}
        self.store.write(changes | {self._prefix + key: row for key, row in rows.items()})
        self._written = None
        self._load()
        if self.outdated is not None and self.outdated.next_offset <= self.next_offset:
            self.outdated = None
        return not self._replaced

    def digest(self) -> bytes:
        """Digest of the state; after `take` it is the digest of what is stored."""
        return bytes(self.state.digest())

    def _fold(self, records: Sequence[Raw]) -> tuple[int, list[tuple[str, bytes]]]:
        """Process records up to the end, or up to and with the first poisonous one: (how many, what to write)."""
        outbox: list[tuple[str, bytes]] = []
        for index, record in enumerate(records):
            try:
                outbox += self._one(record)
                continue
            except PoisonError as error:
                reason = str(error)
            again = self._restore(records[:index])
            assert again == outbox, f"{self.service.name} gave other outputs for the same records: {reason}"
            outbox += self._new_letter(self.next_offset, record, reason)
            self.next_offset += 1
            return index + 1, outbox
        return len(records), outbox

    def _restore(self, records: Sequence[Raw]) -> list[tuple[str, bytes]]:
        """Back to the last commit, and forward again over records that are known to be good: their outputs."""
        self.counters.restores += 1
        self._load()
        return [output for record in records for output in self._one(record)]

    def _one(self, raw: Raw) -> list[tuple[str, bytes]]:
        """Fold one record into the state and move past it: its outputs, encoded.

        Raises:
            PoisonError: the state may be changed by half.
        """
        offset = self.next_offset
        self._now_ms = max(self._now_ms, raw.timestamp_ms)  # a broker's clock may be set back, a service's may not
        try:
            record: Any = codec.decode_one_of(raw.value, self.service.input.kinds)
            outputs = () if self._repeated(record) else self._process(record, offset)
        except Undecodable as error:  # by contract, nothing was changed
            self.next_offset += 1
            return self._new_letter(offset, raw, str(error))
        if (cause := getattr(record, "cause", None)) is not None:
            self._seen.note(cause.partition, (cause.offset, cause.index))
        self.next_offset += 1
        if self._observer is not None:
            self._unseen.append((record, outputs))
        encoded = [self._encoded(output, offset, index) for index, output in enumerate(outputs)]
        written = self._written
        if written is not None:
            encoded = [out for index, out in enumerate(encoded) if not written.has(out[0], offset, index)]
        return encoded

    def _process(self, record: Any, offset: int) -> Sequence[Any]:
        service, at, written = self.service, Position(self.partition, offset), self._written
        try:
            if written is not None and service.follow is not None and written.is_answered(offset):
                service.follow(self.state, record, at, self._now_ms, written.answers.get(offset, ()))
                return ()
            return service.process(self.state, record, at, self._now_ms)
        except (Undecodable, MemoryError, Mismatch):
            raise
        except Exception as error:
            raise PoisonError(f"{self.service.name} failed on it: {type(error).__name__}: {error}") from error

    def _encoded(self, output: Any, offset: int, index: int) -> tuple[str, bytes]:
        topic = self.service.outputs[type(output)]
        cause = getattr(output, "cause", None)
        assert cause is None or cause == Cause(self.partition, offset, index), (cause, self.partition, offset, index)
        try:
            value = codec.encode(output)
        except Exception as error:
            what = f"{type(output).__name__} of {self.service.name} cannot be written"
            raise PoisonError(f"The {what}: {type(error).__name__}: {error}") from error
        most = self.identity.record_bytes_max
        if len(value) > most:
            what = f"{type(output).__name__} of {self.service.name} has {len(value)} bytes"
            raise PoisonError(f"The {what}, more than the {most} that a record may have.")
        return topic.name(self.identity.job), value

    # -- repeats: a writer that was restarted writes again what it wrote, with the same causes

    def _repeated(self, record: Any) -> bool:
        cause = getattr(record, "cause", None)
        if cause is None or (cause.offset, cause.index) > self._seen.get(cause.partition, NOWHERE):
            return False
        self.counters.repeats += 1
        return True

    # -- the commit

    def _commit(self, outbox: list[tuple[str, bytes]]) -> None:
        for topic, value in outbox:
            # One output partition for each input partition: what a predecessor wrote late is in order with this.
            self.sink.send(topic, value, self.partition)
        if outbox:
            self.sink.flush()
        if self._written is not None and self._written.is_over(self.next_offset):
            self._written = None
        changes: dict[bytes, bytes | None] = dict(self._replaced)
        changes |= {self._prefix + ROWS + key: row for key, row in self.state.changes().items()}
        seen = {str(partition): list(newest) for partition, newest in sorted(self._seen.items())}
        mark = {"next_offset": self.next_offset, "now_ms": self._now_ms, "seen": seen}
        if self._written is not None:  # for whoever goes on from here
            mark["rebuilt_below"] = self._written.below
        changes[self._prefix + POSITION] = encode_row({**self._owner(), **mark})
        self.store.write(changes)
        self._replaced.clear()
        letters = sum(topic == DEAD_LETTERS.name(self.identity.job) for topic, _ in outbox)
        self.counters.records += self.next_offset - self.committed
        self.counters.dead_letters += letters
        self.counters.outputs += len(outbox) - letters
        self.committed = self.next_offset
        if self._observer is not None:
            for record, outputs in self._unseen:
                self._observer.observe(record, outputs)
            self._unseen.clear()

    def _new_letter(self, offset: int, raw: Raw, reason: str) -> list[tuple[str, bytes]]:
        letter = self._letter(offset, raw, reason)
        written = self._written is not None and self._written.has(letter[0], offset, 0)
        return [] if written else [letter]

    def _letter(self, offset: int, raw: Raw, reason: str) -> tuple[str, bytes]:
        payload = raw.value or b""
        kept = payload[: min(PAYLOAD_MAX_BYTES, self.identity.record_bytes_max // 2)]
        at = self.service.name, self.topic, self.partition, offset
        letter = DeadLetter(*at, reason[:REASON_MAX], kept, len(payload))
        return DEAD_LETTERS.name(self.identity.job), codec.encode(letter)
