"""The command line of `antdt launch`: what of it becomes options and what settings, and the exit status."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import click
from antdt_schemas.address import LOOPBACK
from antdt_schemas.connection import ENV_BOOTSTRAP, ENV_FILE
from antdt_schemas.data_folder import ENV_DATA
from antdt_schemas.errors import AntdtError
from antdt_schemas.exporting import ENV_HOST, ENV_PORT

from antdt.connect.settings import GRACE_S
from antdt.host.child import leave
from antdt.launch import nodes
from antdt.launch.launcher import Launcher, LaunchOptions
from antdt.launch.output import say

HELP = {"help_option_names": ["-h", "--help"]}


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, **HELP})
@click.option(
    "-n",
    "--workers",
    envvar="PET_NPROC_PER_NODE",
    default="1",
    show_default=True,
    help="Workers here: a number; or gpu, cpu, one for each; or auto, gpu where there are any.",
)
@click.option(
    "--servers",
    type=click.IntRange(0),
    default=0,
    help="Parameter servers of the whole job, beside the workers (strategy=antdt.ParameterServer()). On several "
    "machines all say the same, and the first one starts them.",
)
@click.option(
    "--servers-here",
    type=int,
    default=-1,
    help="Servers that this machine starts, if they are to be on several, or on one without workers (-n 0).",
)
@click.option(
    "--first-server",
    type=int,
    default=-1,
    help="Number of the first server here, where machines differ.",
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
    "restarts_max",
    type=int,
    default=3,
    show_default=True,
    help="How often a worker is started again without progress in between. With 0, one that is ordered to be started "
    "again ends the launch with 76: start it elsewhere.",
)
@click.option(
    "--restart-elsewhere",
    "elsewhere",
    is_flag=True,
    help="A worker that is ordered to be started again ends the launch with 76, too, while others that die are started "
    "again here: for whoever starts pods, or jobs of a cluster.",
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
    "reach_s",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds to wait for a broker that does not answer.",
)
@click.option(
    "--torch-env", is_flag=True, help="Set RANK, WORLD_SIZE, MASTER_ADDR and the rest of torchrun's variables."
)
@click.option("--metrics-port", type=int, envvar=ENV_PORT, help="Serve metrics for Prometheus here; 0: on a free port.")
@click.option("--metrics-host", envvar=ENV_HOST, default=LOOPBACK, show_default=True, help="The address for that.")
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
    servers: int,
    servers_here: int,
    first_server: int,
    **options: Any,
) -> None:
    """Start the workers of a job on this machine, and stay until all of them have ended.

    \b
    antdt launch --job my-job -n 4 train.py --lr 0.1
    antdt launch --job my-job -n 4 -- -m my.module --lr 0.1

    Each worker runs SCRIPT with what follows it, and finds its place in ANTDT_RANK, ANTDT_LOCAL_RANK and
    ANTDT_WORLD_SIZE. One that is killed is started again. On several machines, give each --nnodes and --node-rank, as
    torchrun's variables PET_NNODES and PET_NODE_RANK do; or --first-rank and --world-size where they differ. Where
    servers are to be on several machines, give each --servers-here; and --first-server where they differ.

    Ctrl-C (or SIGTERM) lets workers finish their step and leave within --grace-s; a second one ends them at once. A job
    whose workers somebody else runs is left alone (42), unless --take-over asks that launch to leave.
    """
    named = {"ANTDT_JOB": job, ENV_BOOTSTRAP: bootstrap_servers, ENV_FILE: kafka_config, ENV_DATA: data_dir}
    environ = dict(os.environ) | {key: value for key, value in named.items() if value}
    try:
        here = nodes.workers_here(workers)
        first, world = nodes.first_and_world(here, nnodes, node_rank, first_rank, world_size)
        parts = nodes.servers_here(servers, servers_here, first_server, node_rank, first_rank)
        options |= {"servers": servers, "servers_here": parts}
        found = LaunchOptions(workers=here, first_rank=first, world_size=world, node_rank=node_rank, **options)
        launcher = Launcher(found, environ)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: launcher.tell())
        status = launcher.run()
    except AntdtError as error:
        say(f"antdt launch: {error}")
        status = int(error.exit_code)
    leave(status)
