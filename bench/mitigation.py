"""Patterns of slowness against policies and strategies: `python -m bench.mitigation [--quick] --json FILE`.

Real processes on a real broker: ledger, Monitor, Controller, a launcher, four workers and, as the strategy is, two
servers, for each run anew. Slowness is time asleep for each sample, and for each gradient that a server takes, so that
two cores carry it. `time_s` is from the first step's samples to the last commit, by the broker's clock; `ideal_s` knows
the pattern and pays what a step costs beside (`bench.mitigation_patterns`); samples are counted by the audit. The file
is written after each run; runs that are in it are not done again. Beside it lies a picture, FILE with .svg. `overhead`
is a step of the whole apparatus against plain DistributedDataParallel, paired, in one job
(`bench.mitigation_overhead`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from antdt_schemas import codec
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_schemas.records import Action, Decision, Parameter, Steering
from antdt_schemas.strategies import is_asynchronous
from antdt_schemas.topics import DECISIONS
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.controller.core.deciding import misfit
from antdt_streams.demo.run import Watch
from antdt_streams.host.child import end, spawn
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.reader import TopicReader, decoded
from antdt_streams.kafka.steer import steer
from antdt_streams.local.place import Place
from antdt_streams.local.services import SERVICES, environment_of, start_services
from antdt_streams.local.supervise import last_words
from antdt_streams.policies.find import find
from antdt_streams.views.job import audit_of

from bench.common import machine, write
from bench.mitigation_overhead import overhead
from bench.mitigation_patterns import ALLREDUCE, PATTERNS, SERVERS, WORKERS, Pattern, Work, ideal_s
from bench.mitigation_picture import picture

ROOT = Path(__file__).parents[1]
POLICIES = ("even", "none", "lb-bsp", "adjust-bs", "nd", "dd", "backup")
STRATEGIES = (ALLREDUCE, "ps-bsp", "ps-bsp/drop", "ps-asp", "ps-asp/even", "ps-asp/colony")
"""`mitigation_worker.strategy_of` makes them; all but the first one have servers."""
LOSES = "backup-drop"  # samples: it says so, and a launch of it ends with 3
QUICK = ("none", "deterministic-3", "persistent")
QUICK_POLICIES = ("even", "lb-bsp", "nd", "dd")
# A restart here is a fork of a launcher that has imported torch; of a pod it is a minute. A server that is told to
# leave saves its part first: what it takes back is a moment.
PARAMETERS = {"nd": {"restart_s": "4", "pause_s": "1", "rollback_s": "2", "cooldown_s": "30"}}
RESTART_S = 4.0
LOOK_S, SAY_S, GRACE_S = 0.5, 15.0, 15.0


@dataclass(frozen=True)
class Size:
    """How large a run is; `samples` a whole number of global batches."""

    samples: int = 1280
    epochs: int = 20
    batch_size: int = 64
    sample_ms: float = 12.0

    def work(self, pattern: Pattern, strategy: str, seed: int) -> Work:
        servers = strategy != ALLREDUCE
        return Work(
            steps=self.samples // self.batch_size * self.epochs,
            batch_size=self.batch_size,
            sample_s=pattern.sample_ms(self.sample_ms, servers=servers) / 1000,
            fixed_s=pattern.fixed_ms / 1000,
            restart_s=RESTART_S,
            seed=seed,
            exchange_s=pattern.exchange_ms(servers=servers) / 1000,
            waits=not is_asynchronous(strategy),
        )


class Bench:
    """One broker for all runs. Whatever ends it, nothing is left running."""

    def __init__(self, connection: Connection, folder: Path, size: Size, data: str) -> None:
        self.connection, self.folder, self.size, self.data = connection, folder, size, data
        self._number = 0

    def run(self, pattern: str, strategy: str, policy: str, seed: int) -> dict[str, Any]:
        """One run to its end: what is measured of it."""
        self._number += 1
        job = f"mitigation-{os.getpid()}-{self._number}"
        place = Place(self.connection, True, self.folder / job, None)
        place.data.mkdir(parents=True)
        topics_admin.create(self.connection, job)
        result, log = place.data / "result.json", place.data / "workers.log"
        supervisor, watch = start_services(job, place, self.connection, SERVICES, policy), Watch(self.connection, job)
        try:
            assert supervisor.await_ready(120.0, threading.Event())
            if changes := PARAMETERS.get(policy):
                said = tuple(Parameter(*one) for one in changes.items())
                steer(
                    self.connection, job, Steering("bench", parameters=said, reason="what a restart costs here"), 60.0
                )
            watch.start()
            self._train(job, place, [*self._script(pattern, strategy, seed, result)], strategy, watch, supervisor, log)
        finally:
            watch.stop()
            supervisor.stop()
        report, decisions = audit_of(self.connection, job), decisions_of(self.connection, job)
        topics_admin.delete(self.connection, job)
        return {
            "pattern": pattern, "strategy": strategy, "policy": policy, "seed": seed,
            "time_s": report["train_s"], "steps": report["steps"],
            "samples_lost": sum(b - a for _, a, b in report["missing"]),
            "samples_repeated": sum(b - a for _, a, b in report["repeated"]),
            "samples_committed": report["committed"],
            "quality": json.loads(result.read_text())["quality"],
            "actions": actions_of(decisions), "exactly_once": report["exactly_once"],
            "load_1_min": round(os.getloadavg()[0], 1),
        }  # fmt: skip

    def _script(self, pattern: str, strategy: str, seed: int, result: Path) -> Iterator[str]:
        s = self.size
        given = {
            "pattern": pattern, "strategy": strategy, "seed": seed, "result": result, "data": self.data,
            "samples": s.samples, "epochs": s.epochs, "batch-size": s.batch_size, "sample-ms": s.sample_ms,
        }  # fmt: skip
        for name, value in given.items():
            yield from (f"--{name}", str(value))

    def _train(
        self, job: str, place: Place, script: list[str], strategy: str, watch: Watch, supervisor: Any, log: Path
    ) -> None:
        environ = dict(os.environ) | environment_of(self.connection, place)
        environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "antdt.launch", "--job", job, "-n", str(WORKERS)]
        command += [] if strategy == ALLREDUCE else ["--servers", str(SERVERS)]
        command += ["--", "-m", "bench.mitigation_worker", *script]
        with log.open("ab") as out:
            process = spawn(
                command, env=environ, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
        began_s = said_s = monotonic()
        try:
            while process.poll() is None:
                sleep(LOOK_S)
                supervisor.poll()
                if monotonic() - said_s > SAY_S:
                    said_s = monotonic()
                    print(f"    step {watch.progress.step} after {said_s - began_s:.0f} s", flush=True)
            if process.returncode not in (0, int(ExitCode.INCOMPLETE) if strategy.endswith("/drop") else 0):
                raise SystemExit(f"The workers ended with status {process.returncode}: {last_words(log, 20)}")
        finally:
            end(process, GRACE_S)


def decisions_of(connection: Connection, job: str) -> list[Decision]:
    """All that the Controller has written."""
    with TopicReader(connection, job, DECISIONS) as reader:
        return [decision for _, decision in decoded(reader.to_end(), Decision)]


def actions_of(decisions: list[Decision]) -> list[dict[str, Any]]:
    """Each action with what was predicted, and what has come of it where that is known."""
    effects = {d.effect.decision: d.effect for d in decisions if d.effect is not None}
    out = []
    for one in decisions:
        if one.action is not Action.NONE:
            effect = effects.get(one.cause)
            out.append(
                {
                    "action": str(one.action), "plan": one.plan, "target": one.target, "reason": one.reason,
                    "predicted_gain": round(one.predicted_gain, 4),
                    "effect": None if effect is None else codec.to_json(effect),
                }
            )  # fmt: skip
    return out


def works(policy: str, strategy: str) -> bool:
    """Whether a policy does anything under a strategy."""
    return not misfit(find(policy), strategy if strategy == ALLREDUCE else f"{strategy}/servers={SERVERS}")


def completed(runs: list[dict[str, Any]], size: Size) -> None:
    """What follows from all runs together: ideals, and ratios to equal batches and to the ideal."""
    for run in runs:
        calm = [r for r in runs if (r["pattern"], r["policy"], r["strategy"]) == ("none", "even", run["strategy"])]
        even = [r for r in runs if r["policy"] == "even" and same(r, run, ("pattern", "strategy", "seed"))]
        pattern, calmest = PATTERNS[run["pattern"]], PATTERNS["none"]
        work = size.work(pattern, run["strategy"], run["seed"])
        own_s = ideal_s(calmest, size.work(calmest, run["strategy"], run["seed"]), 0.0) / work.steps
        overhead_s = max(0.0, min(r["time_s"] for r in calm) / work.steps - own_s) if calm else 0.0
        run["overhead_s"] = round(overhead_s, 4)
        run["ideal_s"] = round(ideal_s(pattern, work, overhead_s), 2)
        run["ratio_to_ideal"] = round(run["time_s"] / run["ideal_s"], 3)
        run["ratio_to_even"] = round(even[0]["time_s"] / run["time_s"], 3) if even else None


def same(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return all(a[name] == b[name] for name in names)


def table(runs: list[dict[str, Any]]) -> str:
    """One line for each run."""
    head = f"{'pattern':<18}{'strategy':<15}{'policy':<12}{'time':>8}{'ideal':>8}{'/ ideal':>9}{'even /':>8}"
    lines = [head + f"{'actions':>9}{'lost':>6}{'twice':>6}{'quality':>9}  exactly once"]
    for r in sorted(runs, key=lambda r: (r["pattern"], r["strategy"], r["seed"], r["policy"])):
        to_even = f"{r['ratio_to_even']:.2f}" if r["ratio_to_even"] else "-"
        line = f"{r['pattern']:<18}{r['strategy']:<15}{r['policy']:<12}{r['time_s']:>8.1f}{r['ideal_s']:>8.1f}"
        line += f"{r['ratio_to_ideal']:>9.2f}{to_even:>8}{len(r['actions']):>9}{r['samples_lost']:>6}"
        lines.append(line + f"{r['samples_repeated']:>6}{r['quality']:>9.3f}  {r['exactly_once']}")
    return "\n".join(lines)


def saved(path: Path, results: dict[str, Any], size: Size) -> None:
    """The file and its picture, as far as it is."""
    completed(results["runs"], size)
    write(path, results)
    path.with_suffix(".svg").write_text(picture(results["runs"]), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 where a run is not exactly once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a few patterns and policies, short runs")
    parser.add_argument("--patterns", help=f"of {', '.join(PATTERNS)}")
    parser.add_argument("--policies", help="names as `antdt up --policy` takes them")
    parser.add_argument("--strategies", default=ALLREDUCE, help=f"of {', '.join(STRATEGIES)}")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data", default="digits", help="digits, mnist:DIR, or adult:DIR (a model of clicks)")
    parser.add_argument("--epochs", type=int, default=0, help="of 20 steps each; default 20, 8 with --quick")
    parser.add_argument("--no-overhead", action="store_true")
    options = parser.parse_args(arguments)
    size = Size(epochs=options.epochs or (8 if options.quick else 20))
    patterns = options.patterns.split(",") if options.patterns else QUICK if options.quick else tuple(PATTERNS)
    policies = options.policies.split(",") if options.policies else QUICK_POLICIES if options.quick else POLICIES
    wanted = [
        (pattern, strategy, policy, seed)
        for seed in range(options.seeds)
        for strategy in options.strategies.split(",")
        for pattern in patterns
        for policy in policies
        if (strategy != ALLREDUCE or not PATTERNS[pattern].servers) and works(policy, strategy)
    ]
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {"runs": []}
    results |= {"machine": machine(), "parameters": PARAMETERS}
    if results.setdefault("size", vars(size)) != vars(size):
        raise SystemExit(f"{options.json} holds runs of another size, {results['size']}: name another file.")
    there = {(r["pattern"], r["strategy"], r["policy"], r["seed"]) for r in results["runs"]}
    with (
        tempfile.TemporaryDirectory(prefix="antdt-mitigation-") as name,
        EmbeddedBroker(Path(name) / "kafka") as broker,
    ):
        bench = Bench(broker.connection, Path(name), size, options.data)
        for number, one in enumerate(wanted, 1):
            if one in there:
                continue
            print(f"{number} of {len(wanted)}: {' '.join(map(str, one))}", flush=True)
            results["runs"].append(bench.run(*one))
            saved(options.json, results, size)
            last = results["runs"][-1]
            print(f"    {last['time_s']:.1f} s, ideal {last['ideal_s']:.1f} s", flush=True)
        if not options.no_overhead and "overhead" not in results:
            results["overhead"] = overhead(broker.connection, Path(name) / "overhead")
            saved(options.json, results, size)
    print(table(results["runs"]))
    both = results.get("overhead")
    for one in (both, both["at_10_ms"]) if both else ():
        print(
            f"a step of {one['target_ms']} ms: {one['step_ms']:.2f} ms, DDP {one['ddp_ms']:.2f} ms, "
            f"difference {one['difference_ms']:.2f} [{one['q1']:.2f} to {one['q3']:.2f}], from a DataLoader's loop "
            f"{one['difference_loaded_ms']:.2f} [{one['loaded_q1']:.2f} to {one['loaded_q3']:.2f}], "
            f"processor {one['cpu_difference_ms']:.2f}"
        )
    return 0 if all(run["exactly_once"] or run["policy"] == LOSES for run in results["runs"]) else 1


if __name__ == "__main__":
    sys.exit(main())
