"""antdt chaos."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from antdt_schemas.errors import UsageError

from antdt_streams.cli.common import note, stop_on_signals

if TYPE_CHECKING:
    from antdt_streams.chaos.run import Profile, Verdict


@click.command(context_settings={"show_default": True})
@click.option("--seeds", default=5, help="How many schedules.")
@click.option("--first-seed", default=0, help="The first of them.")
@click.option("--workers", default=4, help="Worker processes.")
@click.option("--servers", default=0, help="Parameter servers; without any, workers train by AllReduce.")
@click.option("--mode", type=click.Choice(["bsp", "asp", "ssp"]), default="bsp", help="Of parameter servers.")
@click.option("--backup", default=0, help="Workers that a version of parameter servers does not wait for.")
@click.option("--profile", type=click.Choice(["short", "long"]), default="short")
@click.option("--kind", "kinds", multiple=True, help="A kind of fault; several: repeat it. Default: all of them.")
@click.option("--topic", is_flag=True, help="The samples are records of a topic, with aborted transactions.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write everything to this file.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder for broker, state and logs; kept.")
def chaos(
    seeds: int,
    first_seed: int,
    profile: str,
    kinds: tuple[str, ...],
    topic: bool,
    json_file: Path | None,
    data_dir: Path | None,
    **training: Any,
) -> None:
    """Break a real run on purpose, by seeded schedules, and prove that nothing was lost or repeated.

    Each seed trains a small model with a broker, services and workers of its own while processes are killed, stopped
    and told to end, the broker goes away and clocks jump; then the log and the workers' own records are audited. Exit
    status 0 if every seed holds. The logs of a seed that does not are kept, and one command repeats it.
    """
    from antdt_streams.chaos.run import Chaos, available, counts
    from antdt_streams.chaos.schedule import schedule

    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: run at least one.")
    chosen, missing = available(_chosen(profile, kinds, training, topic=topic))
    for line in missing:
        note(line)
    stopping = stop_on_signals()
    folder = data_dir or Path(tempfile.mkdtemp(prefix="antdt-chaos-"))
    verdicts: list[Verdict] = []
    running = Chaos(folder, chosen, stopping)
    try:
        for seed in range(first_seed, first_seed + seeds):
            note(f"seed {seed}: " + "; ".join(map(str, schedule(seed, chosen.schedule))))
            verdict = running.run(seed)
            verdicts.append(verdict)
            _tell(verdict, profile, kinds, training, topic=topic)
    finally:
        if data_dir is None and all(v.passed for v in verdicts):
            shutil.rmtree(folder, ignore_errors=True)
    found = counts(verdicts, chosen.schedule.kinds)
    passed = sum(v.passed for v in verdicts)
    click.echo(f"{passed} of {len(verdicts)} exactly once, {sum(found.values())} faults carried out:")
    for kind, count in found.items():
        click.echo(f"  {kind:<17} {count}")
    if json_file is not None:
        seeds_json = [v.to_json() for v in verdicts]
        document = {"passed": passed, "seeds": seeds_json, "faults": found, "not_available": missing}
        json_file.write_text(json.dumps(document, indent=1), encoding="utf-8")
    sys.exit(0 if passed == len(verdicts) else 1)


def _chosen(profile: str, kinds: tuple[str, ...], training: dict[str, Any], *, topic: bool) -> Profile:
    from antdt_streams.chaos.run import PROFILES
    from antdt_streams.chaos.schedule import WITH_SERVERS, Kind

    unknown = [kind for kind in kinds if kind not in list(Kind)]
    if unknown:
        raise UsageError(f"--kind {unknown[0]}: there is {', '.join(Kind)}.")
    chosen = PROFILES[profile]
    servers = training["servers"]
    kept = tuple(map(Kind, kinds)) or (WITH_SERVERS if servers else chosen.schedule.kinds)
    if topic:  # what no worker survives is decided where samples are loaded one by one
        kept = tuple(kind for kind in kept if kind is not Kind.POISON_SAMPLE)
    return replace(
        chosen,
        schedule=replace(chosen.schedule, workers=training["workers"], servers=servers, kinds=kept),
        training=replace(chosen.training, **training, topic=topic),
    )


def _tell(verdict: Verdict, profile: str, kinds: tuple[str, ...], training: dict[str, Any], *, topic: bool) -> None:
    done = f"{len(verdict.carried_out)} of {len(verdict.faults)} faults"
    for fault in verdict.faults:
        if fault not in verdict.carried_out:
            note(f"seed {verdict.seed}: not carried out: {fault}")
    if verdict.passed:
        a = verdict.audit
        note(
            f"seed {verdict.seed}: {a['verdict']} {done}, {verdict.wall_s:.0f} s; {a['steps']} steps, "
            f"{a['rolled_back_steps']} rolled back, {a['void_entries']} void entries, "
            f"{a['refused_reports']} refused reports"
        )
        return
    note(f"seed {verdict.seed}: FAILED. {done}, {verdict.wall_s:.0f} s")
    for line in verdict.wrong:
        note(f"  {line[:600]}")
    note(f"  logs: {verdict.folder}")
    options = "".join(
        f" --{name} {value}" for name, value in training.items() if training["servers"] or name == "workers"
    )
    options += f" --profile {profile}" + "".join(f" --kind {kind}" for kind in kinds) + " --topic" * topic
    note(f"  again: antdt chaos --seeds 1 --first-seed {verdict.seed}{options}")
