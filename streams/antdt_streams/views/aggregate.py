"""A job in a few numbers under lasting names: what is copied to a tracker of experiments, once for all workers.

Owns the names. Trackers are told by one process and of the job as a whole: one series a worker would cost them more
than the job, and what single workers do is in the topics.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean, median
from typing import Any

from antdt_streams.views.control import SLOW
from antdt_streams.views.top import Top

PREFIX = "antdt/"
SECONDS = 5  # over which a rate is told: steps are reported together


def numbers(found: Mapping[str, Any], speeds: list[int]) -> dict[str, float]:
    """found: what `Top.document` says. speeds: samples in each second so far."""
    own = [one["own_ms_a_sample"] for one in found["workers"] if one["own_ms_a_sample"]]
    plain = {name: found[name] for name in ("step", "generation", "members", "void_entries")}
    samples = {f"samples_{where}": count for where, count in found["samples"].items()}
    workers = {
        "workers_slow": sum(one["class"] in SLOW for one in found["workers"]),
        "sample_ms_median": median(own) if own else 0.0,
        "sample_ms_slowest": max(own, default=0.0),
        "batch_size": sum(one["batch_size"] for one in found["workers"]),
        "samples_per_second": mean(speeds[:-1][-SECONDS:] or speeds or [0]),  # the second at hand is not over
        "log_offset": found["offset"],
    }
    plans = {"plan": found["decisions"][-1]["plan"] if found["decisions"] else 0}
    return {PREFIX + name: float(value) for name, value in (plain | samples | workers | plans).items()}


def about(top: Top) -> dict[str, str]:
    """What does not change: whose run it is, and what it trains on."""
    genesis = top.genesis
    if genesis is None:
        return {PREFIX + "job": top.job}
    spec = genesis.spec
    told = {
        "job": genesis.job,
        "run_id": genesis.run_id,
        "dataset": spec.dataset,
        "dataset_digest": spec.dataset_digest.hex(),
        "samples": str(spec.samples),
        "epochs": str(spec.epochs),
        "strategy": spec.strategy,
        "batch_size": str(spec.batch_size),
    }
    return {PREFIX + name: value for name, value in told.items()}


def proof(top: Top) -> dict[str, str]:
    """What proves the numbers, as of now: the log's offset and its rolling hash there, and the file that is done."""
    position, state = top.fold.position, top.fold.state
    told = {"log_offset": str(position.next_offset - 1), "log_hash": position.hash.hex()}
    if state is not None and state.done is not None:
        told["file"] = state.done
    return {PREFIX + name: value for name, value in told.items()}
