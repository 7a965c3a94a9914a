"""What a watched worker tells: who it is, that it lives, and what its steps took. It never holds up training.

Owns a thread that keeps a connection going for as long as the process lives, whoever is away. The ledger knows the
worker (`Joined`, `Left`, `Lost`) and numbers the generations, so that the Monitor compares those who train together;
samples are nobody's business here. Must not know torch, nor whose loop it is.
"""

from __future__ import annotations

import atexit
import logging
import threading
from dataclasses import dataclass, field
from math import inf
from time import monotonic

from antdt_schemas import records
from antdt_schemas.errors import AntdtError, Unavailable, UnknownJob, UsageError
from antdt_schemas.strategies import WATCHED
from confluent_kafka import KafkaException

from antdt.connect.client import Client, ClientOptions, renew
from antdt.connect.settings import Settings
from antdt.worker.plans import Plans
from antdt.worker.session import Phase, Session, Where
from antdt.worker.telemetry import Sort, StepTiming, Telemetry

RETRY_S = 3.0
LOOK_S = 0.25
SAY_EVERY_S = 30.0
CLOSE_S, ABANDON_S = 12.0, 0.5
# What the session of a watched worker says it is: it takes no samples and holds no model.
ROLE = "watched"

log = logging.getLogger("antdt")


def spec_of(settings: Settings) -> records.JobSpec:
    """A job that vouches for nothing: no samples, no steps. What is trained on is told with the steps."""
    nothing = {"dataset": "", "samples": 0, "dataset_digest": b"", "order": "", "epochs": 1, "seed": 0}
    sizes = {"shard_size": 1, "batch_size": max(1, settings.world_size), "workers_min": settings.world_size}
    return records.JobSpec(**nothing, **sizes, max_attempts=1, strategy=WATCHED)  # type: ignore[arg-type]


@dataclass
class _Said:
    """What the terminal was told already."""

    words: set[str] = field(default_factory=set)
    dropped: int = 0
    at_s: float = -inf

    def once(self, text: str) -> None:
        if text not in self.words:
            self.words.add(text)
            log.warning("%s", text)


class Reporter:
    """Of one worker. `add` is called by the training thread, takes microseconds, and never waits.

    `generation`: the newest one that this worker is a member of; 0 before any. `over`: nothing is told any more, and
    why was said.
    """

    def __init__(self, settings: Settings) -> None:
        s = self.settings = settings
        self.telemetry = Telemetry(s.worker, s.incarnation, s.node, s.hardware, 0, Sort(strategy=WATCHED))
        where = Where("", 0, s.node, s.hardware, s.restarts, s.launch, s.launcher, s.place)
        self._session = Session(s.worker, s.incarnation, spec_of(s), where, role=ROLE)
        self.generation, self.over, self.connected = 0, False, False
        self._halt, self._said = threading.Event(), _Said()
        self._thread = threading.Thread(target=self._run, name="antdt-watch", daemon=True)

    def start(self) -> None:
        """From now on it is told."""
        self._thread.start()
        atexit.register(self.close)

    def add(self, timing: StepTiming) -> None:
        """One step; `generation` in it is ours to know."""
        self.telemetry.add(timing._replace(generation=self.generation))

    def close(self) -> None:
        """Tell what is left, and say good-bye; within CLOSE_S, whoever is away."""
        atexit.unregister(self.close)
        self._halt.set()
        if self._thread.ident is not None:  # without a connection there is nobody to be told
            self._thread.join(CLOSE_S if self.connected else ABANDON_S)
        self._say_dropped(everything=True)

    def _run(self) -> None:
        try:
            while not (self._halt.is_set() or self.over):
                try:
                    self._connected()
                except (Unavailable, UnknownJob, KafkaException) as error:
                    self._said.once(f"{self.settings.worker} is not watched for now, and trains on: {error}")
                    self._say_dropped()
                    self._halt.wait(RETRY_S)
        except (AntdtError, UsageError) as error:
            self._end(str(error))
        except Exception:
            log.exception("%s is not watched any more, and trains on", self.settings.worker)
        finally:
            self.over = True

    def _connected(self) -> None:
        """One connection, to its end."""
        s = self.settings
        options = ClientOptions(s.connection, s.job, s.secret, ousted_s=inf)
        client = Client(options, self._session, Plans(1), self.telemetry)
        client.start()
        self.connected = True
        try:
            while not (self._halt.is_set() or self.over):
                phase = client.session.phase
                client.wait(lambda was=phase: client.session.phase is not was, LOOK_S)  # type: ignore[misc]
                self._follow(client)
                self._say_dropped()
        finally:
            self._session, self.connected = client.session, self._halt.is_set()
            client.stop(leave=self._halt.is_set() and client.session.phase is not Phase.OUSTED)

    def _follow(self, client: Client) -> None:
        """Be a member of whatever generation there is."""
        with client.lock:
            session = client.session
            if session.phase is Phase.CLOSED:
                session.regroup(None, b"")
            elif session.phase is Phase.LOST:
                restarts = session.where.restarts + 1
                incarnation = f"{session.worker}.{restarts}.{int(monotonic() * 1e3):x}"
                client.session = renew(session, incarnation)
                self.telemetry.identity = session.worker, incarnation
            elif session.phase is Phase.MEMBER:
                self.generation = session.generation
            elif session.phase in (Phase.FAILED, Phase.OUSTED, Phase.ENDED):
                self._end(session.reason or f"job {self.settings.job} is over")

    def _end(self, why: str) -> None:
        self.over = True
        self._said.once(f"{self.settings.worker} is not watched any more, and trains on: {why}")

    def _say_dropped(self, *, everything: bool = False) -> None:
        """How many steps nobody will ever hear of. everything: what waits here is lost as well."""
        said, waiting = self._said, self.telemetry.waiting if everything else 0
        dropped = self.telemetry.dropped + waiting
        if dropped > said.dropped and (everything or monotonic() - said.at_s >= SAY_EVERY_S):
            said.dropped, said.at_s = dropped, monotonic()
            log.warning("%s: the times of %d steps were dropped, nobody took them", self.settings.worker, dropped)
