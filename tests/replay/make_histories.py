"""Records histories: logs of simulated jobs as files, with the digests that a replay of them must reach.

`python -m tests.replay.make_histories` adds the kinds of which there is none; a file that is there is never written
again. When the rules of the log change, a newer fold still reads these files, by the FOLD_VERSION they name, to the
digests of then. Histories of the new rules are added beside them, as a kind of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from antdt_schemas import codec, container, records
from antdt_streams.ledger.core.versions import FOLD_VERSION
from antdt_streams.proof.audit import audit
from antdt_streams.proof.replay import document, replay

from tests.helpers.logs import entries
from tests.simulation.world import World

FOLDER = Path(__file__).parent / "histories"
EXPECTED = FOLDER / "expected.json"
SEEDS = 2_000


def _tail_grew(world: World) -> bool:
    """A step behind the last epoch was committed when more was readmitted than who executed it had known."""
    since, generation = list[int](), 0
    for payload in world.broker.log:
        body = codec.decode(payload, records.Entry).body
        for event in body.events if isinstance(body, records.Cycle) else ():
            if isinstance(event, records.Granted):
                generation = event.generation
            elif isinstance(event, records.Readmitted):
                since.append(generation + 1)
            elif isinstance(event, records.Committed) and event.ranges[1] == world.spec.epochs:
                if any(first > event.ranges[0] for first in since):
                    return True
    return False


def _reported_together(world: World) -> bool:
    """Several steps have one lineage, in many entries."""
    bare = 0
    for payload in world.broker.log:
        body = codec.decode(payload, records.Entry).body
        events = body.events if isinstance(body, records.Cycle) else ()
        bare += any(isinstance(event, records.Committed) and not event.lineage for event in events)
    return bare > 2 and world.counts["rollback_undid_steps"] > 0


# What makes a history worth keeping, and how many entries it must have at least.
WANTED: dict[str, tuple[int, Callable[[World], bool]]] = {
    "calm": (40, lambda w: w.faults.budget == 0 and not (w.counts["worker_killed"] or w.counts["ledger_killed"])),
    "evidence": (60, lambda w: w.counts["blamed_dead"] > 0 and w.counts["readmitted_after_the_end"] > 0),
    "kills-and-rollbacks": (60, lambda w: w.counts["rolled_back"] > 1 and w.counts["worker_killed"] > 1),
    "moved-and-displaced": (60, lambda w: w.counts["requests_moved"] > 1 and w.counts["displaced"] > 0),
    "quarantine": (30, lambda w: w.counts["quarantined"] > 0),
    "skipped": (40, lambda w: w.counts["step_skipped"] > 6 and w.counts["rolled_back"] > 0),
    "zombies": (60, lambda w: w.counts["void_entry"] > 1 and w.counts["zombie_ledger_superseded"] > 1),
}
# So of steps of a fixed size.
STEPS: dict[str, tuple[int, Callable[[World], bool]]] = {
    "steps-evidence": (80, lambda w: w.counts["poison_excluded"] > 1 and w.counts["readmitted_after_the_end"] > 0),
    "steps-later": (60, lambda w: w.counts["left_out_later"] > 1 and w.counts["lifted"] > 0),
    "steps-resized": (60, lambda w: w.counts["resized_midway"] > 1 and w.counts["rollback_undid_steps"] > 0),
    "steps-tail": (60, _tail_grew),
    "steps-together": (40, _reported_together),
    "steps-stopped": (40, lambda w: w.counts["stopped"] > 0 and w.counts["worker_killed"] > 0),
    "steps-asked-for": (40, lambda w: w.spec.steps > 3 and w.counts["worker_killed"] > 1),
}


def expected_of(path: Path) -> dict[str, Any]:
    """What a replay and an audit of a history say today."""
    with container.LogFile(path) as file:
        log = [(entry.offset, entry.payload) for entry in file]
        head = {file.header.entries - 1: file.header.head_hash}
    found, report = document(replay(log, anchors=head)), audit(log, head)
    digests = {str(at): document(replay(log, at=at))["digest"] for at in range(9, len(log), 10)}
    return {
        "fold_version": FOLD_VERSION,
        "head_hash": found["head_hash"],
        "digest": found["digest"],
        "digests": digests,
        "lineage": report["lineage"],
        "void_entries": found["void_entries"],
        **{name: report[name] for name in ("exactly_once", "committed", "quarantined", "rolled_back_steps", "steps")},
    }


def main() -> None:
    """Add the histories that are not there."""
    FOLDER.mkdir(exist_ok=True)
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    for name, (entries_min, wanted) in (WANTED | STEPS).items():
        path = FOLDER / f"{name}-{FOLD_VERSION}.avro"
        if list(FOLDER.glob(f"{name}-*.avro")):
            continue
        for seed in range(SEEDS):
            world = World(seed, steps=name in STEPS)
            budget = world.faults.budget
            world.run()
            world.faults.budget = budget
            if wanted(world) and len(world.broker.log) >= entries_min:
                container.write(path, "memory", f"seed-{seed}", entries(world.broker.log))
                expected[path.stem] = expected_of(path)
                print(f"{path.name}: seed {seed}, {len(world.broker.log)} entries, {expected[path.stem]['digest']}")
                break
        else:
            raise SystemExit(f"{name}: no such world below seed {SEEDS}")
    EXPECTED.write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
