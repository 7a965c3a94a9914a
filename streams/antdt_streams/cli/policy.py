"""antdt policy: what the Controller's policy is and does, and what people and schedulers tell it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import click
from antdt_schemas import codec, records
from antdt_schemas.errors import ExitCode, Unavailable, UsageError
from antdt_schemas.launch_locks import process_name
from antdt_schemas.topics import DECISIONS

from antdt_streams.cli.common import (
    Group,
    connection_options,
    emit_json,
    job_argument,
    json_option,
    note,
    stop_on_signals,
)
from antdt_streams.kafka import operating
from antdt_streams.local.place import Place

EFFECTS_SHOWN = 10
ASK_S = 5.0
LEASES = 3  # looks at a scheduler for which a word of it holds


@click.group(cls=Group)
def policy() -> None:
    """Show or change the policy of a job's Controller, and say whether its cluster is busy.

    \b
    antdt policy show my-job                              parameters, and what its decisions came to
    antdt policy set my-job gain_min=0.08 restart=off     at once, without a restart
    antdt policy promote my-job dd                        another one decides from now on
    antdt policy busy my-job --for-s 600                  nobody is started again meanwhile
    antdt policy watch my-job --command 'pending-pods'    busy while that ends with 0
    """


reason_option = click.option("--reason", default="", help="Why, for whoever reads the log later.")


@policy.command("set")
@job_argument
@click.argument("changes", nargs=-1, required=True, metavar="NAME=VALUE...")
@click.option("--policy", "name", default="", help="Only if the Controller's policy is this one.")
@reason_option
@connection_options
def set_(job: str, changes: tuple[str, ...], name: str, reason: str, place: Place) -> None:
    """Change parameters of the policy.

    They count from the next measurement on, and are stamped into each decision. NAME= takes one back to its default.
    """
    pairs = _pairs(changes)
    place.connection.check_reachable()
    click.echo(operating.set_policy(place.connection, job, pairs, reason, name))


def _pairs(changes: tuple[str, ...]) -> dict[str, str]:
    pairs = [change.partition("=") for change in changes]
    if wrong := [given for given, (key, equals, _) in zip(changes, pairs, strict=True) if not equals or not key]:
        raise UsageError(f"{wrong[0]!r}: say NAME=VALUE.")
    return {key: value for key, _, value in pairs}


@policy.command()
@job_argument
@click.argument("name")
@click.argument("changes", nargs=-1, metavar="[NAME=VALUE...]")
@click.option("--reason", required=True, help="Why, for whoever reads the log later.")
@connection_options
def promote(job: str, name: str, changes: tuple[str, ...], reason: str, place: Place) -> None:
    """Let another policy decide from now on, with these parameters.

    NAME is that of a policy, or FILE.py:CLASS, in the folder that `antdt up` was started in. What is in force stays
    until it decides otherwise; it remembers nothing, and sees what was measured of earlier decisions. It decides until
    another one is promoted, also after a restart; `antdt up --policy` with another policy than before ends that.
    """
    from antdt_streams.views import orders

    pairs = _pairs(changes)
    place.connection.check_reachable()
    click.echo(orders.promote(place.connection, job, name, pairs, reason))


@policy.command()
@job_argument
@json_option
@connection_options
def show(job: str, as_json: bool, place: Place) -> None:
    """Show the policy, its parameters, and measured effects."""
    from antdt_streams.kafka.reader import TopicReader, decoded

    place.connection.check_reachable()
    with TopicReader(place.connection, job, DECISIONS) as reader:
        decisions = [decision for _, decision in decoded(reader.to_end(), records.Decision)]
    newest = _asked(place, job) or (decisions[-1] if decisions else None)
    if newest is None:
        raise Unavailable(f"No Controller of job {job!r} answers, and none has decided anything.", "Start `antdt up`.")
    effects = [d.effect for d in decisions if d.effect is not None]
    found: dict[str, Any] = {
        "policy": newest.policy,
        "version": newest.policy_version,
        "parameters": json.loads(newest.parameters) if newest.parameters else {},
        "plan": newest.plan,
        "effects": [codec.to_json(effect) for effect in effects],
    }
    if as_json:
        emit_json(found)
        return
    click.echo(f"policy {newest.policy} (version {newest.policy_version}), plan {newest.plan}")
    for name, value in found["parameters"].items():
        click.echo(f"  {name}={str(value).lower() if isinstance(value, bool) else value}")
    for decision in [d for d in decisions if d.effect is not None][-EFFECTS_SHOWN:]:
        click.echo(f"  {decision.reason}")


def _asked(place: Place, job: str) -> records.Decision | None:
    """What the Controller says itself; None where none runs: then its last decision stands."""
    from antdt_streams.kafka.steer import steer

    try:
        return steer(place.connection, job, records.Steering(process_name()), ASK_S)
    except Unavailable as error:
        note(f"No Controller answers now ({str(error).splitlines()[0]}): this is what its last decision says.")
    except UsageError as error:  # whoever may only read
        note(f"The Controller is not asked ({str(error).splitlines()[0]}): this is what its last decision says.")
    return None


@policy.command()
@job_argument
@click.option("--for-s", type=click.FloatRange(min=0), default=0.0, help="Seconds; default: until `free` is said.")
@reason_option
@connection_options
def busy(job: str, for_s: float, reason: str, place: Place) -> None:
    """Say that the cluster is busy: no node is started again."""
    _tell(place, job, _word(records.Cluster.BUSY, for_s, reason))


@policy.command()
@job_argument
@reason_option
@connection_options
def free(job: str, reason: str, place: Place) -> None:
    """Say that the cluster has room again."""
    _tell(place, job, _word(records.Cluster.FREE, 0.0, reason))


@policy.command()
@job_argument
@click.option("--command", help="Shell command of your scheduler: the cluster is busy while it ends with 0.")
@click.option("--file", type=click.Path(path_type=Path), help="The cluster is busy while this file is there.")
@click.option("--every-s", type=click.FloatRange(min=0.1), default=30.0, show_default=True, help="Between two looks.")
@connection_options
def watch(job: str, command: str | None, file: Path | None, every_s: float, place: Place) -> None:
    """Say what a scheduler's command or file says.

    Runs until it is stopped. What is said holds for three looks: if this command dies, it is not believed for ever.
    The first line that the command prints, or that the file has, is the reason.
    """
    if (command is None) == (file is None):
        raise UsageError("Name either --command or --file.")
    stopping, was_busy = stop_on_signals(), False
    while not stopping.is_set():
        is_busy, why = _of_command(command, every_s) if command is not None else _of_file(file)
        word = records.Cluster.BUSY if is_busy else records.Cluster.FREE
        if is_busy or was_busy:
            try:
                _tell(place, job, _word(word, LEASES * every_s if is_busy else 0.0, why))
                was_busy = is_busy
            except Unavailable as error:
                note(f"antdt policy watch: {error}")
        stopping.wait(every_s)
    raise SystemExit(ExitCode.DRAINED)


def _of_command(command: str, timeout_s: float) -> tuple[bool, str]:
    try:
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        note(f"antdt policy watch: {command!r} took more than {timeout_s:g} s: that says nothing")
        return False, ""
    return done.returncode == 0, _line(done.stdout)


def _of_file(file: Path | None) -> tuple[bool, str]:
    assert file is not None
    try:
        return True, _line(file.read_text(errors="replace"))
    except OSError:
        return False, ""


def _line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:200]


def _word(cluster: records.Cluster, for_s: float, reason: str) -> records.Steering:
    return records.Steering(process_name(), cluster=cluster, busy_s=for_s, reason=reason)


def _tell(place: Place, job: str, said: records.Steering) -> None:
    place.connection.check_reachable()
    click.echo(operating.tell(place.connection, job, said))
