"""Is a model that was trained amid kills as accurate as one that was not? `python -m bench.accuracy --json FILE`.

For each seed the same job runs twice over real processes: undisturbed, and with workers, ledger or everybody killed at
seeded moments. Both start from the same weights and use the same order of samples, so the difference is paired. Both
are audited; accuracy is that of the final model over test samples it never saw.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from antdt_streams.broker import EmbeddedBroker
from antdt_streams.chaos.driver import Driver
from antdt_streams.chaos.judge import entries_of, judge_log, judge_records
from antdt_streams.chaos.launches import Training
from antdt_streams.chaos.schedule import Fault, Kind, ScheduleOptions, schedule
from antdt_streams.chaos.world import World

from bench.common import machine, write

TRAINING = Training(epochs=6, delay_ms=2.0, patience_ms=3000)
KILLS = ScheduleOptions(
    kinds=(Kind.KILL_WORKER, Kind.KILL_WORKERS, Kind.KILL_LEDGER, Kind.KILL_EVERYBODY), faults=3, span_s=4.0
)


def train(broker: EmbeddedBroker, job: str, folder: Path, seed: int, faults: list[Fault]) -> dict[str, Any]:
    """One run to its end; what came out of it."""
    world = World(broker, job, folder, replace(TRAINING, seed=seed))
    try:
        world.open()
        carried = Driver(world, faults, None).run()
    finally:
        world.close()
    entries = entries_of(broker.connection, job)
    report, wrong = judge_log(entries)
    wrong += judge_records(entries, world.records)
    assert not carried.failure, carried.failure
    assert not wrong, wrong
    made = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {
        "accuracy": made["accuracy"],
        "steps": report["steps"],
        "rolled_back_steps": report["rolled_back_steps"],
        "kills": [str(f.kind) for f in carried.done],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory(prefix="antdt-accuracy-") as name:
        folder = Path(name)
        with EmbeddedBroker(folder / "kafka") as broker:
            for seed in range(options.seeds):
                calm = train(broker, f"calm-{seed}", folder / f"calm-{seed}", seed, [])
                killed = train(broker, f"killed-{seed}", folder / f"killed-{seed}", seed, schedule(seed, KILLS))
                pairs.append({"seed": seed, "undisturbed": calm, "killed": killed})
                print(
                    f"seed {seed}: undisturbed {calm['accuracy']:.4f}, killed {killed['accuracy']:.4f} "
                    f"({', '.join(killed['kills'])}; {killed['rolled_back_steps']} steps rolled back)",
                    flush=True,
                )
    differences = [p["killed"]["accuracy"] - p["undisturbed"]["accuracy"] for p in pairs]
    mean = statistics.mean(differences)
    deviation = statistics.stdev(differences) if len(differences) > 1 else 0.0
    error = deviation / len(differences) ** 0.5
    spread = statistics.stdev([p["undisturbed"]["accuracy"] for p in pairs]) if len(pairs) > 1 else 0.0
    print(
        f"killed minus undisturbed: mean {mean:+.4f}, standard error {error:.4f}, deviation of a pair {deviation:.4f}; "
        f"undisturbed runs of different seeds deviate by {spread:.4f}"
    )
    write(
        options.json,
        {
            "machine": machine(),
            "mean_difference": mean,
            "standard_error": error,
            "deviation_of_a_pair": deviation,
            "deviation_undisturbed": spread,
            "kills": sum(len(p["killed"]["kills"]) for p in pairs),
            "pairs": pairs,
        },
    )


if __name__ == "__main__":
    main()
