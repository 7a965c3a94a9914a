#!/usr/bin/env python3
"""Verify an exported shard log with Python alone: no Kafka, no Avro library, nothing of antdt.

    python3 verify_standalone.py LOG.avro [--anchor OFFSET:HASH]

A second opinion. It shares no code with antdt (a test holds that), reads only the file of `antdt export`, and counts in
another way: it keeps every committed range and sorts them in the end. It checks
  - the file: whole, offsets grow, the rolling hash of its last entry (and every --anchor)
  - the chain: every entry that counts names the rolling hash of an entry before it; the sequence is dense
  - who may write: an entry counts only if it names the newest Leader entry by offset and hash, else it is void, as is
    what nobody can decode. What was written in the leader's name and does not chain breaks the log, unless a later
    entry of the same leader, who has read it, counts
  - the steps: dense, each range from the front of a live lease, the lineage hash of each step recomputed
  - where the model lies on servers: each generation is all of them and begins with a checkpoint of the newest step that
    counts, and what a lost worker holds returns only once the first of them has said that it refuses it
  - where samples are dealt out ahead: a worker begins with what it was dealt, and takes over what its owner has not
    begun; what a worker has not begun that is gone is dealt again
  - the end: each sample of each epoch in exactly one step that was not rolled back, or in quarantine

It does not check the digests of the ledger's state: they need its rules. `antdt replay --file` does.
Prints one JSON document. Exit status 0: exactly once. 1: not. 2: usage. 42: the log breaks, at the offset it names.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import pairwise
from typing import Any, BinaryIO


class Broken(Exception):
    """The log contradicts itself, or the file what it says of itself."""


BLOCK_BYTES_MAX = 64 << 20
ENTRY_BYTES_MAX = 8 << 20
DOUBTS_MAX = 64
DAMAGED = (Broken, IndexError, UnicodeDecodeError, struct.error)
LISTED_MAX = 1000
NEWEST = 1 << 62  # a generation behind all others
TAIL_SINCE_VERSION = 4  # of the rules; before it, a readmitted piece counted for steps of any generation
TOGETHER_SINCE_VERSION = 5  # before it, each step had its lineage in the log; since, the last of those of an entry
Decode = Callable[[bytes, int], "tuple[Any, int]"]


def hash16(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


# -- Avro, as its specification has it


def long_at(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        if shift > 63:
            raise Broken("a number of more than 64 bits")


def bytes_at(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = long_at(data, at)
    if not 0 <= size <= len(data) - at:
        raise Broken(f"a length of {size} bytes where {len(data) - at} are left")
    return data[at : at + size], at + size


def text_at(data: bytes, at: int) -> tuple[str, int]:
    value, at = bytes_at(data, at)
    return value.decode(), at


PRIMITIVES: dict[str, Decode] = {
    "null": lambda data, at: (None, at),
    "boolean": lambda data, at: (data[at] != 0, at + 1),
    "int": long_at,
    "long": long_at,
    "float": lambda data, at: (struct.unpack_from("<f", data, at)[0], at + 4),
    "double": lambda data, at: (struct.unpack_from("<d", data, at)[0], at + 8),
    "bytes": bytes_at,
    "string": text_at,
}


def decoder(schema: Any, names: dict[str, Decode]) -> Decode:
    """A function (data, position) -> (value, next position). Records become dicts, their name under "#"."""
    if isinstance(schema, str):
        return PRIMITIVES.get(schema) or names[schema.rsplit(".", 1)[-1]]
    if isinstance(schema, list):
        branches = [decoder(branch, names) for branch in schema]

        def union(data: bytes, at: int) -> tuple[Any, int]:
            branch, at = long_at(data, at)
            if not 0 <= branch < len(branches):
                raise Broken(f"branch {branch} of {len(branches)}")
            return branches[branch](data, at)

        return union
    kind = schema["type"]
    if kind == "array":
        item = decoder(schema["items"], names)

        def items(data: bytes, at: int) -> tuple[Any, int]:
            out: list[Any] = []
            while True:
                count, at = long_at(data, at)
                if count == 0:
                    return out, at
                if count < 0:  # a block that names its size, too
                    count, (_, at) = -count, long_at(data, at)
                if count > len(data):
                    raise Broken(f"{count} items in {len(data)} bytes")
                for _ in range(count):
                    value, at = item(data, at)
                    out.append(value)

        return items
    if kind == "record":
        fields: list[tuple[str, Decode]] = []
        name = schema["name"].rsplit(".", 1)[-1]

        def record(data: bytes, at: int) -> tuple[Any, int]:
            out: dict[str, Any] = {"#": name}
            for field, decode in fields:
                out[field], at = decode(data, at)
            return out, at

        names[name] = record
        fields += [(f["name"], decoder(f["type"], names)) for f in schema["fields"]]
        return record
    if kind in PRIMITIVES:
        return PRIMITIVES[kind]
    raise Broken(f"a schema of type {kind!r}, which no entry has")


# -- the file


def read_long(file: BinaryIO) -> int:
    data = b""
    while not data or data[-1] >= 0x80:
        byte = file.read(1)
        if not byte or len(data) > 9:
            raise Broken("the file ends inside a block")
        data += byte
    return long_at(data, 0)[0]


def read_header(file: BinaryIO) -> tuple[dict[str, bytes], bytes]:
    if file.read(4) != b"Obj\x01":
        raise ValueError("this is no Avro container file")
    metadata: dict[str, bytes] = {}
    while count := read_long(file):
        if count < 0:
            count, _ = -count, read_long(file)
        for _ in range(count):
            key, size = file.read(read_long(file)).decode(), read_long(file)
            metadata[key] = file.read(size)
    return metadata, file.read(16)


def blocks(file: BinaryIO, codec: bytes, sync: bytes) -> Iterator[tuple[bytes, int]]:
    """(entries, how many) of every block."""
    while mark := file.read(1):
        file.seek(-len(mark), 1)
        count, size = read_long(file), read_long(file)
        if not (0 < count <= BLOCK_BYTES_MAX and 0 < size <= BLOCK_BYTES_MAX):
            raise Broken(f"a block of {count} entries in {size} bytes")
        data, end = file.read(size), file.read(16)
        if len(data) < size or end != sync:
            raise Broken("the file ends inside a block, or a block does not end with the file's marker")
        if codec == b"deflate":
            inflate = zlib.decompressobj(-15)
            data = inflate.decompress(data, BLOCK_BYTES_MAX)
            if not inflate.eof:
                raise Broken("a block does not inflate")
        yield data, count


# -- the log


class Parts:
    """Of each epoch what is not begun, as runs (start, end, owner), in order; the owner "" is nobody."""

    def __init__(self) -> None:
        self.runs: dict[int, tuple[list[int], list[list[Any]]]] = {}
        self.known: dict[int, int] = {}

    def add(self, epoch: int, start: int, end: int, owner: str) -> None:
        starts, runs = self.runs.setdefault(epoch, ([], []))
        at = bisect_right(starts, start)
        if at and runs[at - 1][1:] == [start, owner]:
            at -= 1
            runs[at][1] = end
        else:
            starts.insert(at, start)
            runs.insert(at, [start, end, owner])
        if at + 1 < len(runs) and runs[at + 1][0] == end and runs[at + 1][2] == owner:
            runs[at][1] = runs[at + 1][1]
            del starts[at + 1], runs[at + 1]

    def take(self, epoch: int, start: int, end: int, owner: str) -> None:
        starts, runs = self.runs.get(epoch, ([], []))
        at = bisect_right(starts, start) - 1
        if at < 0 or not start < end <= runs[at][1] or runs[at][2] != owner:
            whose = f"of {owner}" if owner else "nobody's"
            raise Broken(f"[{start}, {end}) of epoch {epoch} is not {whose}, or was begun")
        low, high, _ = runs[at]
        del starts[at], runs[at]
        for a, b in ((low, start), (end, high)):
            if a < b:
                self.add(epoch, a, b, owner)

    def free(self, owner: str | None, epochs: list[int]) -> None:
        """What this one has not begun is nobody's. None: what anybody has not."""
        for epoch in epochs:
            for start, end, of in [list(run) for run in self.runs.get(epoch, ([], []))[1]]:
                if of and owner in (of, None):
                    self.take(epoch, start, end, of)
                    self.add(epoch, start, end, "")

    def reach(self, epoch: int, samples: int) -> None:
        """What of an epoch was never dealt."""
        known, self.known[epoch] = self.known.get(epoch, 0), samples
        if known < samples:
            self.add(epoch, known, samples, "")


class Log:
    """What counts, and the books of it."""

    def __init__(self, schemas: dict[str, Any]) -> None:
        self.decoders = {bytes.fromhex(mark): decoder(schema, {}) for mark, schema in schemas.items()}
        self.next_offset, self.rolling, self.proven, self.sequence, self.requests_next = 0, bytes(16), -1, 0, 0
        self.entries = 0
        self.recent: dict[int, bytes] = {}
        self.genesis: dict[str, Any] | None = None
        self.epoch: tuple[int, bytes] | None = None
        self.former: tuple[int, bytes] | None = None
        self.leader: str | None = None
        self.void: list[int] = []
        # Each: offset, offset that it names, what is proven, message, in the leader's name, of an office of this log.
        self.doubts: list[tuple[int, int, int, str, bool, bool]] = []
        self.lost_from: int | None = None
        self.leases: dict[int, list[int]] = {}
        # Triples (epoch, start, end) of every step; `ends[s]` is where those of step s end, `lineages` 16 bytes a step.
        self.ranges, self.ends, self.lineages = array("q"), array("q", [0]), bytearray(16)
        self.checkpoints = {0: bytes(16)}
        self.told = True  # whether the newest step has a lineage in the log
        self.apart: list[tuple[int, int, int, int]] = []
        self.rolled_back, self.skipped, self.file = 0, 0, None
        # Of steps of a fixed size: where each ends (epoch, position, batch size), which generation executed the newest,
        # what is left out from which generation on, and what is appended, with how many exclusions it came after and
        # the first generation that knew of it.
        self.places, self.executed = [(0, 0, 0)], 0
        self.excluded: list[tuple[int, int, int, int]] = []
        # Of a topic: positions that were added, whether more may be, and (epoch, start, end) where no record is.
        self.added, self.grows = 0, False
        self.vacant: set[tuple[int, int, int]] = set()
        self.tail: list[tuple[int, int, int, int, int]] = []
        # (generation, batch size) of each change, and behind which step the job ends early, and why.
        self.sizes: list[tuple[int, int]] = []
        self.stop: tuple[int, str] | None = None
        # Where the model lies on servers: how many there are, who joined as what, the ends of workers by number, up to
        # which one they are refused in this generation, and who holds a lease since which one.
        self.servers, self.generation, self.fenced = 0, 0, 0
        self.roles: dict[str, str] = {}
        self.gone: set[str] = set()
        self.losses: dict[str, int] = {}
        self.holders: dict[int, tuple[str, int]] = {}
        self.parts: Parts | None = None  # where samples are dealt out ahead

    @property
    def step(self) -> int:
        return len(self.ends) - 1

    def read(self, offset: int, payload: bytes) -> None:
        if offset < self.next_offset:
            raise Broken(f"offset {self.next_offset} is expected, {offset} found")
        self.rolling = self.recent[offset] = hash16(self.rolling + offset.to_bytes(8, "big") + payload)
        self.next_offset = offset + 1
        self.entries += 1
        decode = self.decoders.get(payload[2:10]) if payload[:2] == b"\xc3\x01" else None
        try:
            if decode is None:
                raise Broken("an entry that no schema of this file has written")
            if len(payload) > ENTRY_BYTES_MAX:
                raise Broken("more bytes than an entry has")
            body, end = decode(payload, 10)
            if end != len(payload):
                raise Broken("bytes follow the end of the entry")
        except DAMAGED as error:
            self.void.append(offset)
            if decode is not None:
                self.doubtful(offset, offset, f"an entry that cannot be decoded: {error}", grave=True)
            return
        self.enter(offset, body["body"])

    def enter(self, offset: int, body: dict[str, Any]) -> None:
        kind = body["#"]
        if self.genesis is None or kind == "Genesis":
            if self.genesis is None and kind == "Genesis":
                self.genesis = body
                self.grows = body["spec"].get("growing", False)
                strategy, _, servers = body["spec"]["strategy"].partition("/servers=")
                self.servers = int(servers) if strategy.startswith("ps-") else 0
                self.parts = Parts() if self.servers and strategy.endswith(("/even", "/colony")) else None
                self.doubts = [doubt for doubt in self.doubts if doubt[4]]
                return
            self.void.append(offset)
            if kind == "Cycle":
                self.suspect(offset, body)
        elif kind == "Leader":
            if body["run_id"] != self.genesis["run_id"] or body["leader_id"] == self.leader:
                self.void.append(offset)
            else:
                self.leader = body["leader_id"]
                self.former, self.epoch = self.epoch or self.former, (offset, self.rolling)
        elif (body["epoch_offset"], body["epoch_hash"]) != self.epoch:
            self.void.append(offset)
            self.suspect(offset, body)
        elif self.follows(offset, body):
            self.count(offset, body)
        else:
            self.void.append(offset)

    def suspect(self, offset: int, body: dict[str, Any]) -> None:
        """A void entry whose writer had read another log than this one: it is of another job, or this one was altered,
        or cut and the loss not accepted. Of another job it is where what is proven has no such office.
        """
        epoch, named = (body["epoch_offset"], body["epoch_hash"]), body["previous_offset"]
        ours = epoch == self.former or self.recent.get(epoch[0]) == epoch[1]
        if not ours and epoch[0] <= self.proven:
            return
        if named < offset:
            if self.recent.get(named) == body["previous_hash"]:
                return
            if named not in self.recent and named <= min(self.recent) and (ours or named <= self.proven):
                return  # older than what is remembered
        if self.lost_from is None or named < self.lost_from:
            message = f"a void entry names another rolling hash after offset {named} than this log has"
            self.doubtful(offset, named, message, ours=ours)

    def doubtful(self, offset: int, named: int, message: str, grave: bool = False, ours: bool = False) -> None:
        del self.doubts[DOUBTS_MAX - 1 :]
        self.doubts.append((offset, named, self.proven, message, grave, ours))

    def follows(self, offset: int, body: dict[str, Any]) -> bool:
        """Whether an entry in the name of the leader in office is its next one; a copy of an older one is not."""
        named, due, message = body["previous_offset"], self.sequence + 1, ""
        if named >= offset or self.recent.get(named) != body["previous_hash"]:
            message = f"the rolling hash after offset {named} is not the one that this entry names"
        elif body["sequence"] != due:
            message = f"sequence number {due} is expected, {body['sequence']} found"
        if message and body["sequence"] >= due:
            self.doubtful(offset, named, message, grave=True)
        return not message

    def count(self, offset: int, body: dict[str, Any]) -> None:
        named = body["previous_offset"]
        for event in body["events"]:
            book = getattr(self, "on_" + event["#"].lower(), None)
            if book is not None:
                book(event)
        if not self.told:
            raise Broken(f"step {self.step} has no lineage, and is the last one of its entry")
        if body["requests_next"] < self.requests_next:
            raise Broken("the position in the requests goes back")
        self.sequence, self.requests_next, self.proven = body["sequence"], body["requests_next"], named
        self.recent = {offset: self.rolling}
        assert self.epoch is not None
        # Its writer was in office since before them, has read them as they are here, and went on.
        self.doubts = [d for d in self.doubts if d[5] or not self.epoch[0] < d[0] <= named]

    def on_leased(self, e: dict[str, Any]) -> None:
        self.leases[e["lease"]] = [e["epoch"], e["start"], e["start"] + e["length"]]
        if self.servers:
            self.holders[e["lease"]] = e["incarnation"], e["generation"]
        if self.parts is not None:
            self.parts.take(*self.leases[e["lease"]], e["incarnation"])

    def back(self, epoch: int, start: int, end: int, owner: str = "") -> None:
        """This is to be done again."""
        if self.parts is not None:
            self.parts.add(epoch, start, end, owner)

    def on_dealt(self, e: dict[str, Any]) -> None:
        who, pieces = e["incarnations"], iter(e["pieces"])
        if self.parts is None or self.genesis is None:
            raise Broken("samples are dealt out ahead in a job that does not say so")
        if any(name in self.gone or self.roles.get(name, "server") == "server" for name in who):
            raise Broken(f"samples are dealt to somebody who is gone, or a server: {who}")
        self.parts.reach(e["epoch"], self.genesis["spec"]["samples"] + self.added)
        if e["anew"]:
            self.parts.free(None, [e["epoch"]])
        for number, start, length in zip(pieces, pieces, pieces, strict=True):
            self.parts.take(e["epoch"], start, start + length, "")
            self.parts.add(e["epoch"], start, start + length, who[number])

    def on_moved(self, e: dict[str, Any]) -> None:
        source, target, where = e["source"], e["target"], (e["epoch"], e["start"], e["start"] + e["length"])
        if self.parts is None or not source or target in self.gone or self.roles.get(target, "server") == "server":
            raise Broken(f"{target} takes over samples of {source}, and cannot")
        self.parts.take(*where, source)
        self.parts.add(*where, target)

    def on_joined(self, e: dict[str, Any]) -> None:
        self.roles[e["incarnation"]] = e["role"]

    def on_lost(self, e: dict[str, Any]) -> None:
        self.gone.add(e["incarnation"])
        if self.parts is not None:
            self.parts.free(e["incarnation"], list(self.parts.runs))
        if self.roles[e["incarnation"]] != "server":
            self.losses[e["incarnation"]] = len(self.losses) + 1

    on_left = on_lost

    def on_granted(self, e: dict[str, Any]) -> None:
        self.generation, self.fenced = e["generation"], 0
        if not self.servers:
            return
        if [self.roles[m] for m in e["members"]] != ["server"] * self.servers or self.gone.intersection(e["members"]):
            raise Broken(f"generation {e['generation']} is not of {self.servers} servers: {e['members']}")
        if e["source"] is not None or e["committed"] != self.step or self.step not in self.checkpoints:
            raise Broken(f"generation {e['generation']} does not begin with a checkpoint of step {self.step}")

    def on_fenced(self, e: dict[str, Any]) -> None:
        if e["generation"] != self.generation or not self.fenced < e["losses"] <= len(self.losses):
            raise Broken(f"losses up to {e['losses']} are refused in generation {e['generation']}")
        self.fenced = e["losses"]

    def take(self, lease: int, epoch: int, start: int, length: int) -> None:
        held = self.leases.get(lease)
        if held is None or length < 1 or [epoch, start] != held[:2] or start + length > held[2]:
            raise Broken(f"lease {lease} does not begin with [{start}, {start + length}) of epoch {epoch}: {held}")
        held[1] += length
        if held[1] == held[2]:
            del self.leases[lease]

    def on_excluded(self, e: dict[str, Any]) -> None:
        self.excluded.append((e["generation"], e["epoch"], e["start"], e["start"] + e["length"]))
        self.apart.append((*self.excluded[-1][1:], 1))

    def on_lifted(self, e: dict[str, Any]) -> None:
        epoch, start, end = e["epoch"], e["start"], e["start"] + e["length"]
        gone = [n for n, found in enumerate(self.excluded) if found[1:] == (epoch, start, end)]
        taken = any(of == epoch and low < end and start < high for of, low, high, *_ in self.tail)
        if not gone or taken or self.places[-1][:2] > (epoch, start):
            raise Broken(f"[{start}, {end}) of epoch {epoch} is lifted, and was not to be left out, or is passed")
        self.tail = [(*t[:3], t[3] - sum(n < t[3] for n in gone), t[4]) for t in self.tail]
        self.excluded = [found for n, found in enumerate(self.excluded) if n not in gone]
        self.apart.append((epoch, start, end, -len(gone)))

    def on_resized(self, e: dict[str, Any]) -> None:
        if e["batch_size"] < 1 or (self.sizes and e["generation"] < self.sizes[-1][0]):
            raise Broken(f"a batch size of {e['batch_size']} from generation {e['generation']} on")
        self.sizes.append((e["generation"], e["batch_size"]))

    def on_stopped(self, e: dict[str, Any]) -> None:
        if self.stop is not None or e["step"] < max(1, self.step):
            raise Broken(f"the job is stopped behind step {e['step']}, {self.step} are committed")
        self.stop = (e["step"], e["reason"])

    def batch_of(self, generation: int) -> int:
        """The batch size of what this generation has executed."""
        assert self.genesis is not None
        sizes = [(0, self.genesis["spec"]["batch_size"]), *self.sizes]
        return [size for since, size in sizes if since <= generation][-1]

    def due(self, at: tuple[int, int, int], made: int, generation: int = NEWEST) -> tuple[int, int, int]:
        """Where the step behind this place lies, with so many made, as this generation executes it: epoch, start,
        length.
        Behind the epochs, and behind the steps that were asked for: along the tail. A length of 0: there is none. at:
        epoch, position, and the batch size of the step that ends there, which says what is dropped behind it.
        """
        assert self.genesis is not None
        spec, (epoch, start, before), batch = self.genesis["spec"], at, self.batch_of(generation)
        last, samples = spec["batches"], spec["samples"]
        if epoch < spec["epochs"] and samples - start < (max(batch, before) if last == "drop" else 1):
            epoch, start = epoch + 1, 0
        if epoch < spec["epochs"] and 0 < spec.get("steps", 0) <= made:
            epoch, start = spec["epochs"], 0
        left = samples - start
        if epoch >= spec["epochs"]:
            left, last = sum(t[2] - t[1] for t in self.tail if t[4] <= generation) - start, "small"
        return epoch, start, -(-left // -(-left // batch)) if last == "even" else max(0, min(batch, left))

    def take_step(self, generation: int, epoch: int, start: int, length: int) -> None:
        """The samples of a step: position by position where anything was ever left out."""
        assert self.genesis is not None
        batch = self.batch_of(generation)
        due = self.due(self.places[-1], self.step, generation)
        if (epoch, start, length) != due or length < 1:
            raise Broken(f"step {self.step + 1} is [{start}, {start + length}) of epoch {epoch}, not {due}")
        self.places.append((epoch, start + length, batch))
        if epoch < self.genesis["spec"]["epochs"]:
            places = [(epoch, at, 0) for at in range(start, start + length)] if self.excluded else []
            if not places:
                self.ranges.extend((epoch, start, start + length))
        else:
            whole = [(of, at, known) for of, low, high, known, _ in self.tail for at in range(low, high)]
            places = whole[start : start + length]
        for of, at, known in places:
            if not any(g <= generation and e == of and a <= at < b for g, e, a, b in self.excluded[known:]):
                self.ranges.extend((of, at, at + 1))

    def on_committed(self, e: dict[str, Any]) -> None:
        assert self.genesis is not None
        numbers = e["ranges"]
        lineage = hash16(bytes(self.lineages[-16:]) + struct.pack(f">{1 + len(numbers)}q", self.step + 1, *numbers))
        together = self.genesis["fold_version"] >= TOGETHER_SINCE_VERSION and bool(self.genesis["spec"].get("batches"))
        right = e["lineage"] == lineage or (together and not e["lineage"])
        if e["step"] != self.step + 1 or not right or len(numbers) % 4:
            raise Broken(f"step {e['step']} has another number or lineage than follows from step {self.step}")
        if self.stop is not None and e["step"] > self.stop[0]:
            raise Broken(f"step {e['step']} is behind the end, which is step {self.stop[0]}")
        if self.genesis["spec"].get("batches"):
            if len(numbers) != 4 or not self.executed <= numbers[0] <= e["generation"]:
                raise Broken(f"step {e['step']} names {numbers} as its generation and place")
            self.executed = numbers[0]
            self.take_step(*numbers)
            numbers = []
        for i in range(0, len(numbers), 4):
            lease, epoch, start, length = numbers[i : i + 4]
            self.take(lease, epoch, start, length)
            self.ranges.extend((epoch, start, start + length))
        self.ends.append(len(self.ranges))
        self.lineages += lineage
        self.told = bool(e["lineage"])

    def on_stepskipped(self, e: dict[str, Any]) -> None:
        if e["step"] != self.step:
            raise Broken(f"step {e['step']} is said to be skipped, the newest is {self.step}")
        self.skipped += 1

    def on_returned(self, e: dict[str, Any]) -> None:
        holder, since = self.holders.get(e["lease"], ("", 0))
        if holder in self.gone and since == self.generation and self.losses[holder] > self.fenced:
            raise Broken(f"lease {e['lease']} of {holder}, which is lost, returns before that one is refused")
        self.take(e["lease"], e["epoch"], e["start"], e["length"])
        if e["quarantined"]:
            self.apart.append((e["epoch"], e["start"], e["start"] + e["length"], 1))
        else:
            self.back(e["epoch"], e["start"], e["start"] + e["length"], "" if holder in self.gone else holder)

    def on_vacant(self, e: dict[str, Any]) -> None:
        held, places = self.leases.get(e["lease"], [-1, 0, 0]), e["places"]
        for start, length in zip(places[::2], places[1::2], strict=True):
            if held[0] != e["epoch"] or length < 1 or not held[1] <= start <= start + length <= held[2]:
                raise Broken(f"nothing is said to be at [{start}, {start + length}), not in lease {e['lease']}: {held}")
            self.vacant.add((e["epoch"], start, start + length))

    def on_setaside(self, e: dict[str, Any]) -> None:
        held, start, end = self.leases.get(e["lease"], [-1, 0, 0]), e["start"], e["start"] + e["length"]
        if held[0] != e["epoch"] or not held[1] <= start < end <= held[2]:
            raise Broken(f"[{start}, {end}) is set aside, and is not in lease {e['lease']}: {held}")
        if end < held[2]:
            self.back(e["epoch"], end, held[2])
        held[2] = start
        if held[1] == start:
            del self.leases[e["lease"]]
        self.apart.append((e["epoch"], start, end, 1))

    def on_extended(self, e: dict[str, Any]) -> None:
        if not self.grows:
            raise Broken("a topic is extended that has ended, or does not grow")
        b = e["blocks"]
        self.added, self.grows = self.added + sum(b[2::3]) - sum(b[1::3]), not e["closed"]

    def on_readmitted(self, e: dict[str, Any]) -> None:
        self.apart.append((e["epoch"], e["start"], e["start"] + e["length"], -1))
        self.back(e["epoch"], e["start"], e["start"] + e["length"])
        assert self.genesis is not None
        since = self.generation + 1 if self.genesis["fold_version"] >= TAIL_SINCE_VERSION else 0
        self.tail.append((e["epoch"], e["start"], e["start"] + e["length"], len(self.excluded), since))
        self.file = None

    def on_checkpointed(self, e: dict[str, Any]) -> None:
        step = e["step"]
        if not 0 <= step <= self.step or bytes(self.lineages[16 * step : 16 * step + 16]) != e["lineage"]:
            raise Broken(f"the checkpoint of step {step} has a lineage that this log never had")
        self.checkpoints[step] = e["lineage"]

    def on_rolledback(self, e: dict[str, Any]) -> None:
        step = e["step"]
        if step not in self.checkpoints or step > self.step:
            raise Broken(f"a roll-back to step {step}, of which there is no checkpoint")
        self.rolled_back += self.step - step
        undone = iter(self.ranges[self.ends[step] :])
        for epoch, start, end in zip(undone, undone, undone, strict=True):
            self.back(epoch, start, end)
        del self.ranges[self.ends[step] :], self.ends[step + 1 :], self.lineages[16 * step + 16 :]
        del self.places[step + 1 :]
        self.checkpoints = {s: h for s, h in self.checkpoints.items() if s <= step}

    def on_regressed(self, e: dict[str, Any]) -> None:
        for name in sorted(set(self.roles) - self.gone):
            self.on_lost({"incarnation": name})
        self.generation = max(self.generation, e["generation"])
        self.lost_from = e["first_lost"] if self.lost_from is None else min(self.lost_from, e["first_lost"])
        self.doubts = [doubt for doubt in self.doubts if doubt[4] or doubt[1] < self.lost_from]

    def on_requestsmoved(self, e: dict[str, Any]) -> None:
        self.requests_next = e["next"]

    def on_done(self, e: dict[str, Any]) -> None:
        self.file = e["file"]

    def meant(self) -> tuple[dict[int, int], dict[int, tuple[int, int]], set[tuple[int, int]]]:
        """How far each epoch is meant to be trained, by its number; and what is not, as the job ends behind a step:
        (start, end) by epoch, and (epoch, position) of what was readmitted, where the job is finished before it. Step
        by step, from where the model is to the end.
        """
        assert self.genesis is not None
        spec = self.genesis["spec"]
        epochs, samples, asked = spec["epochs"], spec["samples"], spec.get("steps", 0)
        if not spec.get("batches"):
            return dict.fromkeys(range(epochs), samples + self.added), {}, set()
        # A later step of an epoch ends later.
        ends = {epoch: end for epoch, end, _ in self.places[1:] if epoch < epochs}
        at, made, batch = self.places[-1], self.step, self.batch_of(NEWEST)
        rest: dict[int, tuple[int, int]] = {}
        while (step := self.due(at, made))[0] < epochs:
            epoch, start, length = step
            if self.stop is not None and made >= self.stop[0]:
                rest[epoch] = rest.get(epoch, (start, 0))[0], start + length
            else:
                ends[epoch] = start + length
            at, made = (epoch, start + length, batch), made + 1
        if asked and self.stop is None and ends and ends[max(ends)] < samples:
            rest[max(ends)] = ends[max(ends)], samples
        late: set[tuple[int, int]] = set()
        if self.stop is not None:
            while made < self.stop[0] and step[2]:
                at, made = (epochs, step[1] + step[2], batch), made + 1
                step = self.due(at, made)
            tail = [(epoch, position) for epoch, low, high, *_ in self.tail for position in range(low, high)]
            late = {(e, p) for e, p in tail[step[1] :] if not rest.get(e, (0, 0))[0] <= p < rest.get(e, (0, 0))[1]}
        return ends, rest, late

    def borders(self, ends: dict[int, int]) -> dict[int, list[tuple[int, int, int]]]:
        """(position, committed, in quarantine) by epoch: where ranges begin, and where they end, as -1."""
        assert self.genesis is not None
        samples = self.genesis["spec"]["samples"] + self.added
        reach = self.stop is not None or self.genesis["spec"].get("steps", 0)
        borders: dict[int, list[tuple[int, int, int]]] = {
            epoch: [(0, 0, 0), (end, 0, 0)] for epoch, end in ends.items()
        }
        r = self.ranges
        for epoch, start, end, committed, apart in (
            *((r[i], r[i + 1], r[i + 2], 1, 0) for i in range(0, len(r), 3)),
            *((epoch, start, end, 0, sign) for epoch, start, end, sign in self.apart),
        ):
            if not (0 <= epoch < self.genesis["spec"]["epochs"] and 0 <= start < end <= samples):
                raise Broken(f"[{start}, {end}) of epoch {epoch} is not in the data")
            if reach and apart and start >= ends.get(epoch, 0):
                continue  # in quarantine, and not meant to be trained
            borders.setdefault(epoch, [])
            borders[epoch] += ((start, committed, apart), (end, -committed, -apart))
        return borders

    def balance(self, out: dict[str, Any]) -> None:
        """Where each sample is: one pass over the borders of all ranges of an epoch."""
        assert self.genesis is not None
        ends, rest, late = self.meant()
        not_trained = [[epoch, *found] for epoch, found in rest.items()]
        if self.stop is not None and not self.genesis["spec"].get("batches") and self.step >= self.stop[0]:
            ends = {}  # what is leased is in no order: what is not committed is not trained
        borders = self.borders(ends)
        for epoch, at in late:
            borders.setdefault(epoch, []).extend(((at, 0, 0), (at + 1, 0, 0)))
        for epoch, marks in sorted(borders.items()):
            marks.sort()
            inside = beside = 0
            for (at, c, q), (until, _, _) in zip(marks, [*marks[1:], marks[-1]], strict=True):
                inside, beside = inside + c, beside + q
                taken = inside and self.genesis["spec"].get("batches")  # excluded only after its step was executed
                apart = 0 if taken else beside
                if at < until:
                    out["committed"] += (until - at) * (inside > 0)
                    name = "repeated" if inside + apart > 1 else "quarantined" if apart else "missing"
                    if name == "missing" and (epoch, at) in late:
                        not_trained.append([epoch, at, until])
                    elif name == "missing" and at >= ends.get(epoch, 0):
                        continue  # between samples that are in quarantine, and dropped like them
                    elif inside + apart != 1 or apart:
                        add(out[name], epoch, at, until)
            if self.vacant:
                out["vacant"] += self.vacancies(epoch, marks)
        for found in sorted(not_trained):
            add(out["not_trained"], *found)

    def vacancies(self, epoch: int, marks: list[tuple[int, int, int]]) -> int:
        """How many of the committed positions of an epoch have no record: each is told of once or more often."""
        told = [(start, 0, 1) for of, start, _ in self.vacant if of == epoch]
        told += [(end, 0, -1) for of, _, end in self.vacant if of == epoch]
        both = sorted([(at, committed, 0) for at, committed, _ in marks] + told)
        inside = beside = found = 0
        for (at, c, v), (until, _, _) in pairwise(both):
            inside, beside = inside + c, beside + v
            found += (until - at) * (inside > 0 and beside > 0)
        return found


def add(ranges: list[list[int]], epoch: int, start: int, end: int) -> None:
    if ranges and ranges[-1][0] == epoch and ranges[-1][2] == start:
        ranges[-1][2] = end
    elif len(ranges) < LISTED_MAX:
        ranges.append([epoch, start, end])


def verify(path: str, anchors: dict[int, bytes] | None = None) -> dict[str, Any]:
    """The report. Raises ValueError for a file that is no exported log."""
    with open(path, "rb") as file:
        metadata, sync = read_header(file)
        log, entries = Log(json.loads(metadata["antdt.schemas"])), int(metadata["antdt.entries"])
        head = entries + int(metadata.get("antdt.holes", b"0"))
        due = {head - 1: bytes.fromhex(metadata["antdt.head_hash"].decode())} if entries else {}
        due |= anchors or {}
        broken: dict[str, Any] | None = None
        reading = 0
        try:
            for data, count in blocks(file, metadata["avro.codec"], sync):
                at = 0
                for _ in range(count):
                    offset, at = long_at(data, at)
                    reading = offset
                    _, at = long_at(data, at)
                    payload, at = bytes_at(data, at)
                    log.read(offset, payload)
                    if offset in due and due.pop(offset) != log.rolling:
                        raise Broken(f"the rolling hash after offset {offset} is not the one that is anchored")
                    reading = log.next_offset
                if at != len(data):
                    raise Broken("bytes follow the entries of a block")
            if due or (entries, head) != (log.entries, log.next_offset):
                raise Broken(f"the log ends before offset {max([*due, head - 1])}, or has no entry there")
        except (Broken, IndexError, UnicodeDecodeError, zlib.error, struct.error) as error:
            broken = {"offset": reading, "message": str(error), "last_proven": log.proven}
    return report(log, broken)


def report(log: Log, broken: dict[str, Any] | None) -> dict[str, Any]:
    out: dict[str, Any] = {
        "document": "antdt.verify/1",
        "exactly_once": False,
        "job": log.genesis and log.genesis["job"],
        "run_id": log.genesis and log.genesis["run_id"],
        "entries": log.entries,
        "void_entries": len(log.void),
        "head_hash": log.rolling.hex(),
        "steps": log.step,
        "skipped_steps": log.skipped,
        "rolled_back_steps": log.rolled_back,
        "lineage": bytes(log.lineages[-16:]).hex(),
        "file": log.file,
        "committed": 0,
        "vacant": 0,
        "missing": [],
        "repeated": [],
        "quarantined": [],
        "not_trained": [],
        "stopped": log.stop and {"step": log.stop[0], "reason": log.stop[1]},
        "not_checked": ["digests of the ledger's state"],
    }
    if log.doubts:
        offset, named, proven, message, grave, _ = log.doubts[0]
        proven = proven if grave else min(log.proven, named - 1)
        broken = {"offset": offset, "message": message, "last_proven": proven}
    if broken is None and log.genesis is not None:
        try:
            log.balance(out)
        except Broken as error:
            broken = {"offset": log.next_offset - 1, "message": str(error), "last_proven": log.proven}
    out["broken"] = broken
    out["last_proven"] = broken["last_proven"] if broken else log.next_offset - 1
    good = broken is None and log.genesis is not None
    watched = good and log.genesis is not None and log.genesis["spec"]["strategy"] == "watched"
    good = good and not watched  # nobody says what there was to be trained
    out["exactly_once"] = good and not (out["missing"] or out["repeated"] or out["quarantined"] or log.grows)
    out["verdict"] = (
        f"NOT PROVEN: the log breaks at offset {broken['offset']}: {broken['message']}."
        if broken
        else "NOT VOUCHED FOR: the job is only watched, so its log says of no sample whether it was trained on."
        if watched
        else "EXACTLY ONCE" + early(log)
        if out["exactly_once"]
        else f"NOT exactly once: see missing, repeated, quarantined{', and the topic has not ended' * log.grows}."
    )
    return out


def early(log: Log) -> str:
    """What is to be said of a job that ends behind a step."""
    if log.stop is not None and log.step >= log.stop[0]:
        return f", what was trained: the job was finished early, behind step {log.stop[0]}: {log.stop[1]}"
    assert log.genesis is not None
    steps = log.genesis["spec"].get("steps", 0)
    return f", what was trained: {steps} steps were asked for" if steps else ""


def main(arguments: list[str]) -> int:
    try:
        anchors = {}
        while "--anchor" in arguments:
            at = arguments.index("--anchor")
            offset, _, text = arguments[at + 1].partition(":")
            anchors[int(offset)] = bytes.fromhex(text)
            del arguments[at : at + 2]
        (path,) = arguments
        found = verify(path, anchors)
    except (ValueError, IndexError, KeyError, OSError, Broken) as error:
        print(f"usage: verify_standalone.py LOG.avro [--anchor OFFSET:HASH]\n{error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=1))
    return 42 if found["broken"] else 0 if found["exactly_once"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
