"""antdt avoid-nodes."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import click

from antdt_streams.cli.common import connection_options, emit_json, job_argument, note
from antdt_streams.local.place import Place

HOUR_MS = 3_600_000


@click.command()
@job_argument
@click.option(
    "--format",
    "as_",
    type=click.Choice(["list", "nodeAffinity", "patch", "json"]),
    default="list",
    show_default=True,
    help="One name a line; the affinity of a pod; a JSON patch for a resource; or all that is known.",
)
@click.option(
    "--kind",
    type=click.Choice(["job", "jobset", "volcano", "trainjob"]),
    default="job",
    show_default=True,
    help="With --format patch: of which resource.",
)
@click.option(
    "--expire-h",
    type=click.FloatRange(min=0, min_open=True),
    default=24.0,
    show_default=True,
    help="Hours for which a node is avoided.",
)
@click.option(
    "--max",
    "nodes_max",
    type=click.IntRange(min=0),
    help="Nodes at most, the newest first.  [default: a quarter of those that the job has seen, at least one]",
)
@connection_options
def avoid_nodes(job: str, as_: str, kind: str, expire_h: float, nodes_max: int | None, place: Place) -> None:
    """Name the nodes whose workers were started again because they were slow, for a scheduler to avoid.

    From the decisions and the log: no longer than --expire-h, and not where the slowness has turned out not to be the
    node's. A node goes by ANTDT_NODE of its workers, else by their host's name.

    \b
    antdt avoid-nodes my-job                                 one a line
    kubectl patch job my-job --type json -p "$(antdt avoid-nodes my-job --format patch)"
    sbatch --exclude "$(antdt avoid-nodes my-job | paste -sd,)" antdt.sbatch
    """
    from antdt_streams.views import avoided

    place.connection.check_reachable()
    found = avoided.avoided_of(place.connection, job, int(time.time() * 1000), int(expire_h * HOUR_MS), nodes_max)
    for incarnation in found.unknown:
        note(f"{incarnation} was to start again and is not in the log: its node is not known.")
    if found.left_out:
        note(f"{found.left_out} more would be avoided, but for --max.")
    names = [one.node for one in found.nodes]
    if as_ == "json":
        emit_json({"job": job, "nodes": [asdict(one) for one in found.nodes], "left_out": found.left_out})
    elif as_ == "nodeAffinity":
        click.echo(json.dumps(avoided.affinity(names), indent=2))
    elif as_ == "patch":
        click.echo(json.dumps(avoided.patch(names, kind)))
    elif names:
        click.echo("\n".join(names))
