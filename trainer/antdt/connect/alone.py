"""The connection of a worker that trains alone, in a process without a job: to nobody.

Answers what its Session asks as a ledger would that has this one worker, in the training thread and without a record of
it: so the life of a worker is the one that it has in a job. Must not know samples, nor how steps are made.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

from antdt_schemas import records
from antdt_schemas.batches import Cursor, layout_of
from antdt_schemas.limits import CHECKPOINTS_KEPT, INIT_FILE
from antdt_schemas.records import Status
from antdt_schemas.space import TOPIC, Space

from antdt.worker.plans import Plans
from antdt.worker.session import Session
from antdt.worker.telemetry import StepTiming, Telemetry

TURN_S = 0.005
TOKEN = 1
SAID = (
    "antdt: no job is named: training in this process alone, nothing is recorded. "
    "`antdt launch --job NAME -n N SCRIPT` trains it as a job."
)

log = logging.getLogger("antdt")
_said: list[str] = []


class Alone:
    """Stands for a `Client`, and makes a turn whenever a step was made, or something is waited for."""

    def __init__(self, session: Session, plans: Plans, telemetry: Telemetry) -> None:
        self.session, self.plans = session, plans
        self.telemetry: Telemetry = _Turns(self, telemetry)
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.on_closed: Callable[[], None] | None = None
        self.on_leases: Callable[[int, int, int], None] | None = None
        self.failure: BaseException | None = None
        self.stopped = False
        self._ledger = Book(session.spec)
        if not _said:
            _said.append(SAID)
            log.warning(SAID)

    def start(self) -> None:
        """Nobody is there."""

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Make turns until `condition` is true."""
        until = monotonic() + timeout_s
        while True:
            self.turn()
            if self.failure is not None:
                raise self.failure
            if condition():
                return True
            left_s = until - monotonic()
            if left_s <= 0:
                return False
            sleep(min(TURN_S, left_s))

    def fail(self, error: BaseException) -> None:
        """The training thread raises this, from wherever it waits."""
        self.failure = error

    def turn(self) -> None:
        """What the session asks is answered at once."""
        with self.lock:
            for request in self.session.tick(monotonic()):
                for reply in self._ledger.answers(request):
                    self.session.on_reply(reply)

    def say(self, body: records.RequestBody) -> None:
        """Nobody hears it."""

    def linger(self, seconds: float) -> None:
        """There is no last word."""
        self.stop(leave=True)

    def stop(self, leave: bool) -> None:
        """It is over."""
        self.stopped = True


class _Turns(Telemetry):
    """Nobody measures: what is heard of is that a step was made."""

    def __init__(self, client: Alone, like: Telemetry) -> None:
        super().__init__(*like.identity, like.node, like.hardware, like.batch_size_max)
        self._client = client

    def add(self, timing: StepTiming) -> None:
        self._client.turn()


class Book:
    """What is committed, of a job with one worker.

    Invariant: positions are taken and committed in their order, so those that are not committed are what is behind
    `done`. Where steps have no fixed size they are leased, by epochs, two of them at most.
    """

    def __init__(self, spec: records.JobSpec) -> None:
        layout = layout_of(spec)
        fixed = sum(piece.length for piece, _ in layout.ahead(Cursor(), 0)) if spec.batches else 0
        self.spec, self.total = spec, fixed or spec.samples * spec.epochs
        self.stop: records.Stop | None = None
        self.generation, self.committed, self.done, self._claimed = 0, 0, 0, 0
        self.kept: deque[int] = deque(maxlen=CHECKPOINTS_KEPT)
        self._file = ""
        self._leases: dict[int, tuple[int, int, int]] = {}  # number -> epoch, start, length
        self._number = 0

    @property
    def finished(self) -> bool:
        """Whether every sample of every epoch is committed, or its script has stopped."""
        return self.done == self.total if self.stop is None else self.committed >= self.stop.step

    def answers(self, request: records.Request) -> list[records.Reply]:
        """As a ledger answers."""
        grant, status, leases, after = None, Status.OK, tuple[int, ...](), list[records.Reply]()
        places = tuple[int, ...]()
        match request.body:
            case records.Join(host=host, port=port) | records.Regroup(host=host, port=port) as body:
                if isinstance(body, records.Regroup) and body.claim is None:
                    lost = "the model was lost in the middle of a step, and a process without a job records nothing"
                    return [self._reply(request, Status.REFUSED, reason=lost)]
                grant = self._granted(request, body, host, port)
            case records.Lease():
                leases = self._leased()
                status = Status.OK if leases else Status.WAIT
                places = self._places(leases)
            case records.Commit() as body:
                self._commit(body)
            case records.Checkpoint() as body:
                self.kept.append(body.step)
                self._file = body.file
            case records.Stop() as body:
                self.stop = body
        if self.finished and self._file and self.kept[-1] == self.committed:
            after.append(self._reply(request, Status.END, number=-1, file=self._file))
        return [self._reply(request, status, leases=leases, grant=grant, places=places), *after]

    def _places(self, leases: tuple[int, ...]) -> tuple[int, ...]:
        """Where in a topic they are."""
        if self.spec.order != TOPIC:
            return ()
        space = Space.of(self.spec.blocks, closed=True)
        at = (leases[i + 3 : i + 5] for i in range(0, len(leases), 5))
        return tuple(number for place in at for run in space.runs(*place) for number in run)

    def _reply(self, request: records.Request, status: Status, **more: Any) -> records.Reply:
        said: dict[str, Any] = {"number": request.number, "reason": "", "leases": (), "status": status, **more}
        at: dict[str, Any] = {"generation": self.generation, "committed": self.committed, "finished": self.finished}
        if self.stop is not None:
            at["stopped"] = f"is finished early, behind step {self.stop.step}: {self.stop.reason}"
        return records.Reply(request.worker, request.incarnation, **said, **at)

    def _granted(self, request: records.Request, body: Any, host: str, port: int) -> records.Grant:
        """A generation of one: of the model as the script has made it, or of the one that it holds."""
        self.generation, self._leases = self.generation + 1, {}
        held = isinstance(body, records.Regroup)
        self._claimed = body.claim if held else 0
        member = records.Member(request.incarnation, request.worker, host, port)
        source, step, restore = (request.incarnation, body.claim, None) if held else (None, None, INIT_FILE)
        run = f"alone-{request.incarnation}"
        return records.Grant(run, self.generation, (member,), source, step, self.committed, restore, tuple(self.kept))

    def _leased(self) -> tuple[int, ...]:
        """What is held and not committed; the next epoch where less than one is."""
        # What a model holds beyond that is committed first.
        if self.committed >= self._claimed and len(self._leases) < 2:
            behind = max(
                (epoch * self.spec.samples + start + n for epoch, start, n in self._leases.values()), default=0
            )
            at = max(self.done, behind)
            if at < self.total:
                epoch, start = divmod(at, self.spec.samples)
                self._number += 1
                self._leases[self._number] = epoch, start, self.spec.samples - start
        flat: list[int] = []
        for number, (epoch, start, length) in self._leases.items():
            front = max(start, min(start + length, self.done - epoch * self.spec.samples))
            flat += [number, TOKEN, epoch, front, start + length - front]
        return tuple(flat)

    def _commit(self, body: records.Commit) -> None:
        for step, ranges in enumerate(body.compositions, body.first_step):
            if step <= self.committed:
                continue
            assert step == self.committed + 1, (step, self.committed)
            self.committed, self.done = step, self.done + sum(ranges[4::5])
        whole = {n: (e, s, k) for n, (e, s, k) in self._leases.items() if e * self.spec.samples + s + k > self.done}
        self._leases = whole
