"""Repeat one world, or look for one that fails.

python -m tests.simulation SEED [LINES]         repeat it; print its last lines (all without LINES) and its verdict
python -m tests.simulation search FIRST COUNT   run worlds, print the seeds that fail and what was done to them
python -m tests.simulation large --workers 1024 one job of so many workers, and how long it took

steps, before SEED or search: in worlds whose steps have a fixed size; servers: whose model lies on servers
"""

from __future__ import annotations

import gc
import logging
import sys
import traceback
from collections import Counter

from tests.simulation.large import Large, Size
from tests.simulation.servers.world import ServedWorld
from tests.simulation.world import World


def made(seed: int, kind: str, *, story: bool = False) -> World:
    """A world of this kind."""
    return ServedWorld(seed, story) if kind == "servers" else World(seed, story, steps=kind == "steps")


def story(seed: int, lines: int, kind: str) -> int:
    """Repeat one world, and tell it."""
    world = made(seed, kind, story=True)
    try:
        world.run()
        verdict = "every sample exactly once"
    except Exception:  # noqa: BLE001  whatever it is, the story comes first
        verdict = traceback.format_exc()
    print(*world.lines[-lines:], verdict, sep="\n")
    return verdict.startswith("Traceback")


def search(first: int, count: int, kind: str) -> int:
    """Run many worlds."""
    total: Counter[str] = Counter()
    failed = 0
    for seed in range(first, first + count):
        world = made(seed, kind)
        try:
            world.run()
        except Exception as error:  # noqa: BLE001  any failure is a find
            failed += 1
            print(f"python -m tests.simulation {kind} {seed}    # {type(error).__name__}: {error}", flush=True)
        total.update(world.counts)
        total["worlds"] += 1
        total["ticks"] += world.tick
        total["ticks_to_end_max"] = max(total["ticks_to_end_max"], world.tick - world.faults.last_tick)
    print(*(f"{n:8} {what}" for what, n in sorted(total.items())), sep="\n")
    return failed > 0


def large(workers: int) -> int:
    """Run one job of many workers."""
    world = Large(Size(workers))
    world.run()
    times, counts = world.times, world.counts
    print(f"formed after {times.formed_s:.1f} s")
    print(f"step {world.size.lost_at} after {times.lost_s:.1f} s, {world.size.lost} members lost")
    print(f"formed again after {times.formed_again_s:.1f} s")
    print(f"every sample exactly once after {times.done_s:.1f} s")
    print(f"{counts['step']} steps of workers, {len(world.broker.log)} entries, {counts['decision']} decisions")
    return 0


if __name__ == "__main__":
    gc.freeze()  # what was imported is never garbage: nobody need look through it
    logging.getLogger("antdt").setLevel(logging.CRITICAL)  # ledgers tell of what the adversary does to them
    if sys.argv[1:3] == ["large", "--workers"]:
        sys.exit(large(int(sys.argv[3])))
    kind = sys.argv[1] if sys.argv[1] in ("steps", "servers") else ""
    what, *more = sys.argv[1 + bool(kind) :]
    if what == "search":
        sys.exit(search(int(more[0]), int(more[1]), kind))
    sys.exit(story(int(what), int(more[0]) if more else 0, kind))
