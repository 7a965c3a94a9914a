"""What exactness costs a run beside the time of a step: comparing replicas, and memory at a checkpoint.

`python -m bench.costs --json FILE`; `--only fingerprint` or `memory` measures one of them.
    fingerprint   a member's part of comparing a model of 40 million parameters at the default interval, spread over the
                  steps between two comparisons, as a share of a step of 100 ms
    memory        the largest resident size of a process that trains 41 million parameters with AdamW, and writes a
                  checkpoint every two steps as a job's first member does, over that of a plain loop with torch.save
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from antdt.agent import Agent
from antdt.files import checkpoint
from antdt.strategies.allreduce.memory import Buffers
from antdt.strategies.allreduce.options import AllReduce
from antdt.strategies.allreduce.replicas import Replica
from torch import nn
from torch.utils.data import TensorDataset

from bench.common import machine, spread, write

WITHIN_S = 300.0
STEP_MS = 100.0  # that of which a comparison is a share
WIDTH, LAYERS = 1024, 39
MEMORY_STEPS, CHECKPOINT_EVERY = 8, 2


def model_of(width: int, layers: int) -> nn.Module:
    """layers * width * (width + 1) parameters."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers)])


# -- replicas compared


def fingerprint(repetitions: int) -> dict[str, Any]:
    """Milliseconds of one comparison, and microseconds that it makes of each step."""
    model = model_of(WIDTH, LAYERS)
    optimizer = torch.optim.AdamW(model.parameters())
    replica = Replica(model, optimizer, Buffers(model))
    size_bytes = sum(param.numel() * param.element_size() for param in model.parameters())
    every = AllReduce().compared_every(size_bytes)
    replica.state(frozen=False)
    whole = [_timed_ms(lambda: replica.state(frozen=False)) for _ in range(repetitions)]
    each = [_timed_ms(lambda: (replica.stepped(1.0), replica.trained(0))) for _ in range(repetitions)]
    shares = [100 * (at / every + always) / STEP_MS for at, always in zip(whole, each, strict=True)]
    return {
        "parameters": size_bytes // 4,
        "every_steps": every,
        "comparison_ms": spread(whole, 2),
        "each_step_us": spread([ms * 1e3 for ms in each], 1),
        "percent_of_step": spread(shares, 4),
    }


def _timed_ms(act: Callable[[], Any]) -> float:
    before = perf_counter()
    act()
    return (perf_counter() - before) * 1e3


# -- memory at a checkpoint


def resident_mb() -> float:
    """The largest that this process has had, in MB. (`ru_maxrss` would know that of whoever forked it.)"""
    (line,) = (one for one in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if "VmHWM" in one)
    return int(line.split()[1]) * 1024 / 1e6


def _memory_of(kind: str, folder: Path) -> None:
    """A process of its own: trains, writes, prints what it needed. kind: "plain" or "agent"."""
    torch.set_num_threads(1)
    model = model_of(WIDTH, LAYERS + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if kind == "plain":
        for step in range(1, MEMORY_STEPS + 1):
            optimizer.zero_grad()
            model(torch.randn(8, WIDTH)).square().mean().backward()
            optimizer.step()
            if step % CHECKPOINT_EVERY == 0:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "plain.pt")
    else:
        data = TensorDataset(torch.randn(8 * MEMORY_STEPS, WIDTH))
        agent = Agent(model, optimizer, data, batch_size=8)
        for (x,) in agent:
            agent.step(model(x).square().mean())
            if agent.step_number % CHECKPOINT_EVERY == 0:  # alone nothing is recorded: as a first member does it
                agent.strategy.verify()
                random = agent.strategy.gather_random()
                checkpoint.write(folder, "agent.pt", lambda out, random=random: agent.strategy.save(out, random))
    print(f"{resident_mb():.1f}")


def _started(kind: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.costs", "--child", kind, "--folder", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _read(process: subprocess.Popen[str]) -> float:
    out, _ = process.communicate(timeout=WITHIN_S)
    if process.returncode:
        raise RuntimeError(f"A process of the benchmark ended with status {process.returncode}; its error is above.")
    return float(out.split()[-1])


def memory(folder: Path, repetitions: int) -> dict[str, Any]:
    """Megabytes, and how many times the plain loop's."""
    plain, agent = list[float](), list[float]()
    for _ in range(repetitions):
        plain.append(_read(_started("plain", folder)))
        agent.append(_read(_started("agent", folder)))
    times = [mine / theirs for mine, theirs in zip(agent, plain, strict=True)]
    return {"plain_mb": spread(plain), "agent_mb": spread(agent), "times_plain": spread(times, 3)}


# -- the whole


def measure(only: str, repetitions: int) -> dict[str, Any]:
    """What was asked for."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    if only in ("", "fingerprint"):
        results["fingerprint"] = r = fingerprint(10 * repetitions)
        ms, percent = r["comparison_ms"], r["percent_of_step"]
        print(
            f"fingerprint: {ms['median']} ms [{ms['min']} to {ms['max']}] every {r['every_steps']} steps, "
            f"{percent['median']} % [{percent['min']} to {percent['max']}] of a step of {STEP_MS:g} ms",
            flush=True,
        )
    if only in ("", "memory"):
        with tempfile.TemporaryDirectory(prefix="antdt-costs-") as folder:
            results["memory"] = r = memory(Path(folder), repetitions)
        times = r["times_plain"]
        print(
            f"memory: {r['agent_mb']['median']} MB, a plain loop {r['plain_mb']['median']}: {times['median']} times "
            f"[{times['min']} to {times['max']}]"
        )
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--only", choices=("fingerprint", "memory"), default="")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _memory_of(options.child, options.folder)
    else:
        write(options.json, {**measure(options.only, options.repetitions), "machine": machine()})


if __name__ == "__main__":
    main()
