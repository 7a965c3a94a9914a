"""antdt status, why, audit."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from antdt_schemas.errors import ExitCode
from antdt_schemas.space import Block, Space, record_name

from antdt_streams.cli.common import connection_options, emit_json, job_argument, json_option
from antdt_streams.cli.replay import in_parts, log_options, open_log, processes_option
from antdt_streams.local.place import Place
from antdt_streams.proof.audit import audit as audit_log
from antdt_streams.proof.audit import report_of

FAULTS_SHOWN = 20
WATCHED_ONLY = "only watched: a framework trains it, and this log vouches for no sample"


@click.command()
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
    account = in_parts(job, file, anchors, processes, counting=True)
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


def show_audit(report: dict[str, Any]) -> None:
    click.echo(report["verdict"])
    for name in ("missing", "repeated", "quarantined"):
        for epoch, start, end in report.get(name, [])[:20]:
            click.echo(f"  {name}: epoch {epoch}, positions {start} to {end - 1}{_in_topic(report, start, end)}")
    _show_faults(report.get("faults", []))
    _show_resizes(report.get("batch_sizes", []))
    for loss in report.get("accepted_losses", []):
        click.echo(f"  accepted by {loss['author']}: entries up to {loss['next_offset']} are lost: {loss['reason']}")
    for move in report.get("requests_moved", []):
        click.echo(f"  requests went on at {move['next']}, which cost nothing: {move['reason']}")
    if skipped := report.get("skipped_steps"):
        click.echo(f"  {skipped} steps were skipped: their gradient was not finite (roll-backs included)")
    for name in ("entries", "void_entries", "steps", "refused_reports", "head_hash", "digest", "file"):
        if report.get(name) is not None:
            click.echo(f"  {name.replace('_', ' '):<16} {report[name]}")


def _in_topic(report: dict[str, Any], start: int, end: int) -> str:
    """Which records these positions are."""
    if "blocks" not in report:
        return ""
    space = Space(Block(*block) for block in report["blocks"])
    if end > space.length:
        return ""  # not all blocks are listed
    runs = [f"{record_name(report['topic'], p, at)} to {at + n - 1}" for _, p, at, n in space.runs(start, end - start)]
    return f": {', '.join(runs)}"


@click.command()
@job_argument
@json_option
@connection_options
def status(job: str, as_json: bool, place: Place) -> None:
    """Show a job: progress, members, plan, newest decisions."""
    place.connection.check_reachable()
    from antdt_streams.views.job import status_of

    found = status_of(place.connection, job)
    if as_json:
        emit_json(found)
        return
    click.echo(f"job {job}   run {found['run_id'] or '- (no worker has joined yet)'}")
    click.echo(f"  {WATCHED_ONLY if found['watched'] else _done(found)}")
    if found["topic"]:
        ends = ", ".join(f"{partition}@{end}" for partition, end in found["topic"]["ends"].items())
        more = "" if found["topic"]["ended"] else f"; it grows until `antdt end {job}`"
        click.echo(f"  topic {found['topic']['name']} up to {ends}{more}")
    state = "open" if found["open"] else f"closed: {found['next_generation']}"
    state = f"done: {found['file']}" if found["file"] else state
    click.echo(f"  generation {found['generation']} ({state}), members: {', '.join(found['members']) or 'none'}")
    if found["attached"]:
        click.echo(f"  the members are servers; workers: {', '.join(found['attached'])}")
    click.echo(f"  log: {found['entries']} entries, digest {found['digest'] or '-'}")
    if found["void_entries"]:
        click.echo(f"  {found['void_entries']:,} of these entries are void: of former leaders, or of somebody else")
    click.echo(f"  in office: {found['leader'] or 'nobody yet'}")
    for service, one in found["services"].items():
        click.echo(f"  {service:<10} {one['said']}")
    _show_standings(found["standings"])
    if found["stopped"]:
        click.echo(f"  the job {found['stopped']}")
    _show_resizes(found["batch_sizes"])
    steps = ", ".join(str(c["step"]) for c in found["checkpoints"])
    if not found["watched"]:
        click.echo(f"  checkpoints at steps {steps or 'none'} (go back to one by `antdt rollback {job} --step STEP`)")
    if found["quarantined"]:
        click.echo(f"  {found['quarantined']:,} samples in quarantine (try them again by `antdt readmit {job}`)")
        _show_faults(found["faults"])
    if skipped := found["skipped_steps"]:
        click.echo(f"  {skipped} steps were skipped: their gradient was not finite (see the workers' output)")
    if found["accepted_losses"]:
        click.echo(f"  {found['accepted_losses']} losses of log entries were accepted: see `antdt audit {job}`")
    for decision in found["decisions"][-5:]:
        click.echo(f"  plan {decision['plan']}: {decision['reason']}")


def _show_standings(standings: dict[str, Any]) -> None:
    for incarnation, said in standings.items():
        detail = f" ({said['detail']})" if said["detail"] else ""
        allowed = f" of {said['allowed_s']:.0f} s announced" if said["allowed_s"] else ""
        what = f"{said['phase']} for {said['phase_s']:.1f} s{allowed}{detail}"
        click.echo(f"    {incarnation}: {what}, {said['age_s']:.0f} s ago")


def _done(found: dict[str, Any]) -> str:
    share = f"{100 * found['committed'] / (found['samples_total'] or 1):.1f} %"
    done = f"{found['committed']:,} of {found['samples_total']:,} samples committed ({share})"
    return f"{done}, step {found['step']}, {found['leased']:,} leased"


@click.command()
@job_argument
@click.argument("worker")
@json_option
@connection_options
def why(job: str, worker: str, as_json: bool, place: Place) -> None:
    """Say why a worker is slow, or is not: the Monitor's verdict, its evidence, what was done, and what is to be done.

    WORKER is its name, w0 and so on, or that of a server. Each figure says where in its topic it comes from.
    """
    from antdt_streams.views.why import why_of

    place.connection.check_reachable()
    found = why_of(place.connection, job, worker)
    if as_json:
        emit_json(asdict(found))
        return
    click.echo(found.verdict)
    for heading, lines in (("why", found.evidence), ("done", found.done or ("nothing",)), ("next", (found.next,))):
        for number, line in enumerate(lines):
            click.echo(f"  {heading if not number else '':<5} {line}")


def _show_resizes(resizes: list[dict[str, Any]]) -> None:
    for one in resizes:
        since = f"from step {one['step']:,} on" if one["step"] else "from the next generation on"
        click.echo(f"  {since} a step has {one['batch_size']} samples, by {one['author']}: {one['reason']}")


def _show_faults(faults: list[dict[str, Any]]) -> None:
    for one in faults[:FAULTS_SHOWN]:
        key = f" ({one['key']})" if one["key"] else ""
        last = one["start"] + one["length"] - 1
        where = f"position {last}" if one["length"] == 1 else f"positions {one['start']} to {last}"
        click.echo(f"    {where} of epoch {one['epoch']}{key}: {one['reason']}")
    if len(faults) > FAULTS_SHOWN:
        click.echo(f"    and {len(faults) - FAULTS_SHOWN} more: see --json")
