"""antdt doctor."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from antdt_schemas.connection import BOOTSTRAP
from antdt_schemas.data_folder import BROKER, data_folder, running
from antdt_schemas.errors import AntdtError
from antdt_schemas.topics import check_job

from antdt_streams.cli.common import connection_flags, emit_json, json_option
from antdt_streams.doctor import broker, client, job, machine, rights
from antdt_streams.doctor.checks import Finding, Level, Result, Setup, examine
from antdt_streams.doctor.client import Setting, configuration
from antdt_streams.local.place import place_of

CHECKS = (*machine.CHECKS, *client.CHECKS, *broker.CHECKS, *rights.CHECKS, *job.CHECKS)
ROLES = ("ledger", "services", "worker", "auditor", "operator")  # the principals of `acls.txt`
WIDTH, INDENT = 18, " " * 33


@click.command()
@click.argument("job", required=False, callback=lambda _, __, value: value and check_job(value))
@click.option(
    "--role",
    "roles",
    type=click.Choice(ROLES),
    multiple=True,
    help="What this client is to be allowed; several: repeat it.  [default: to be any one part of the job]",
)
@json_option
@connection_flags
def doctor(
    job: str | None,
    roles: tuple[str, ...],
    as_json: bool,
    bootstrap_servers: str | None,
    kafka_config: Path | None,
    data_dir: Path | None,
    framing: str | None,
) -> None:
    """Say what would keep a job from running: on this machine, on its broker, and with JOB of that job itself.

    Each line is one check: ok, a warning, a FAULT with what mends it, or why it could not be looked at. Then the
    settings of the Kafka clients as they were merged, secrets masked, with where each came from. Nothing is changed or
    left behind, and every check has a bound. Exit status 1 if a job would not run, else 0.
    """

    def say(some: Sequence[Result]) -> None:
        for line in lines(some) if not as_json else ():
            click.echo(line)

    results, silent = list[Result](), list[Result]()  # silent: in a row, for one reason
    with quiet():
        setup = setup_of(job, roles, bootstrap_servers, kafka_config, data_dir, framing or "")
        for result in examine(CHECKS, setup):
            results.append(result)
            if silent and result.findings != silent[0].findings:
                say(silent)
                silent = []
            if [one.level for one in result.findings] == [Level.UNKNOWN]:
                silent.append(result)
            else:
                say([result])
        say(silent)
    settings = configuration(setup.connection) if setup.connection is not None else []
    count = counted(results)
    if as_json:
        emit_json(document(setup, results, settings))
    else:
        _show(settings, count)
    sys.exit(1 if count[Level.FAULT] else 0)


@contextmanager
def quiet() -> Iterator[None]:
    """What is logged meanwhile is a finding as well."""
    ours = logging.getLogger("antdt")
    before = ours.level
    ours.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ours.setLevel(before)


def setup_of(
    job: str | None,
    roles: Sequence[str],
    bootstrap_servers: str | None = None,
    kafka_config: Path | None = None,
    data_dir: Path | None = None,
    framing: str = "",
) -> Setup:
    """What is looked at: whatever is wrong with the settings is a finding, and ends nothing."""
    setup = Setup(os.environ, data_dir or data_folder(os.environ), job=job or "", roles=roles)
    nobody = f"no broker is named, and none of `antdt up` runs in {setup.data}: `antdt up JOB` starts one"
    try:
        place = place_of(bootstrap_servers, kafka_config, data_dir, framing)
        setup.named = place.named
        here = running(setup.data / BROKER)
        if place.named or here:
            setup.connection = place.connection.named(job or "", "doctor")
        if setup.connection is not None and not place.named:
            origins = {**setup.connection.origins, BOOTSTRAP: f"the broker of {setup.data}"}
            setup.connection = replace(setup.connection, origins=origins)
    except AntdtError as error:
        setup.shared["settings"], setup.named = error, True
        nobody = "the settings of the client cannot be used: see above"
    if setup.connection is None:
        setup.absent |= {"connection": nobody, "broker": nobody}
    setup.absent.setdefault("broker", "no broker was reached: see above")
    if job is None:
        setup.absent |= dict.fromkeys(("job", "topics"), "no job is named")
    setup.absent.setdefault("topics", "its topics were not found: see above")
    return setup


def lines(results: Sequence[Result]) -> Iterator[str]:
    """A line for each finding, and one for what mends it. results: of which all found the same."""
    for finding in results[0].findings if results else ():
        level = finding.level.upper() if finding.level is Level.FAULT else finding.level
        name, *more = (result.check.name for result in results)
        yield f"{level:<13} {name:<{WIDTH}} {_sentence(finding.found)}"
        if more:
            yield f"{INDENT}Nor {', '.join(more)}."
        if finding.fix:
            yield f"{INDENT}-> {_sentence(finding.fix)}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "`", "…")) else f"{text}."


def counted(results: Sequence[Result]) -> dict[Level, int]:
    found = [finding.level for result in results for finding in result.findings]
    return {level: found.count(level) for level in Level}


def document(setup: Setup, results: Sequence[Result], settings: Sequence[Setting]) -> dict[str, Any]:
    """For `--json`."""

    def told(result: Result, finding: Finding) -> dict[str, Any]:
        return {"check": result.check.name, "looks_at": result.check.looks_at, **asdict(finding)}

    return {
        "job": setup.job or None,
        "runs": not counted(results)[Level.FAULT],
        "findings": [told(result, finding) for result in results for finding in result.findings],
        "settings": [asdict(setting) for setting in settings],
    }


def _show(settings: Sequence[Setting], count: dict[Level, int]) -> None:
    if settings:
        click.echo("\nSettings of the Kafka clients:")
        width = max(len(f"{one.key}={one.value}") for one in settings)
        for one in settings:
            click.echo(f"  {f'{one.key}={one.value}':<{min(width, 60)}}  ({one.origin})")
    faults, warnings, unknown = count[Level.FAULT], count[Level.WARNING], count[Level.UNKNOWN]
    verdict = "A job would not run" if faults else "Nothing was found that keeps a job from running"
    parts = [f"{faults} fault{'s' if faults != 1 else ''}", f"{warnings} warning{'s' if warnings != 1 else ''}"]
    if unknown:
        parts.append(f"{unknown} not looked at")
    click.echo(f"\n{verdict}: {', '.join(parts)}.")
