"""antdt topics create | grant | print | list | check | tail."""

from __future__ import annotations

import sys
from dataclasses import asdict
from time import monotonic

import click
from antdt_schemas.errors import UsageError
from antdt_schemas.topics import BY_SUFFIX, DURABLE_COPIES, TOPICS

from antdt_streams.cli.common import connection_options, emit_json, job_argument, json_option, replication_option
from antdt_streams.kafka import declared, grants, topics_admin
from antdt_streams.kafka.reader import TopicReader
from antdt_streams.kafka.reader import told as told_record
from antdt_streams.kafka.topic_rules import ABSENT, Difference
from antdt_streams.local.place import Place
from antdt_streams.views.costs import read_costs


@click.group()
def topics() -> None:
    """Look at what a job wrote to Kafka, or create its topics."""


@topics.command(short_help="Create the topics of a job.")
@job_argument
@replication_option
@click.option("--resume", is_flag=True, help="Complete the topics of a job that exists already.")
@connection_options
def create(job: str, replication: int | None, resume: bool, place: Place) -> None:
    """Create the topics of a job.

    `antdt up` does so itself; this is for services that are started one by one.
    """
    place.connection.check_reachable()
    for name in topics_admin.create(place.connection, job, replication=replication, resume=resume):
        click.echo(name)


@topics.command(short_help="Grant what a job's processes need, by ACLs.")
@job_argument
@connection_options
def grant(job: str, place: Place) -> None:
    """Grant what the processes of a job need, on a broker that asks who is there.

    To the principals ledger, services (monitor and controller), worker and auditor, with the credentials of somebody
    who may grant. Granting twice changes nothing.
    """
    for line in grants.grant(place.connection, job):
        click.echo(line)


@topics.command("print", short_help="Print topics and rights for other tools.")
@job_argument
@click.option(
    "--format",
    "as_",
    type=click.Choice(list(declared.FORMATS)),
    default="strimzi",
    show_default=True,
    help="Strimzi's KafkaTopic and KafkaUser; a script of Kafka's own tools; or Terraform's Mongey/kafka.",
)
@click.option(
    "--replication",
    type=int,
    default=DURABLE_COPIES,
    show_default=True,
    help="Copies of each partition.",
)
@click.option("--cluster", default="my-cluster", show_default=True, help="Strimzi: name of the Kafka resource.")
@click.option(
    "--authentication",
    type=click.Choice(declared.AUTHENTICATIONS),
    default="scram-sha-512",
    show_default=True,
    help="Strimzi: how users show who they are.",
)
def print_(job: str, as_: str, replication: int, cluster: str, authentication: str) -> None:
    """Print the topics of a job, and what its processes may do, as other tools declare them. Asks no broker.

    \b
    antdt topics print my-job | kubectl apply -f -
    antdt topics print my-job --format kafka-topics.sh > topics.sh
    antdt topics print my-job --format terraform > my-job.tf

    The job then goes on with topics that exist already: `antdt up my-job --resume`.
    """
    click.echo(declared.FORMATS[as_](declared.Declared(job, replication, cluster, authentication)), nl=False)


@topics.command("list", short_help="List jobs, or the topics of one.")
@click.argument("job", required=False)
@json_option
@connection_options
def list_(job: str | None, as_json: bool, place: Place) -> None:
    """List the jobs of a broker; with JOB, its topics, what each one holds, and what a day of it costs."""
    place.connection.check_reachable()
    if job is None:
        jobs = topics_admin.list_jobs(place.connection)
        emit_json({"jobs": jobs}) if as_json else click.echo("\n".join(jobs))
        return
    ids, costs = topics_admin.topic_ids(place.connection, job), read_costs(place.connection, job)
    if as_json:
        listed = {t.name(job): ids.get(t.suffix) for t in TOPICS}
        emit_json({"job": job, "topics": listed, "costs": {suffix: asdict(cost) for suffix, cost in costs.items()}})
        return
    for topic in TOPICS:
        click.echo(f"{topic.name(job):<40} {ids.get(topic.suffix, 'missing'):<24} {topic.purpose}")
        if topic.suffix in costs:
            click.echo(f"    {costs[topic.suffix]}")


@topics.command(short_help="Compare a job's topics with what they must be.")
@job_argument
@click.option("--repair", is_flag=True, help="Set the settings that differ to what they must be.")
@connection_options
def check(job: str, repair: bool, place: Place) -> None:
    """Compare a job's topics with what they must be; exit status 1 if something differs."""
    from antdt_streams.ledger.requests import unread

    if repair:
        for set_now in topics_admin.repair(place.connection, job):
            click.echo(f"{set_now}: set")
        return
    differences = topics_admin.check(place.connection, job)
    for difference in differences:
        click.echo(f"{'must not be: ' if difference.fatal else ''}{told(difference, job)}")
    if not any(difference.found == ABSENT for difference in differences) and (said := unread(place.connection, job)):
        click.echo(said)
    sys.exit(1 if differences else 0)


def told(difference: Difference, job: str) -> str:
    """What differs, what comes of it, and what to do about it."""
    return f"{difference.said}. {difference.mend(job)}"


@topics.command(short_help="Print a topic's records as JSON lines.")
@job_argument
@click.argument("topic")
@click.option("--last", type=int, default=None, help="Only the last N records of each partition.  [default: all]")
@click.option("--follow", "-f", is_flag=True, help="Then go on with what is written, until Ctrl-C.")
@click.option("--limit", type=int, default=None, help="End after N records.")
@click.option("--seconds", type=float, default=None, help="With --follow: end after so many seconds.")
@connection_options
def tail(
    job: str, topic: str, last: int | None, follow: bool, limit: int | None, seconds: float | None, place: Place
) -> None:
    """Print a topic's records as JSON lines.

    TOPIC is steps (timings of every step), measurements (what the Monitor makes of them), decisions (batch sizes, with
    the reason), shard-log (every assignment and every committed step), requests and replies (between workers and
    ledger), dead-letters (records that could not be read) or snapshots.

    \b
    antdt topics tail my-job decisions               all so far
    antdt topics tail my-job steps --last 20 -f      the last 20, then what comes
    """
    if topic not in BY_SUFFIX:
        raise UsageError(f"No topic {topic!r}: take one of {', '.join(BY_SUFFIX)}.")
    place.connection.check_reachable()
    chosen, shown = BY_SUFFIX[topic], 0
    with TopicReader(place.connection, job, chosen) as reader:
        reader.follow(last)
        until = monotonic() + seconds if seconds is not None else None
        while follow or reader.is_behind():
            for raw in reader.poll(0.2):
                emit_json(told_record(chosen, raw))
                shown += 1
                if limit is not None and shown >= limit:
                    return
            if until is not None and monotonic() > until:
                return
