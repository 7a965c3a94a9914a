"""antdt replay and antdt export."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from antdt_schemas import container
from antdt_schemas.errors import ExitCode, UsageError
from antdt_schemas.topics import SHARD_LOG, check_job

from antdt_streams.cli.common import connection_options, emit_json, job_argument, json_option, note
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.stored import Identity
from antdt_streams.local.place import Place
from antdt_streams.proof import checker, parts, waypoints
from antdt_streams.proof.audit import Account
from antdt_streams.proof.replay import Replayed, behind, document, lines
from antdt_streams.proof.replay import replay as replay_log
from antdt_streams.proof.source import LogSource, open_file, open_topic

FORMS = ("log", "openlineage", "intoto")


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds JOB, --file and --anchor: which log to read, and what it must meet."""
    anchor = click.option(
        "--anchor",
        "anchors",
        multiple=True,
        metavar="OFFSET:HASH",
        callback=_anchors,
        help="A rolling hash that was kept elsewhere: the log must have it after this offset.",
    )
    file_help = "A file of `antdt export`; no broker is asked."
    file = click.option("--file", type=click.Path(path_type=Path), help=file_help)
    return click.argument("job", required=False)(anchor(file(command)))


def _anchors(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[int, bytes]:
    out = {}
    for value in values:
        offset, _colon, text = value.partition(":")
        try:
            out[int(offset)] = bytes.fromhex(text)
        except ValueError as error:
            raise UsageError(f"--anchor {value!r} is not OFFSET:HASH, as in 812:{'0f' * 16}.") from error
    return out


@contextmanager
def open_log(job: str | None, file: Path | None, place: Place, start: int = 0) -> Iterator[LogSource]:
    if file is not None:
        with open_file(file) as log:
            _check_same(job, log, file)
            yield log
        return
    if job is None:
        raise UsageError("Name a JOB, or a --file of `antdt export`.")
    check_job(job)
    place.connection.check_reachable()
    with open_topic(place.connection, job, start) as log:
        yield log


def _check_same(job: str | None, log: LogSource, file: Path) -> None:
    if job is not None and job != log.job:
        raise UsageError(f"{file} is the log of job {log.job!r}, not of {job!r}.")


def in_parts(
    job: str | None, file: Path | None, anchors: dict[int, bytes], processes: int | None, *, counting: bool
) -> Account | None:
    """The account of a --file that was proven in parts; None: the log is to be read in one piece."""
    if file is None:
        return None
    with open_file(file) as log:
        _check_same(job, log, file)
    return parts.prove(file, anchors, processes, counting=counting)


processes_option = click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Prove so many parts of a --file at once, if it has waypoints beside it. Default: one for each core.",
)


@click.command()
@log_options
@click.option("--at", type=click.IntRange(min=0), help="The state after the entry at this offset; default: the last.")
@click.option("--snapshot", is_flag=True, help="Begin with the ledger's newest snapshot, not with the first entry.")
@processes_option
@click.option("--full", is_flag=True, help="All rows of the state, too.")
@json_option
@connection_options
def replay(
    job: str | None,
    file: Path | None,
    anchors: dict[int, bytes],
    at: int | None,
    snapshot: bool,
    processes: int | None,
    full: bool,
    as_json: bool,
    place: Place,
) -> None:
    """Rebuild the state of a job from its log; verify hash chain, sequence and digests on the way.

    Exit status 42 if the log breaks: the offset is named, what was expected and found, and how far the log is proven.
    """
    whole = at is None and not snapshot
    account = in_parts(job, file, anchors, processes, counting=False) if whole else None
    if account is not None:
        found = Replayed(account.fold, 0, None)
    else:
        fold = _from_snapshot(job, file, place, at) if snapshot else Fold()
        start = fold.position.next_offset
        with open_log(job, file, place, max(start - 1, 0)) as log:
            entries = behind(fold, log) if start else log
            found = replay_log(entries, fold=fold, at=at, anchors={**log.anchors, **anchors})
    told = document(found, full=full)
    if as_json:
        emit_json(told)
    else:
        click.echo("\n".join(lines(told)))
        for key, row in told.get("rows", {}).items():
            click.echo(f"  {key} {row}")
    if found.broken is not None:
        note(f"antdt: {found.broken.sentence()}")
        sys.exit(int(ExitCode.NEVER_RETRY))


def _from_snapshot(job: str | None, file: Path | None, place: Place, at: int | None) -> Fold:
    """The ledger's newest snapshot that reflects nothing behind `at`."""
    from antdt_streams.kafka import topics_admin
    from antdt_streams.ledger.snapshots import SERVICE
    from antdt_streams.ledger.stored import fold_of
    from antdt_streams.storage.snapshots import newest

    if job is None or file is not None:
        raise UsageError("--snapshot needs the broker, where snapshots are: name a JOB and no --file.")
    place.connection.check_reachable()
    topic_id = topics_admin.topic_ids(place.connection, check_job(job)).get(SHARD_LOG.suffix, "")
    found = newest(place.connection, job, SERVICE, topic_id=topic_id, at_most=None if at is None else at + 1)
    if found is None:
        where = "yet" if at is None else f"that ends before offset {at + 1}"
        raise UsageError(f"There is no snapshot of job {job!r} {where}: replay it without --snapshot.")
    fold, _ = fold_of(found.rows, Identity(job, topic_id), "the newest snapshot")
    return fold


@click.command()
@job_argument
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--waypoints/--no-waypoints",
    "mark",
    default=True,
    help="Also write FILE.waypoints, by which parts of FILE can be proven at once. Without them, this is faster.",
)
@click.option(
    "--checker/--no-checker",
    "checked",
    default=True,
    help="Also write verify_standalone.py beside FILE, by which anybody who has Python can verify FILE without antdt.",
)
@click.option(
    "--as",
    "form",
    type=click.Choice(FORMS),
    default="log",
    show_default=True,
    help="What to write: the log itself, or what it says, in a form of others.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --as: the log is in this file of `antdt export`; no broker is asked.",
)
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="With --as intoto: the folder of the files, which are then held against the log and named by SHA-256, too.",
)
@click.option(
    "--namespace", default="antdt", show_default=True, help="With --as openlineage: the namespace of job and data."
)
@connection_options
def export(
    job: str,
    file: Path,
    mark: bool,
    checked: bool,
    form: str,
    source: Path | None,
    checkpoints: Path | None,
    namespace: str,
    place: Place,
) -> None:
    """Write the shard log of a job to FILE, an Avro container: `replay --file` and `audit --file` need no broker.

    FILE is there whole or not at all. The rolling hash that is printed proves it later, if it is kept elsewhere.

    With --as it is what the log says instead, a JSON document a line: `openlineage`, the run events of the job and its
    generations; `intoto`, a Statement for each file of the model, unsigned, with the samples that are in it.
    """
    if form != "log":
        from antdt_streams.cli import documents

        with open_log(job, source, place) as log:
            documents.write(documents.Wanted(form, source is None, checkpoints, namespace), log, file, place)
        return
    if source is not None or checkpoints is not None:
        raise UsageError("--from and --checkpoints go with --as openlineage or --as intoto.")
    if checked:
        checker.check_place(file)
    place.connection.check_reachable()
    with open_topic(place.connection, job) as log, waypoints.writing(file) if mark else nullcontext() as keep:
        entries = log.entries if keep is None else waypoints.marked(log.entries, Identity(job, log.topic_id), keep)
        header = container.write(file, job, log.topic_id, entries)
    anchor = f"{header.next_offset - 1}:{header.head_hash.hex()}" if header.entries else "none, the log is empty"
    click.echo(f"{file}: {header.entries:,} entries, {file.stat().st_size:,} bytes, anchor {anchor}")
    if checked:
        click.echo(f"{checker.lay_beside(file)}: verifies it with Python alone, `python3 {checker.NAME} {file.name}`")
