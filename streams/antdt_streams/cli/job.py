"""antdt status and antdt audit."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from antdt_schemas import codec, records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode, ForeignState, LogTampered
from antdt_schemas.topics import DECISIONS, SHARD_LOG

from antdt_streams.cli.common import Place, connection_options, emit_json, job_argument
from antdt_streams.cli.replay import in_parts, log_options, open_log, processes_option
from antdt_streams.ledger.core import evidence, rows
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.proof.audit import audit as audit_log
from antdt_streams.proof.audit import report_of
from antdt_streams.proof.replay import behind
from antdt_streams.proof.source import open_topic
from antdt_streams.proof.walker import Entries, Walker, chunks

FAULTS_SHOWN = 20


@click.command(short_help="Prove from the log what a job trained on.")
@log_options
@processes_option
@click.option("--json", "as_json", is_flag=True, help="The whole report as one JSON document.")
@connection_options
def audit(
    job: str | None, file: Path | None, anchors: dict[int, bytes], processes: int | None, as_json: bool, place: Place
) -> None:
    """Prove from the log alone that each sample of each epoch was committed exactly once.

    Exit status 0 if it is proven; 1 if not: then the offending ranges are listed; 42 if the log itself breaks.
    """
    account = in_parts(job, file, anchors, processes, accounting=True)
    if account is not None:
        report = report_of(account, None)
    else:
        with open_log(job, file, place) as log:
            report = audit_log(log, {**log.anchors, **anchors})
    if as_json:
        emit_json(report)
    else:
        show_audit(report)
    sys.exit(int(ExitCode.NEVER_RETRY) if report["broken"] else 0 if report["exactly_once"] else 1)


def audit_of(connection: Connection, job: str) -> dict[str, Any]:
    """The report of `antdt audit`."""
    with open_topic(connection, job) as log:
        return audit_log(log)


def show_audit(report: dict[str, Any]) -> None:
    """A report for people."""
    click.echo(report["verdict"])
    for name in ("missing", "repeated", "quarantined"):
        for epoch, start, end in report.get(name, [])[:20]:
            click.echo(f"  {name}: epoch {epoch}, positions {start} to {end - 1}")
    _show_faults(report.get("faults", []))
    for loss in report.get("accepted_losses", []):
        click.echo(f"  accepted by {loss['author']}: entries up to {loss['next_offset']} are lost: {loss['reason']}")
    for move in report.get("requests_moved", []):
        click.echo(f"  requests went on at {move['next']}, which cost nothing: {move['reason']}")
    if report.get("skipped_steps"):
        click.echo(
            f"  {report['skipped_steps']} steps were skipped: their gradient was not finite (roll-backs included)"
        )
    for name in ("entries", "void_entries", "steps", "refused_reports", "head_hash", "digest", "file"):
        if report.get(name) is not None:
            click.echo(f"  {name.replace('_', ' '):<16} {report[name]}")


@click.command()
@job_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@connection_options
def status(job: str, as_json: bool, place: Place) -> None:
    """Show a job: progress, members, plan, newest decisions."""
    place.connection.check_reachable()
    found = status_of(place.connection, job)
    if as_json:
        emit_json(found)
        return
    total = found["samples_total"] or 1
    click.echo(f"job {job}   run {found['run_id'] or '- (no worker has joined yet)'}")
    click.echo(
        f"  {found['committed']:,} of {found['samples_total']:,} samples committed "
        f"({100 * found['committed'] / total:.1f} %), step {found['step']}, {found['leased']:,} leased"
    )
    state = "done: " + str(found["file"]) if found["file"] else ("open" if found["open"] else "closed")
    click.echo(f"  generation {found['generation']} ({state}), members: {', '.join(found['members']) or 'none'}")
    click.echo(f"  log: {found['entries']} entries, digest {found['digest'] or '-'}")
    if found["void_entries"]:
        click.echo(f"  {found['void_entries']:,} of these entries are void: of former leaders, or of somebody else")
    click.echo(f"  in office: {found['leader'] or 'nobody yet'}")
    for service, one in found["services"].items():
        click.echo(f"  {service:<10} {one['said']}")
    for incarnation, said in found["standings"].items():
        detail = f" ({said['detail']})" if said["detail"] else ""
        allowed = f" of {said['allowed_s']:.0f} s announced" if said["allowed_s"] else ""
        what = f"{said['phase']} for {said['phase_s']:.1f} s{allowed}{detail}"
        click.echo(f"    {incarnation}: {what}, {said['age_s']:.0f} s ago")
    steps = ", ".join(str(c["step"]) for c in found["checkpoints"])
    click.echo(f"  checkpoints at steps {steps or 'none'} (go back to one by `antdt rollback {job} --step STEP`)")
    if found["quarantined"]:
        click.echo(f"  {found['quarantined']:,} samples in quarantine (try them again by `antdt readmit {job}`)")
        _show_faults(found["faults"])
    if found["skipped_steps"]:
        click.echo(
            f"  {found['skipped_steps']} steps were skipped: their gradient was not finite (see the workers' output)"
        )
    if found["accepted_losses"]:
        click.echo(f"  {found['accepted_losses']} losses of log entries were accepted: see `antdt audit {job}`")
    for decision in found["decisions"][-5:]:
        click.echo(f"  plan {decision['plan']}: {decision['reason']}")


def status_of(connection: Connection, job: str) -> dict[str, Any]:
    """What `antdt status` shows, ready for JSON."""
    from antdt_streams.kafka.reader import TopicReader, decoded
    from antdt_streams.views.liveness import services_of
    from antdt_streams.views.standings import standings

    fold, start = _newest_state(connection, job)
    with TopicReader(connection, job, DECISIONS) as reader:
        decisions = [codec.to_json(decision) for _, decision in decoded(reader.to_end(), records.Decision)]
    state, genesis, office = fold.state, fold.genesis, fold.office
    living = [m for m in state.members if not state.incarnations[m].gone] if state and not state.done else []
    return {
        "job": job,
        "run_id": genesis.run_id if genesis else None,
        "samples_total": state.samples_total if state else 0,
        "committed": state.committed_total if state else 0,
        "leased": sum(x.end - x.front for x in state.leases.values()) if state else 0,
        "quarantined": state.quarantined_total if state else 0,
        "faults": evidence.faults(state) if state else [],
        "step": state.committed if state else 0,
        "skipped_steps": state.skipped if state else 0,
        "generation": state.generation if state else 0,
        "open": bool(state and state.open),
        "members": [state.incarnations[m].worker for m in state.members] if state else [],
        "standings": standings(connection, job, living) if living else {},
        "plan": state.plan if state else 0,
        "file": state.done if state else None,
        "checkpoints": [{"step": c.step, "file": c.file} for c in state.checkpoints] if state else [],
        "accepted_losses": len(state.accepted) if state else 0,
        "leader": office.owner if office else None,
        "entries": fold.position.entries,
        "read_from": start,
        "void_entries": fold.void_entries,
        "refused_reports": state.refused if state else 0,
        "digest": rows.digest(state).hex() if state else None,
        "decisions": decisions,
        "services": services_of(connection, job),
    }


def _show_faults(faults: list[dict[str, Any]]) -> None:
    for one in faults[:FAULTS_SHOWN]:
        key = f" ({one['key']})" if one["key"] else ""
        last = one["start"] + one["length"] - 1
        where = f"position {last}" if one["length"] == 1 else f"positions {one['start']} to {last}"
        click.echo(f"    {where} of epoch {one['epoch']}{key}: {one['reason']}")
    if len(faults) > FAULTS_SHOWN:
        click.echo(f"    and {len(faults) - FAULTS_SHOWN} more: see --json")


def _newest_state(connection: Connection, job: str) -> tuple[Fold, int]:
    """What the log says at its end, and where reading it began: behind the newest snapshot that it agrees with."""
    from antdt_streams.kafka import topics_admin
    from antdt_streams.kafka.reader import TopicReader
    from antdt_streams.ledger.snapshots import SERVICE
    from antdt_streams.ledger.stored import Identity, fold_of
    from antdt_streams.storage.snapshots import newest

    with TopicReader(connection, job, SHARD_LOG) as reader:
        topic_id = topics_admin.topic_ids(connection, job)[SHARD_LOG.suffix]
        snapshot = newest(connection, job, SERVICE, topic_id=topic_id, at_most=reader.ends()[0])
        if snapshot is not None:
            # One that belongs to other rules, or to what the log has lost, is no reason to show nothing.
            with suppress(ForeignState, LogTampered):
                fold, _ = fold_of(snapshot.rows, Identity(job, topic_id), "the newest snapshot")
                start = fold.position.next_offset
                tail = ((raw.offset, raw.value) for raw in reader.to_end(start - 1))
                return _read(fold, behind(fold, tail)), start
        return _read(Fold(), ((raw.offset, raw.value) for raw in reader.to_end())), 0


def _read(fold: Fold, entries: Entries) -> Fold:
    walker = Walker(fold)
    for chunk in chunks(entries):
        walker.read(chunk)
    fold.check_doubts()
    return fold
