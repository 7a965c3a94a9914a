"""`antdt launch`: starts the workers of one machine, watches them, reports how they end, leaves nothing running.

Sets torchrun's variables where they mean the same. A worker that exits with 75 (restart here) or is killed by a signal
is started again as the next incarnation while restarts are left; the others go on without one that was told to end
(143); one that ends otherwise than with 0 ends the launch. Where samples are to blame for an end, that is told to the
ledger; a launch that has done all but what is in quarantine ends with 3, and says what that is.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path
from time import monotonic

import click
from antdt_schemas import auth, codec, records, topics
from antdt_schemas.connection import ENV_BOOTSTRAP, ENV_FILE
from antdt_schemas.data_folder import ENV_DATA
from antdt_schemas.errors import AntdtError, ExitCode, UsageError
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from antdt import process, vouch
from antdt.client import require_job
from antdt.settings import Settings
from antdt.whereabouts import BLAMED, KEY, Page, shared

POLL_S = 0.02
REPORT_S = 2.0


@dataclass(frozen=True)
class LaunchOptions:
    """What to start. reach_s: how long to wait for a broker. grace_s: time between SIGTERM and SIGKILL."""

    workers: int
    script: Sequence[str]
    first_rank: int = 0
    world_size: int = 0
    restarts_max: int = 3
    grace_s: float = 10.0
    reach_s: float = 10.0
    logs: Path | None = None


@dataclass(slots=True)
class Worker:
    """One slot: its process is replaced when it is started again."""

    rank: int
    local_rank: int
    name: str
    process: ForkProcess | None = None
    page: Page = field(default_factory=shared)
    restarts: int = 0
    done: int | None = None


class Launcher:
    """The workers of one machine. All of its work happens in `run`, in the calling thread."""

    def __init__(self, options: LaunchOptions, environ: Mapping[str, str]) -> None:
        if options.workers < 1:
            raise UsageError(f"-n {options.workers}: start at least one worker.")
        self.options, self.environ = options, environ
        self.settings = Settings.of(environ)
        self.run_id = uuid.uuid4().hex[:12]
        ranks = range(options.first_rank, options.first_rank + options.workers)
        self.workers = [Worker(rank, i, f"w{rank}") for i, rank in enumerate(ranks)]
        self.stopping = threading.Event()

    def run(self) -> int:
        """Start, watch, stop. Returns the exit status for the launch: 0 when every worker ended well."""
        self._check_reachable()
        process.preload(self.environ)
        watch = vouch.Watch({w.name: w.page for w in self.workers}, self._life, self.settings)
        status = 0
        try:
            for worker in self.workers:
                self._start(worker)
            while any(w.done is None for w in self.workers) and not self.stopping.is_set():
                self.stopping.wait(POLL_S)
                watch.look()
                status = self._watch() or status
                if status:
                    break
        finally:
            self._stop()
        if not status and ExitCode.INCOMPLETE in [w.done for w in self.workers]:
            click.echo(vouch.missing([w.page for w in self.workers], self.settings.job), err=True)
            return ExitCode.INCOMPLETE
        drained = self.stopping.is_set() or all(w.done == ExitCode.DRAINED for w in self.workers)
        return status or (ExitCode.DRAINED if drained else ExitCode.DONE)

    def _check_reachable(self) -> None:
        """Ask for the broker and the job in a child, before seconds go into imports."""
        settings, reach_s = self.settings, self.options.reach_s

        def ask() -> None:
            try:
                settings.connection.check_reachable(reach_s)
                require_job(AdminClient(settings.connection.admin()), settings.job, reach_s)
            except (AntdtError, UsageError) as error:
                click.echo(f"antdt launch: {error}", err=True)
                sys.exit(int(error.exit_code))

        child = process.in_child(ask)
        child.join(reach_s + 5)
        if child.exitcode != 0:
            sys.exit(child.exitcode if child.exitcode is not None else ExitCode.RESTART_HERE)

    def _start(self, worker: Worker) -> None:
        log = None
        if self.options.logs is not None:
            self.options.logs.mkdir(parents=True, exist_ok=True)
            log = self.options.logs / f"{worker.name}.log"
        worker.page.clear()
        environ = dict(self.environ) | self._variables(worker)
        worker.process = process.start(self.options.script, environ, log, worker.page)
        vouch.began(worker.page, worker.process.pid, worker.restarts)

    def _variables(self, worker: Worker) -> dict[str, str]:
        world = self.options.world_size or self.options.workers
        return {
            "ANTDT_WORKER": worker.name,
            "RANK": str(worker.rank),
            "LOCAL_RANK": str(worker.local_rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(self.options.workers),
            "GROUP_RANK": "0",
            "ROLE_RANK": str(worker.rank),
            "ROLE_WORLD_SIZE": str(world),
            "TORCHELASTIC_RUN_ID": self.run_id,
            "TORCHELASTIC_RESTART_COUNT": str(worker.restarts),
            "TORCHELASTIC_MAX_RESTARTS": str(self.options.restarts_max),
            # As torchrun does: several workers on one machine must not each take all its cores.
            "OMP_NUM_THREADS": self.environ.get("OMP_NUM_THREADS", "1"),
            "ANTDT_INCARNATION": self._incarnation(worker),
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
            if code in (ExitCode.DONE, ExitCode.DRAINED, ExitCode.INCOMPLETE):  # it has said good-bye: the others go on
                worker.done = code
                if code == ExitCode.DRAINED:
                    click.echo(f"{worker.name} {_how(code)}: it was told to, and has left", err=True)
                continue
            self._report(worker, code)
            again = code < 0 or code in (ExitCode.RESTART_HERE, ExitCode.RESTART_ELSEWHERE)
            if (
                again
                and worker.restarts < vouch.restarts_max(worker.page, self.options.restarts_max)
                and not self.stopping.is_set()
            ):
                worker.restarts += 1
                click.echo(f"{worker.name} {_how(code)}: started again ({worker.restarts})", err=True)
                self._start(worker)
                continue
            worker.done = code
            click.echo(f"{worker.name} {_how(code)}", err=True)
            return code if code > 0 else 128 - code
        return 0

    def _report(self, worker: Worker, code: int) -> None:
        """Tell the ledger at once: it need not wait until the worker has been silent for long enough."""
        incarnation, settings, at = self._incarnation(worker), self.settings, worker.page.at_hand()
        if at:
            worker.page.numbers[BLAMED] = 1

        def tell() -> None:
            producer = Producer(settings.connection.producer(**{"linger.ms": 0}))
            body = records.Exited(code, _how(code), at, worker.page.said(KEY) if at else "")
            request = records.Request(worker.name, incarnation, 0, body, b"")
            payload = codec.encode(auth.sign(request, settings.secret))
            producer.produce(topics.REQUESTS.name(settings.job), payload, worker.name, 0)
            producer.flush(REPORT_S)

        # In a child: a client has threads, and a process with threads must not fork the next worker.
        process.in_child(tell).join(REPORT_S + 1)

    def _stop(self) -> None:
        live = [w.process for w in self.workers if w.process is not None and w.process.is_alive()]
        for one in live:
            one.terminate()
        until = monotonic() + self.options.grace_s
        for one in live:
            one.join(max(0.0, until - monotonic()))
            if one.is_alive():
                one.kill()
                one.join(5)


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
    "-n", "--workers", type=int, envvar="PET_NPROC_PER_NODE", default=1, show_default=True, help="Workers here."
)
@click.option("--job", envvar="ANTDT_JOB", required=True, help="Name of the job, as given to `antdt up`.")
@click.option("--bootstrap-servers", help="Kafka, HOST:PORT[,HOST:PORT]. Default: the broker of `antdt up`.")
@click.option("--kafka-config", type=click.Path(), help="A client.properties file, or a folder of single keys.")
@click.option("--data-dir", default=None, help="Data folder of `antdt up`; default ./antdt-data.")
@click.option("--first-rank", type=int, default=0, help="Rank of the first worker of this machine.")
@click.option("--world-size", type=int, default=0, help="Workers on all machines; default: those of this one.")
@click.option("--max-restarts", type=int, default=3, show_default=True, help="How often a worker is started again.")
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
    workers: int,
    job: str,
    bootstrap_servers: str | None,
    kafka_config: str | None,
    data_dir: str | None,
    first_rank: int,
    world_size: int,
    max_restarts: int,
    broker_timeout: float,
    logs: Path | None,
    script: tuple[str, ...],
) -> None:
    """Start the workers of a job on this machine, and stay until all of them have ended.

    \b
    antdt launch --job my-job -n 4 train.py --lr 0.1
    antdt launch --job my-job -n 4 -- -m my.module --lr 0.1

    Each worker runs SCRIPT with what follows it, and finds RANK, LOCAL_RANK and WORLD_SIZE set as by torchrun. One that
    is killed is started again. On several machines, give each --first-rank and --world-size.
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
        options = LaunchOptions(
            workers, script, first_rank, world_size, max_restarts, reach_s=broker_timeout, logs=logs
        )
        launcher = Launcher(options, environ)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: launcher.stopping.set())
        status = launcher.run()
    except (UsageError, AntdtError) as error:
        click.echo(f"antdt launch: {error}", err=True)
        status = int(error.exit_code)
    process.leave(status)


if __name__ == "__main__":
    main(prog_name="antdt launch")
