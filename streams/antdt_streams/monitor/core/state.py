"""The Monitor's state and its one function: a StepBatch in, measurements out.

Owns the order of things and the rows. What is written is a function of the records alone: nodes are always visited in
the order of their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass

from antdt_schemas.errors import Mismatch
from antdt_schemas.records import Cause, Measurement, NodeClass, Stack, StepBatch
from antdt_schemas.strategies import is_asynchronous

from antdt_streams.monitor.core.baselines import Window
from antdt_streams.monitor.core.detector import Detector
from antdt_streams.monitor.core.intake import check, new_steps
from antdt_streams.monitor.core.measurement import measure
from antdt_streams.monitor.core.node import Sample, Track
from antdt_streams.monitor.core.options import DetectorOptions
from antdt_streams.monitor.core.pace import pace_of
from antdt_streams.monitor.core.rates import add_sample
from antdt_streams.monitor.core.roster import HEALTH, TRACK, Roster
from antdt_streams.monitor.core.ticks import ROOM, TICK_MS, as_tick, tick_for, wall_s
from antdt_streams.monitor.core.windows import Windows
from antdt_streams.storage.rows import Position, decode_row, digest_rows, encode_row

FORMAT = 2
HEAD, POOLED = b"head", b"pooled"


@dataclass(slots=True)
class Jump:
    """The first jump that is not told yet: whose, at which step, how many members have not spoken of that step.

    `told_step` is the newest step when the last one was told.
    """

    worker: str = ""
    step: int = -1
    waits_for: int = 0
    told_step: int = -1

    def clear(self) -> None:
        self.worker, self.step, self.waits_for = "", -1, 0


class MonitorState:
    """Everything the Monitor remembers of a job.

    Invariant: `load` of the newest of all rows that `changes()` ever gave is this state, to the byte.
    """

    def __init__(self, options: DetectorOptions | None = None) -> None:
        self.options = options or DetectorOptions()
        self.windows = Windows(self.options)
        self.detector = Detector(self.options)
        self.roster = Roster(self.options)
        self.jump = Jump()
        self.tick_ms = TICK_MS
        self._dirty = {HEAD, POOLED}

    def process(self, record: StepBatch | Stack, position: Position, now_ms: int) -> list[Measurement]:
        """Take in one record: one measurement for each window that it closed, else at most one urgent one. Stacks,
        which lie in the same topic, say nothing of speed.

        Raises:
            Undecodable: the record contradicts itself, or is of one node too many; nothing was changed.
        """
        if isinstance(record, Stack):
            return []
        check(record)
        if record.step and is_asynchronous(record.strategy):
            record = self._by_time(record, now_ms)
        known = self.roster.tracks.get(record.worker)
        before = self.windows.standing(known) if known else (False, False, False, False)
        track = self.roster.admit(record)
        if track is None:
            return []
        self._dirty.add(HEAD)
        self.windows.count(before, -1)
        self.windows.count(self.windows.standing(track), 1)
        if not record.step:
            return []
        if record.generation > self.windows.generation:
            self._move(record.generation, record.step[0])
        self._take(track, record, position)
        if track.ahead:
            self._follow(track, record)
        return self._close_due(position) or self._tell_jump(track, position)

    # -- samples

    def _by_time(self, record: StepBatch, now_ms: int) -> StepBatch:
        """The record as a sample at a tick. Where ticks become longer, all are counted anew."""
        own_s = wall_s(record)
        if ROOM * 1000 * own_s > self.tick_ms:
            others_s = [track.ring[-1].wall_s for track in self.roster.tracks.values() if track.ring]
            tick_ms = tick_for(self.tick_ms, own_s, others_s)
            if tick_ms != self.tick_ms:
                self.tick_ms = tick_ms
                for worker, track in self.roster.tracks.items():
                    track.begin(track.generation)
                    self.roster.touch(TRACK, worker)
                self._move(self.windows.generation, now_ms // tick_ms)
        return as_tick(record, self.tick_ms, now_ms)

    def _take(self, track: Track, record: StepBatch, position: Position) -> None:
        """Fold the record's steps into its node's rate at once, and into the open windows."""
        windows, current = self.windows, record.generation == self.windows.generation
        before, last_step = windows.standing(track), track.last_step
        begun = jumped = False
        for step, sample, plan in new_steps(track, record, self.options):
            window = windows.of(step)
            if current and window >= windows.next + self.options.horizon_windows:
                track.ahead, track.strays = True, track.strays + 1
                continue
            if not begun:
                track.record_first, track.records, begun = step, track.records + 1, True
            track.ahead, track.last_step = False, step
            if sample is None:
                continue
            track.note_plan(plan, sample.taken)
            jumped |= self._rate(track, sample)
            if current and window >= windows.next:
                track.open.append(sample)
                windows.open_offsets.setdefault(window, position.offset)
            else:
                track.strays += 1
        windows.count(before, -1)
        windows.count(windows.standing(track), 1)
        if current:
            windows.newest_step = max(windows.newest_step, track.last_step)
            # How many members there are is not known: whoever comes twice has left the others time to come once.
            windows.begun = windows.begun or track.records >= 2
            self.jump.waits_for -= last_step < self.jump.step <= track.last_step
            if jumped and self.jump.step < 0:
                members = self.roster.members(record.generation)
                behind = sum(windows.standing(m)[0] and m.last_step < track.last_step for m in members)
                self.jump = Jump(track.worker, track.last_step, behind, self.jump.told_step)

    def _rate(self, track: Track, sample: Sample) -> bool:
        """Whether the rate has jumped, or is known for the first time."""
        track.warmed += 1
        if track.warmed <= self.options.rate_warm_up_steps:
            return False
        jumped = add_sample(track, sample, self.detector.costs, self.detector.noise.of_step)
        if not track.known and len(track.ring) >= self.options.rate_samples_min:
            track.known = jumped = True
        return jumped

    def _follow(self, track: Track, record: StepBatch) -> None:
        """Move the windows beyond their horizon when most nodes are there: one alone cannot do that."""
        members = list(self.roster.members(self.windows.generation))
        if 2 * sum(member.ahead for member in members) > len(members):
            self._move(record.generation, min(step for step in record.step if step > track.last_step))

    def _move(self, generation: int, step: int) -> None:
        """Let the windows go on from this step of this generation; what was open is dropped."""
        self.windows.anchor(generation, step)
        self.jump = Jump()
        for worker in self.roster.names:
            track = self.roster.tracks[worker]
            if track.open or track.ahead:
                track.open.clear()
                track.ahead = False
                self.roster.touch(TRACK, worker)
        self.windows.recount(self.roster.tracks.values())

    # -- windows

    def _close_due(self, position: Position) -> list[Measurement]:
        out: list[Measurement] = []
        while self.windows.due:
            window = Window(self.windows.next, self._cut(self.windows.next))
            self.windows.next += 1
            measured, pace = bool(window.samples), pace_of(window, self.roster.tracks)
            if measured:
                self.detector.close(window, self.roster)
            self._age(window.number)
            self.windows.recount(self.roster.tracks.values())
            if measured:
                cause = Cause(position.partition, position.offset, len(out))
                out.append(measure(self.detector, self.roster, self.windows, window.number, cause, pace))
            self.windows.open_offsets.pop(window.number, None)
            self._dirty.add(POOLED)
        if out:
            self.jump.clear()
        return out

    def _cut(self, number: int) -> dict[str, list[Sample]]:
        end, out = self.windows.end(number), {}
        for worker in self.roster.names:
            samples = self.roster.tracks[worker].open
            count = 0
            while count < len(samples) and samples[count].step < end:
                count += 1
            if count:
                out[worker] = samples[:count]
                del samples[:count]
                self.roster.touch(TRACK, worker)
        return out

    def _age(self, number: int) -> None:
        """Note who was silent up to this window; forget who was for long, or belongs to a generation that is over."""
        windows, options = self.windows, self.options
        for track in list(self.roster.tracks.values()):
            current = track.generation == windows.generation
            seen = windows.of(track.last_step) if current and track.last_step >= 0 else windows.first - 1
            silent = number - seen
            health = self.roster.health[track.worker]
            if silent > (options.forget_windows if current else options.absent_windows):
                self.roster.forget(track.worker)
            elif current and silent > options.absent_windows and health.node_class is not NodeClass.ABSENT:
                health.node_class = NodeClass.ABSENT
                self.roster.touch(HEALTH, track.worker)

    def _tell_jump(self, track: Track, position: Position) -> list[Measurement]:
        """An urgent measurement of a jump, at most one in a few steps."""
        windows, jump = self.windows, self.jump
        if jump.step < 0 or not windows.begun:
            return []
        # Nodes jump together: wait for the others' word on that step, but not until the node speaks again.
        again = track.worker == jump.worker and track.last_step > jump.step
        early = jump.told_step >= 0 and windows.newest_step < jump.told_step + self.options.urgent_steps
        if early or (jump.waits_for > 0 and not again):
            return []
        jump.clear()
        jump.told_step = windows.newest_step
        cause = Cause(position.partition, position.offset, 0)
        return [measure(self.detector, self.roster, windows, windows.next, cause)]

    # -- rows

    def changes(self) -> dict[bytes, bytes | None]:
        """The rows that changed since the last call, None for one that is gone."""
        out: dict[bytes, bytes | None] = {key: self._row(key) for key in sorted(self._dirty)}
        out.update((key, self.roster.row(key)) for key in sorted(self.roster.dirty))
        self._dirty.clear()
        self.roster.dirty.clear()
        return out

    def _row(self, key: bytes) -> bytes:
        if key == POOLED:
            return encode_row(self.detector.to_row())
        return encode_row([FORMAT, astuple(self.jump), self.windows.to_row(), self.roster.strategy, self.tick_ms])

    def rows(self) -> dict[bytes, bytes]:
        out = {key: self._row(key) for key in (HEAD, POOLED)}
        for key in self.roster.all_keys():
            row = self.roster.row(key)
            assert row is not None, key
            out[key] = row
        return out

    def digest(self) -> bytes:
        return digest_rows(self.rows())

    @classmethod
    def load(cls, rows: Mapping[bytes, bytes], options: DetectorOptions | None = None) -> MonitorState:
        """The state that these rows are of; no rows are a state that has seen nothing.

        Raises:
            Mismatch: the rows were written in another format.
        """
        state = cls(options)
        if not rows:
            return state
        found, *rest = decode_row(rows[HEAD])
        if found != FORMAT:
            raise Mismatch("Format of the Monitor's state", FORMAT, found)
        jump, windows, state.roster.strategy, state.tick_ms = rest
        for key in sorted(rows):
            if key not in {HEAD, POOLED}:
                state.roster.load(key, rows[key])
        state.detector.load(decode_row(rows[POOLED]))
        state.jump = Jump(*jump)
        state.windows.load(windows, state.roster.tracks.values())
        state._dirty.clear()
        return state
