"""`antdt launch`: starts the workers of one machine, watches them, reports how they end, leaves nothing running.

Carries out what `slots` says, where the rules are: who is started
again, who is told to leave, how the launch ends. A launch that has done all but what is in quarantine ends with 3, and
says what that is. Of all launches on a machine one runs a worker (`places`).
"""

from __future__ import annotations

import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from time import monotonic, sleep

from antdt_schemas import auth, codec, framing, launch_locks, records, topics
from antdt_schemas.address import LOOPBACK
from antdt_schemas.data_folder import data_folder
from antdt_schemas.errors import AntdtError, ExitCode, UsageError, how
from antdt_schemas.exporting import Where
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from antdt.connect.client import require_job
from antdt.connect.settings import SERVER, WORKER, Settings
from antdt.driving import holds
from antdt.host import whereabouts as at
from antdt.host.child import in_child
from antdt.launch import environment, process, slots, vouch
from antdt.launch.feed import Feed
from antdt.launch.figures import Shown
from antdt.launch.output import Output, say
from antdt.launch.places import Places
from antdt.launch.stacks import Stacks, Subject, Wanted
from antdt.launch.worker import Worker

POLL_S = 0.02
REPORT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class LaunchOptions(slots.Rules):
    """What to start, and by which rules. reach_s: how long to wait for a broker. torch_env: see `environment`. servers:
    of the whole job; servers_here: which of them this machine starts.
    """

    workers: int
    script: Sequence[str]
    first_rank: int = 0
    world_size: int = 0
    reach_s: float = 10.0
    logs: Path | None = None
    node_rank: int = 0
    torch_env: bool = False
    servers: int = 0
    servers_here: range = range(0)
    metrics_port: int | None = None
    metrics_host: str = LOOPBACK


class Launcher:
    """The workers of one machine. All of its work happens in `run`, in the calling thread."""

    def __init__(self, options: LaunchOptions, environ: Mapping[str, str]) -> None:
        if not options.workers and not options.servers_here:
            raise UsageError("-n 0: start at least one worker, or a server (--servers-here).")
        self.options, self.environ = options, environ
        self.settings = Settings.of(environ)
        self.connection = self.settings.connection.named(self.settings.job, "launch")
        self.run_id, self.world = uuid.uuid4().hex[:12], options.world_size or options.workers
        self._torch: dict[str, str] | None = None
        if options.torch_env:
            meeting = environment.meeting(environ, options.workers, self.world)
            self._torch = environment.torch_of_launch(meeting, self.run_id, options.restarts_max)
        ranks = range(options.first_rank, options.first_rank + options.workers)
        self.workers = {f"w{rank}": Worker(rank, i, f"w{rank}") for i, rank in enumerate(ranks)}
        # Behind all workers, as whoever asks for its rank takes 0 for the one that speaks for all.
        self.servers = {f"s{i}": Worker(self.world + i, i, f"s{i}") for i in options.servers_here}
        self.workers |= self.servers
        with_us = list(self.servers) if self.world == options.workers else []  # other machines' workers may need them
        self.slots = slots.Slots(list(self.workers), self.run_id, options, with_us)
        self.holder = launch_locks.this_process(self.run_id, options.grace_s)
        locks = launch_locks.folder_of(data_folder(environ), self.settings.job)
        self.places = Places(locks, self.settings.job, self.holder)
        self.feed = Feed(self.connection, self.settings.job, lambda: [*self.places.handles, *self.shown.handles])
        self.shown = Shown(Where(options.metrics_port, options.metrics_host), self.settings.job)
        who = self.holder.launcher
        self.stacks = Stacks(self.connection, self.settings.job, who, self._subject, self.places.forget)
        self.output, self.told = Output(), 0
        self._status: int | None = None
        self._reports, self._kernel_kills = list[ForkProcess](), holds.KernelKills()

    def tell(self) -> None:
        """End, for a signal handler: once, with a grace; twice, at once."""
        self.told += 1

    def run(self) -> int:
        """Start, watch, stop. Returns the exit status for the launch: 0 when every worker ended well.

        Raises:
            Occupied: another launch of this machine runs one of the workers.
        """
        self._take_places()
        self._check_reachable()
        self.shown.begin(self.places.handles)
        process.preload(self.environ)
        watch = vouch.Watch({w.name: w.page for w in self.workers.values()}, self.slots.life, self.settings)
        try:
            for name in self.workers:
                if not self.told:
                    self._do(self.slots.start(name))
            while self._status is None:
                self._turn(watch)
        finally:
            self._stop(watch)
        if self._status == ExitCode.INCOMPLETE:
            say(vouch.missing((w.page for w in self.workers.values()), self.settings.job))
        assert self._status is not None
        return self._status

    def _turn(self, watch: vouch.Watch) -> None:
        self.output.pump(POLL_S)
        now_s = monotonic()
        for worker in self.workers.values():
            if renamed := worker.page.said(at.NAME):
                self.slots.on_renamed(worker.name, renamed)
        if self.told:
            self._do(self.slots.on_told(self.told, now_s))
        if not self.slots.ending:
            watch.look()
            self._kernel_kills.look()
            wanted_by = self.places.wanted_by()
            if wanted_by:
                self._do(self.slots.on_wanted(wanted_by, now_s))
        if not self.slots.ending or self.feed.handles:
            self._heed(now_s)
        for worker in self.workers.values():
            code = worker.process.exitcode if worker.process is not None else None
            if code is not None:
                self._has_ended(worker, code, now_s)
        self._do(self.slots.on_tick(now_s))
        self.shown.tell(self.slots, watch.pages)

    def _heed(self, now_s: float) -> None:
        """What the Controller says; of a launch that ends, only who wants to know at what it hangs."""
        for order in self.feed.look():
            if isinstance(order, Wanted):
                self.stacks.ask(order)
            elif not self.slots.ending:
                self._do(self.slots.on_order(order, now_s))
        self.stacks.look()

    def _stop(self, watch: vouch.Watch) -> None:
        """Whatever happened: whoever runs is told to leave and waited for, and what was to be said is."""
        self._do(self.slots.end(ExitCode.BUG, monotonic()))
        while any(worker.process is not None for worker in self.workers.values()):
            self._turn(watch)
        self.feed.close()
        self.shown.close()
        until = monotonic() + REPORT_S + 1
        for report in self._reports:
            report.join(max(0.0, until - monotonic()))

    def _do(self, instructions: Sequence[slots.Instruction]) -> None:
        for one in instructions:
            match one:
                case slots.Start(name, restarts, take_over):
                    self._start(self.workers[name], restarts, take_over=take_over)
                case slots.Terminate(name) | slots.Kill(name):
                    child = self.workers[name].process
                    if child is not None:
                        child.terminate() if isinstance(one, slots.Terminate) else child.kill()
                case slots.Release(name):
                    self.places.release(name)
                case slots.Report():
                    self._report(one)
                case slots.Say(text):
                    say(text)
                case slots.End(status):
                    self._status = status

    def _has_ended(self, worker: Worker, code: int, now_s: float) -> None:
        worker.process = None
        if worker.streams is not None:
            self.output.close(worker.streams)
            worker.streams = None
        learned = ""
        if code == -signal.SIGKILL and self.slots.unkilled(worker.name):
            learned = holds.learn_from_kill(worker.page, by_kernel=self._kernel_kills.lately())
        page, numbers = worker.page, worker.page.numbers
        last = slots.Last(
            joined=bool(numbers[at.JOINED]),
            taken_part=numbers[at.TAKEN_PART],
            shrunk=bool(numbers[at.SHRUNK]),
            blamed=bool(numbers[at.BLAMED]),
            attempts=numbers[at.ATTEMPTS],
            at=page.at_hand(),
            step=numbers[at.STEP],
            learned=learned,
            words=page.said(at.WORDS),
            checkpoint=max(w.page.numbers[at.CHECKPOINT] for w in self.workers.values()),
        )
        self._do(self.slots.on_exit(worker.name, code, now_s, last))

    def _take_places(self) -> None:
        """One launch of this machine runs a worker; whoever comes second is told at once who that is."""
        names = list(self.workers)
        try:
            held = self.places.take(names)
            if held and not self.options.take_over:
                raise self.places.refusal(held)
            if held:
                self.places.take_over(names, held, self._moment, say)
        except OSError as error:
            where = self.places.folder
            say(f"antdt launch: no locks in {where} ({error}): the ledger alone tells launches apart")

    def _moment(self) -> bool:
        sleep(POLL_S)
        return not self.told

    def _check_reachable(self) -> None:
        """Ask for the broker and the job in a child, before seconds go into imports."""
        job, connection, reach_s = self.settings.job, self.connection, self.options.reach_s

        def ask() -> None:
            self.places.forget()
            try:
                connection.check_reachable(reach_s)
                require_job(AdminClient(connection.admin()), job, reach_s)
            except AntdtError as error:
                say(f"antdt launch: {error}")
                sys.exit(int(error.exit_code))

        child = in_child(ask)
        child.join(reach_s + 5)
        if child.exitcode != 0:
            sys.exit(child.exitcode if child.exitcode is not None else ExitCode.RESTART_HERE)

    def _start(self, worker: Worker, restarts: int, *, take_over: bool) -> None:
        worker.page.clear()
        log, output = None, (1, 2)
        if self.options.logs is not None:
            self.options.logs.mkdir(parents=True, exist_ok=True)
            log = self.options.logs / f"{worker.name}.log"
        else:
            worker.streams = self.output.open(worker.name)
            output = (worker.streams[0].writing, worker.streams[1].writing)
        others = [other.stacks for other in self.workers.values() if other is not worker and other.stacks >= 0]
        closes = [*self.places.handles, *self.feed.handles, *self.shown.handles, *others]
        life = process.Life(worker.page, log, output, closes, worker.stacks)
        environ = self._environ(worker, restarts, take_over=take_over)
        worker.process = process.start(self.options.script, environ, life)
        vouch.began(worker.page, worker.process.pid, restarts)
        if worker.streams is not None:
            self.output.started(worker.streams)

    def _subject(self, name: str) -> Subject | None:
        worker = self.workers.get(name)
        if worker is None:
            return None
        return Subject(name, self.slots.incarnation(name), worker.pid, worker.page, worker.stacks)

    def _environ(self, worker: Worker, restarts: int, *, take_over: bool) -> dict[str, str]:
        o = self.options
        where = environment.Where(worker.rank, self.world, worker.local_rank, o.workers, o.node_rank)
        own = {
            "ANTDT_WORKER": worker.name,
            "ANTDT_INCARNATION": self.slots.life(worker.name, restarts),
            "ANTDT_LAUNCH": self.run_id,
            "ANTDT_LAUNCHER": self.holder.launcher,
            "ANTDT_PLACE": self.places.place(worker.name),
            "ANTDT_TAKE_OVER": "1" if take_over else "",
            "ANTDT_GRACE_S": f"{self.options.grace_s:g}",
            "ANTDT_ROLE": SERVER if worker.name in self.servers else WORKER,
            "ANTDT_SERVERS": str(o.servers),
        }
        return environment.of_worker(self.environ, own, where, restarts, self._torch)

    def _report(self, ended: slots.Report) -> None:
        """Tell the ledger at once: it need not wait until the worker has been silent for long enough.

        In a child: a client has threads, and a process with threads must not fork the next worker.
        """
        settings, connection, key = self.settings, self.connection, self.workers[ended.slot].page.said(at.KEY)

        def tell() -> None:
            self.places.forget()
            producer = Producer(connection.producer(**{"linger.ms": 0}))
            body = records.Exited(ended.code, how(ended.code), ended.at, key if ended.at else "", ended.step)
            request = records.Request(ended.slot, ended.incarnation, 0, body, b"")
            topic, payload = topics.REQUESTS.name(settings.job), codec.encode(auth.sign(request, settings.secret))
            with suppress(KafkaException):  # a hint: the ledger finds out by itself, later
                producer.produce(topic, framing.framed(topic, payload), ended.slot, 0)
                producer.flush(REPORT_S)

        child = in_child(tell)
        if self.slots.ending and ended.code == ExitCode.KILLED:  # many at once: they are waited for in the end
            self._reports.append(child)
        else:
            child.join(REPORT_S + 1)
