"""`antdt launch`: starts the workers of one machine, watches them, reports how they end, leaves nothing running.

Sets torchrun's variables where they mean the same. A worker that exits with 75 (restart here) or is killed by a signal
is started again as the next incarnation, so often without progress in between; the others go on without one that was
told to end (143, or 137 where its work could not be saved); one that ends otherwise than with 0 ends the launch. Where
samples are to blame for an end, that is told to the ledger; a launch that has done all but what is in quarantine ends
with 3, and says what that is. Of all launches on a machine one runs a worker (`places`).
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path
from time import monotonic, sleep

import click
from antdt_schemas import auth, codec, launch_locks, records, topics
from antdt_schemas.connection import ENV_BOOTSTRAP, ENV_FILE
from antdt_schemas.data_folder import ENV_DATA, data_folder
from antdt_schemas.errors import AntdtError, ExitCode, UsageError
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from antdt.connect.client import require_job
from antdt.connect.settings import GRACE_S, Settings
from antdt.host.whereabouts import BLAMED, CHECKPOINT, JOINED, KEY, SHRUNK, TAKEN_PART, WORDS, Page, shared
from antdt.launch import nodes, process, vouch
from antdt.launch.output import Output, Stream
from antdt.launch.places import Places
from antdt.worker import holds

POLL_S = 0.02
REPORT_S = 2.0
# Of the grace: whoever kills this process after it must find the workers gone, and everything said.
KILL_SHARE = 0.9
# How a worker ends that was told to, or is done: it is not started again, and the others go on.
LEFT = (ExitCode.DONE, ExitCode.INCOMPLETE, ExitCode.DRAINED, ExitCode.KILLED, -signal.SIGTERM)


@dataclass(frozen=True)
class LaunchOptions:
    """What to start. reach_s: how long to wait for a broker. grace_s: time between SIGTERM and SIGKILL.

    restarts_max: of a worker, without progress in between: renewed by a step that it took part in and that is committed
    beyond all before. take_over: whoever runs these workers now is asked to leave.
    """

    workers: int
    script: Sequence[str]
    first_rank: int = 0
    world_size: int = 0
    restarts_max: int = 3
    grace_s: float = GRACE_S
    reach_s: float = 10.0
    logs: Path | None = None
    node_rank: int = 0
    take_over: bool = False


@dataclass(slots=True)
class Worker:
    """One slot: its process is replaced when it is started again."""

    rank: int
    local_rank: int
    name: str
    process: ForkProcess | None = None
    streams: tuple[Stream, Stream] | None = None
    page: Page = field(default_factory=shared)
    restarts: int = 0
    deaths: int = 0
    taken_part: int = 0
    joined: bool = False
    done: int | None = None


class Launcher:
    """The workers of one machine. All of its work happens in `run`, in the calling thread."""

    def __init__(self, options: LaunchOptions, environ: Mapping[str, str]) -> None:
        if options.workers < 1:
            raise UsageError(f"-n {options.workers}: start at least one worker.")
        self.options, self.environ = options, environ
        self.settings = Settings.of(environ)
        self.connection = self.settings.connection.named(self.settings.job, "launch")
        self.run_id = uuid.uuid4().hex[:12]
        ranks = range(options.first_rank, options.first_rank + options.workers)
        self.workers = [Worker(rank, i, f"w{rank}") for i, rank in enumerate(ranks)]
        self.holder = launch_locks.this_process(self.run_id, options.grace_s)
        locks = launch_locks.folder_of(data_folder(environ), self.settings.job)
        self.places = Places(locks, self.settings.job, self.holder)
        self.output, self.told = Output(), 0
        self._kernel_kills = holds.KernelKills()

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
        process.preload(self.environ)
        watch = vouch.Watch({w.name: w.page for w in self.workers}, self._life, self.settings)
        status, wanted_by = 0, ""
        try:
            for worker in self.workers:
                if not self.told:
                    self._start(worker)
            while any(w.process is not None and w.done is None for w in self.workers) and not self.told:
                self.output.pump(POLL_S)
                watch.look()
                self._kernel_kills.look()
                status = self._watch()
                wanted_by = self.places.wanted_by()
                if status or wanted_by:
                    break
        finally:
            self._stop()
        if wanted_by:
            click.echo(f"antdt launch: {wanted_by} takes over: this launch has ended", err=True)
            return ExitCode.NEVER_RETRY
        return status or self._verdict()

    def _verdict(self) -> int:
        """Nobody failed: what has become of the work."""
        codes = {w.done for w in self.workers if w.process is not None}
        if ExitCode.INCOMPLETE in codes and not self.told:
            click.echo(vouch.missing([w.page for w in self.workers], self.settings.job), err=True)
            return ExitCode.INCOMPLETE
        codes = {ExitCode.DONE if code == ExitCode.INCOMPLETE else code for code in codes}
        if ExitCode.DONE in codes and (not self.told or codes == {ExitCode.DONE}):
            return ExitCode.DONE
        return ExitCode.DRAINED if codes <= {ExitCode.DONE, ExitCode.DRAINED} else ExitCode.KILLED

    def _take_places(self) -> None:
        """One launch of this machine runs a worker; whoever comes second is told at once who that is."""
        names = [w.name for w in self.workers]
        try:
            held = self.places.take(names)
            if held and not self.options.take_over:
                raise self.places.refusal(held)
            if held:
                self.places.take_over(names, held, self._moment, lambda text: click.echo(text, err=True))
        except OSError as error:
            where = self.places.folder
            click.echo(f"antdt launch: no locks in {where} ({error}): the ledger alone tells launches apart", err=True)

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
            except (AntdtError, UsageError) as error:
                click.echo(f"antdt launch: {error}", err=True)
                sys.exit(int(error.exit_code))

        child = process.in_child(ask)
        child.join(reach_s + 5)
        if child.exitcode != 0:
            sys.exit(child.exitcode if child.exitcode is not None else ExitCode.RESTART_HERE)

    def _start(self, worker: Worker) -> None:
        worker.page.clear()
        log, output = None, (1, 2)
        if self.options.logs is not None:
            self.options.logs.mkdir(parents=True, exist_ok=True)
            log = self.options.logs / f"{worker.name}.log"
        else:
            worker.streams = self.output.open(worker.name)
            output = (worker.streams[0].writing, worker.streams[1].writing)
        life = process.Life(worker.page, log, output, self.places.handles)
        worker.process = process.start(self.options.script, dict(self.environ) | self._variables(worker), life)
        vouch.began(worker.page, worker.process.pid, worker.restarts)
        if worker.streams is not None:
            self.output.started(worker.streams)

    def _variables(self, worker: Worker) -> dict[str, str]:
        world = self.options.world_size or self.options.workers
        return {
            "ANTDT_WORKER": worker.name,
            "RANK": str(worker.rank),
            "LOCAL_RANK": str(worker.local_rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(self.options.workers),
            "GROUP_RANK": str(self.options.node_rank),
            "ROLE_RANK": str(worker.rank),
            "ROLE_WORLD_SIZE": str(world),
            "TORCHELASTIC_RUN_ID": self.run_id,
            "TORCHELASTIC_RESTART_COUNT": str(worker.restarts),
            "TORCHELASTIC_MAX_RESTARTS": str(self.options.restarts_max),
            # As torchrun does: several workers on one machine must not each take all its cores.
            "OMP_NUM_THREADS": self.environ.get("OMP_NUM_THREADS", "1"),
            "ANTDT_INCARNATION": self._incarnation(worker),
            "ANTDT_LAUNCH": self.run_id,
            "ANTDT_LAUNCHER": self.holder.launcher,
            "ANTDT_PLACE": self.places.place(worker.name),
            # Once: whoever was granted its place, and dies, comes back to that or not at all.
            "ANTDT_TAKE_OVER": "1" if self.options.take_over and not worker.joined else "",
            "ANTDT_GRACE_S": f"{self.options.grace_s:g}",
            "PYTHONUNBUFFERED": "1",
        }

    def _incarnation(self, worker: Worker) -> str:
        return self._life(worker.name, worker.restarts)

    def _life(self, name: str, restarts: int) -> str:
        return f"{name}.{restarts}.{self.run_id}"

    def _watch(self) -> int:
        for worker in self.workers:
            code = worker.process.exitcode if worker.process is not None and worker.done is None else None
            if code is None:
                continue
            self._has_ended(worker, code)
            if code in LEFT:  # it has said good-bye, or was told to end: the others go on
                self._is_done(worker, code)
                continue
            why = self._learn(worker, code)
            self._report(worker, code, blames=not why).join(REPORT_S + 1)
            if self._may_start_again(worker, code):
                worker.restarts += 1
                words = f"{_how(code)}{why and f' {why}'}"
                click.echo(f"{worker.name} {words}: started again ({worker.restarts})", err=True)
                self._start(worker)
                continue
            self._is_done(worker, code)
            return code if code > 0 else 128 - code
        return 0

    def _may_start_again(self, worker: Worker, code: int) -> bool:
        """While restarts are left; each one that came to something is given back."""
        page = worker.page
        if page.numbers[TAKEN_PART] > worker.taken_part:
            worker.taken_part, worker.deaths = page.numbers[TAKEN_PART], 0
        if not page.numbers[SHRUNK]:  # it does not begin as it did
            worker.deaths += 1
        again = code < 0 or code in (ExitCode.RESTART_HERE, ExitCode.RESTART_ELSEWHERE)
        return again and worker.deaths <= vouch.restarts_max(page, self.options.restarts_max) and not self.told

    def _has_ended(self, worker: Worker, code: int) -> None:
        """Its last output; what others must know of it at once."""
        worker.joined = worker.joined or bool(worker.page.numbers[JOINED])
        if worker.streams is not None:
            self.output.close(worker.streams)
            worker.streams = None
        if code == -signal.SIGTERM:
            self._report(worker, code).join(REPORT_S + 1)

    def _is_done(self, worker: Worker, code: int, why: str = "") -> None:
        """It is not started again."""
        worker.done = code
        self.places.release(worker.name)
        words = why or worker.page.said(WORDS)
        if code == ExitCode.DRAINED:
            words = "it was told to, and has left"
        elif code in (ExitCode.KILLED, -signal.SIGTERM) or why:
            words = f"{why or 'it was told to, and could not save its work'}; {self._redone()}"
        if code != ExitCode.DONE:
            click.echo(f"{worker.name} {_how(code)}{words and f': {words}'}", err=True)

    def _redone(self) -> str:
        newest = max(w.page.numbers[CHECKPOINT] for w in self.workers)
        return f"what is in no checkpoint is done again (the newest that is known here is of step {newest})"

    def _learn(self, worker: Worker, code: int) -> str:
        """What a death by SIGKILL says of the worker's memory, as half a sentence; empty where that is nothing."""
        if code != -signal.SIGKILL:
            return ""
        return holds.learn_from_kill(worker.page, by_kernel=self._kernel_kills.lately())

    def _report(self, worker: Worker, code: int, *, blames: bool = True) -> ForkProcess:
        """Tell the ledger at once: it need not wait until the worker has been silent for long enough.

        In a child, which is returned: a client has threads, and a process with threads must not fork the next worker.
        blames: the samples at hand may be the reason.
        """
        incarnation, settings, connection = self._incarnation(worker), self.settings, self.connection
        at = worker.page.at_hand() if blames and not worker.page.numbers[SHRUNK] else ()
        if at:
            worker.page.numbers[BLAMED] = 1

        def tell() -> None:
            self.places.forget()
            producer = Producer(connection.producer(**{"linger.ms": 0}))
            body = records.Exited(code, _how(code), at, worker.page.said(KEY) if at else "")
            request = records.Request(worker.name, incarnation, 0, body, b"")
            payload = codec.encode(auth.sign(request, settings.secret))
            with suppress(KafkaException):  # a hint: the ledger finds out by itself, later
                producer.produce(topics.REQUESTS.name(settings.job), payload, worker.name, 0)
                producer.flush(REPORT_S)

        return process.in_child(tell)

    def _stop(self) -> None:
        """Tell those that live, and wait for them: all of the grace, or until told once more."""
        live = [(w, w.process) for w in self.workers if w.process is not None and w.done is None]
        for _, one in live:
            one.terminate()
        grace_s, told, why, reports = self.options.grace_s, self.told, "", list[ForkProcess]()
        until = monotonic() + KILL_SHARE * grace_s
        while live:
            self.output.pump(POLL_S)
            late = monotonic() > until
            if not why and (late or self.told > max(told, 1)):
                why = f"it did not leave in time (--grace-s {grace_s:g})" if late else "it was to end at once"
                for _, one in live:
                    one.kill()
            for worker, one in [pair for pair in live if pair[1].exitcode is not None]:
                live.remove((worker, one))
                code = one.exitcode or 0
                self._has_ended(worker, code)
                killed = code == -signal.SIGKILL
                if killed:
                    reports.append(self._report(worker, ExitCode.KILLED))
                self._is_done(worker, code, why if killed else "")
        until = monotonic() + REPORT_S + 1
        for report in reports:
            report.join(max(0.0, until - monotonic()))


def _how(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with status {code}"


@click.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": ["-h", "--help"],
    }
)
@click.option(
    "-n",
    "--workers",
    envvar="PET_NPROC_PER_NODE",
    default="1",
    show_default=True,
    help="Workers here: a number; or gpu, cpu, one for each; or auto, gpu where there are any.",
)
@click.option("--job", envvar="ANTDT_JOB", required=True, help="Name of the job, as given to `antdt up`.")
@click.option("--bootstrap-servers", help="Kafka, HOST:PORT[,HOST:PORT]. Default: the broker of `antdt up`.")
@click.option("--kafka-config", type=click.Path(), help="A client.properties file, or a folder of single keys.")
@click.option("--data-dir", default=None, help="Data folder of `antdt up`; default ./antdt-data.")
@click.option("--nnodes", envvar="PET_NNODES", default="1", help="Machines, all with as many workers: N or MIN:MAX.")
@click.option("--node-rank", type=int, envvar="PET_NODE_RANK", default=0, help="Number of this machine, from 0 on.")
@click.option("--first-rank", type=int, default=-1, help="Rank of the first worker here, where machines differ.")
@click.option("--world-size", type=int, default=0, help="Workers on all machines, where machines differ.")
@click.option(
    "--max-restarts",
    type=int,
    default=3,
    show_default=True,
    help="How often a worker is started again without progress in between.",
)
@click.option(
    "--grace-s",
    type=click.FloatRange(min=0),
    envvar="ANTDT_GRACE_S",
    default=GRACE_S,
    show_default=True,
    help="Seconds that workers have to finish their step and leave when they are told to end.",
)
@click.option("--take-over", is_flag=True, help="Ask whoever runs these workers now to leave, and go on in its place.")
@click.option(
    "--broker-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds to wait for a broker that does not answer.",
)
@click.option("--logs", type=click.Path(path_type=Path), help="Folder for the workers' output; default: this terminal.")
@click.argument("script", nargs=-1, required=True, type=click.UNPROCESSED)
def main(
    workers: str,
    job: str,
    bootstrap_servers: str | None,
    kafka_config: str | None,
    data_dir: str | None,
    nnodes: str,
    node_rank: int,
    first_rank: int,
    world_size: int,
    max_restarts: int,
    grace_s: float,
    take_over: bool,
    broker_timeout: float,
    logs: Path | None,
    script: tuple[str, ...],
) -> None:
    """Start the workers of a job on this machine, and stay until all of them have ended.

    \b
    antdt launch --job my-job -n 4 train.py --lr 0.1
    antdt launch --job my-job -n 4 -- -m my.module --lr 0.1

    Each worker runs SCRIPT with what follows it, and finds RANK, LOCAL_RANK and WORLD_SIZE set as by torchrun. One that
    is killed is started again. On several machines, give each --nnodes and --node-rank, as torchrun's variables
    PET_NNODES and PET_NODE_RANK do; or --first-rank and --world-size where they differ.

    Ctrl-C (or SIGTERM) lets workers finish their step and leave within --grace-s; a second one ends them at once. A job
    whose workers somebody else runs is left alone (42), unless --take-over asks that launch to leave.
    """
    environ = dict(os.environ) | {"ANTDT_JOB": job}
    for key, value in (
        (ENV_BOOTSTRAP, bootstrap_servers),
        (ENV_FILE, kafka_config),
        (ENV_DATA, data_dir),
    ):
        if value:
            environ[key] = value
    try:
        here = nodes.workers_here(workers)
        first, world = nodes.first_and_world(here, nnodes, node_rank, first_rank, world_size)
        options = LaunchOptions(
            here,
            script,
            first,
            world,
            max_restarts,
            grace_s,
            broker_timeout,
            logs,
            node_rank,
            take_over,
        )
        launcher = Launcher(options, environ)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: launcher.tell())
        status = launcher.run()
    except (UsageError, AntdtError) as error:
        click.echo(f"antdt launch: {error}", err=True)
        status = int(error.exit_code)
    process.leave(status)
