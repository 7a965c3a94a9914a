"""All that needs CUDA or NCCL, on one device and within eight minutes: `make gpu`.

    habits      bench.habits with models and batches on the device: workers are killed, plans are uneven, and each step
                is compared with one process; gradients by gloo, and some of them by NCCL between processes that share
                the device (each says that it is a host of its own, or NCCL refuses them)
    jobs        bench.gpu_worker: float16 with a scaler that overflows, a batch that is too large for the memory,
                deterministic="bitwise", torch.set_default_device("cuda"), parameter servers, torch.compile
    ddp         bench.allreduce: a step of two members, against DistributedDataParallel, by gloo and by NCCL
    step        a step of an Agent of its own against a plain loop, and how often it waits for the device
    pinned      copies of batches to the device, from page-locked memory and from ordinary one
    fingerprint bench.costs: comparing replicas of 40 million parameters
A part that takes too long is ended, and the report says so. Exit status 1: something is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

import antdt
import torch
from antdt_schemas.errors import ExitCode
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.chaos.judge import entries_of, judge_log, lineage_of
from antdt_streams.kafka import topics_admin
from antdt_streams.local.place import Place
from antdt_streams.local.services import environment_of, start_services
from antdt_streams.local.supervise import last_words, start_process
from antdt_streams.views.lineage import TOGETHER
from torch import nn
from torch.utils.data import TensorDataset

from bench.common import machine, quartiles, write
from bench.gpu_worker import KINDS, alone
from bench.habit_loops import DEVICE

NCCL_HABITS = ("plain", "clipping", "grad-scaler", "warm-up-cosine-ema", "gan", "in-batch-negatives", "interrupted")
# Sums of halves round otherwise in other parts; bfloat16 has eight bits.
TOLERANCES = {"float16": 2e-2, "bfloat16": 0.1, "compiled": 1e-3, "graphs": 1e-3}
TOLERANCE = 1e-4
JOB_S = 150.0
WIDTH, LAYERS = 2048, 6


# -- parts that are benchmarks of their own


def child(module: str, *arguments: str, within_s: float, folder: Path) -> dict[str, Any]:
    """What it wrote, or what it said when it failed."""
    out = folder / f"{module}-{'-'.join(arguments)[:40].replace('/', '_')}.json"
    command = [sys.executable, "-m", module, *arguments, "--json", str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False)
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace")
        return {"wrong": f"not over within {within_s:g} s", "said": said[-3000:]}
    if done.returncode:
        return {"wrong": f"exit status {done.returncode}", "said": (done.stdout + done.stderr)[-3000:]}
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def habits(folder: Path, jobs: int) -> dict[str, Any]:
    """On the device, by gloo and by NCCL."""
    made = {"gloo": child("bench.habits", "--jobs", str(jobs), within_s=200, folder=folder)}
    chosen = [word for name in NCCL_HABITS for word in ("--only", name)]
    nccl = ("--jobs", "4", "--backend", "nccl", "--members")
    made["nccl"] = child("bench.habits", *nccl, "2", *chosen, within_s=150, folder=folder)
    made["nccl_alone"] = child("bench.habits", *nccl, "1", "--calm", "--only", "plain", within_s=60, folder=folder)
    for found in made.values():
        rows = [row for row in found.get("habits", []) if row["outcome"] == "wrong"]
        if rows:
            found["wrong"] = {row["name"]: row["note"] for row in rows}
    return made


# -- jobs of bench.gpu_worker


class Jobs:
    """On one broker."""

    def __init__(self, broker: EmbeddedBroker, folder: Path) -> None:
        self.broker, self.folder = broker, folder

    def run(self, kind: str, workers: int = 2) -> dict[str, Any]:
        """To its end: what was made, and samples by step."""
        name = f"gpu-{kind}-{workers}"
        folder, connection = self.folder / name, self.broker.connection
        folder.mkdir()
        topics_admin.create(connection, name)
        place = Place(connection, True, folder, None)
        services = start_services(name, place, connection, ("ledger",), extra={"ledger": ("--patience-ms", "20000")})
        servers = ("--servers", "2") if kind == "servers" else ()
        command = [sys.executable, "-m", "antdt.launch", "--job", name, "-n", str(workers), *servers, "--"]
        command += ["-m", "bench.gpu_worker", kind, "--out", str(folder / "made.pt")]
        log, environ = folder / "workers.log", dict(os.environ) | environment_of(connection, place)
        launcher, until = start_process(command, environ, log), monotonic() + JOB_S
        try:
            while (code := launcher.poll()) is None and monotonic() < until:
                services.poll()
                sleep(0.02)  # between two looks
        finally:
            launcher.kill()
            launcher.wait(10)
            services.stop()
        text = log.read_text(encoding="utf-8", errors="replace")
        if code != ExitCode.DONE:
            return {"wrong": f"the launch ended with {code}: {last_words(log)}", "said": text[-2500:]}
        entries = entries_of(connection, name)
        _, wrong = judge_log(entries)
        steps = [
            step.samples.get(TOGETHER) or [one for own in step.samples.values() for one in own]
            for _, step in sorted(lineage_of(entries).steps.items())
        ]
        made = torch.load(folder / "made.pt", weights_only=True)
        found = {"made": made, "steps": steps, "memory_out": text.count("memory is out")}
        return found | ({"wrong": wrong} if wrong else {})

    def compared(self, kind: str) -> dict[str, Any]:
        """With one process."""
        if kind == "bitwise":
            return self.bitwise()
        found = self.run(kind)
        if kind == "shared":  # the one that is refused
            said = found.pop("said", "")
            is_right = "w0 and w1 use one device" in said and f"ended with {ExitCode.USAGE}" in found.get("wrong", "")
            return {"refused": found["wrong"]} if is_right else {"wrong": "it was not refused", "said": said}
        if "wrong" in found:
            return found
        made, scale = alone(kind, found["steps"])
        theirs = found["made"]["model"]
        differences = {
            name: float((theirs[name] - value).abs().max() / value.abs().max())
            for name, value in made.items()
            if name in theirs and theirs[name].shape == value.shape
        }
        row: dict[str, Any] = {"steps": len(found["steps"]), "difference": max(differences.values())}
        row |= {"memory_out": found["memory_out"]} if kind == "memory" else {}
        row |= {"scale": found["made"]["scale"], "scale_alone": scale} if kind == "float16" else {}
        wrong = row["difference"] > TOLERANCES.get(kind, TOLERANCE) or len(differences) < len(made)
        wrong |= row.get("scale") != row.get("scale_alone") or row.get("memory_out") == 0
        return row | ({"wrong": "it is not what one process has", "of": differences} if wrong else {})

    def bitwise(self) -> dict[str, Any]:
        """Of one, two and three workers."""
        runs = [self.run("bitwise", workers) for workers in (1, 2, 3)]
        for run in runs:
            if "wrong" in run:
                return run
        first, *others = (run["made"]["model"] for run in runs)
        equal = all(torch.equal(first[name], other[name]) for other in others for name in first)
        return {"workers": [1, 2, 3], "equal": equal} | ({} if equal else {"wrong": "they differ"})


def jobs(folder: Path, kinds: Sequence[str]) -> dict[str, Any]:
    """All of them at once."""
    with EmbeddedBroker(folder / "kafka") as broker, ThreadPoolExecutor(len(kinds)) as pool:
        each = Jobs(broker, folder)
        futures = {kind: pool.submit(guarded, each.compared, kind) for kind in kinds}
        return {kind: future.result() for kind, future in futures.items()}


# -- in this process


def model_of() -> tuple[nn.Module, torch.optim.Optimizer]:
    """25 million parameters."""
    torch.manual_seed(0)
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model = nn.Sequential(*layers).cuda()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def waits_of(act: Callable[[], None]) -> list[str]:
    """Where it waits for the device, by the line that does."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            act()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    mine = [one for one in caught if "synchroniz" in str(one.message)]
    return [f"{Path(one.filename).name}:{one.lineno}" for one in mine]


def step() -> dict[str, Any]:
    """An Agent of its own beside a plain loop, in blocks by turns; milliseconds a step."""
    batch, block, blocks = 64, 20, 24
    data = torch.randn(batch * block * (blocks + 4), WIDTH)
    (theirs, their_optimizer), (model, optimizer) = model_of(), model_of()
    agent = antdt.Agent(model, optimizer, TensorDataset(data), batch_size=batch, epochs=1)
    batches = iter(agent)

    def ours() -> None:
        for _ in range(block):
            (x,) = next(batches)
            agent.step(model(x.cuda()).square().mean())

    def plain(at: int = 0) -> None:
        for number in range(block):
            x = data[(at + number) * batch : (at + number + 1) * batch].cuda()
            their_optimizer.zero_grad()
            theirs(x).square().mean().backward()
            their_optimizer.step()

    def timed(act: Callable[[], None]) -> float:
        torch.cuda.synchronize()
        before = perf_counter()
        act()
        torch.cuda.synchronize()
        return (perf_counter() - before) * 1e3 / block

    ours()
    plain()
    pairs = [(timed(ours), timed(plain)) for _ in range(blocks)]
    waits = waits_of(ours)
    return {
        "agent_ms": quartiles([a for a, _ in pairs], 3),
        "plain_ms": quartiles([b for _, b in pairs], 3),
        "difference_us": quartiles([(a - b) * 1e3 for a, b in pairs], 1),
        "waits_a_step": round(len(waits) / block, 2),
        "waits": {where: waits.count(where) for where in sorted(set(waits))},
    }


def pinned() -> dict[str, Any]:
    """Microseconds that a loop is held up by the copy of a batch, and milliseconds a step while the device computes."""
    data = TensorDataset(torch.randn(4096, 16 * 1024))  # 64 KiB a sample
    weight = torch.randn(16 * 1024, 4096, device="cuda")
    found: dict[str, Any] = {}
    for name, pin in (("pinned", True), ("ordinary", False)):
        agent = antdt.Agent(model := nn.Linear(1, 1).cuda(), torch.optim.SGD(model.parameters(), 1e-9), data,
                            batch_size=256, epochs=4, pin_memory=pin)  # fmt: skip
        held, steps, began = [], [], perf_counter()
        for (x,) in agent:
            before = perf_counter()
            on_device = x.to("cuda", non_blocking=True)
            held.append((perf_counter() - before) * 1e6)
            out = on_device @ weight
            agent.step(model(out[:, :1]).square().mean())
            steps.append((perf_counter() - began) * 1e3)
            began = perf_counter()
        found[name] = {"held_up_us": quartiles(held[8:], 1), "step_ms": quartiles(steps[8:], 3), "is": x.is_pinned()}
        found |= {} if x.is_pinned() is pin else {"wrong": f"{name}: is_pinned() is {x.is_pinned()}"}
    return found


def guarded(part: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """One part that fails does not end the others."""
    began = monotonic()
    try:
        found = part(*arguments)
    except Exception:  # noqa: BLE001
        found = {"wrong": traceback.format_exc(limit=-6)}
    return found | {"seconds": round(monotonic() - began, 1)}


def wrong_in(found: Any) -> bool:
    """Whether anything in the report is."""
    return isinstance(found, dict) and ("wrong" in found or any(map(wrong_in, found.values())))


PARTS = ("jobs", "step", "pinned", "ddp", "fingerprint", "habits")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--kind", choices=KINDS, action="append", help="of jobs")
    parser.add_argument("--jobs", type=int, default=max(1, min(8, len(os.sched_getaffinity(0)) // 2)), help="at a time")
    options = parser.parse_args()
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        print("No CUDA device is here: nothing was run.", file=sys.stderr)
        return ExitCode.USAGE
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    report: dict[str, Any] = {"device": name, "torch": torch.__version__, "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="antdt-gpu-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "jobs": lambda: jobs(folder, options.kind or KINDS),
            "step": step,
            "pinned": pinned,
            "ddp": lambda: {
                backend: child("bench.allreduce", "--backend", backend, within_s=80, folder=folder)
                for backend in ("gloo", "nccl")
            },
            "fingerprint": lambda: child("bench.costs", "--only", "fingerprint", within_s=60, folder=folder),
            "habits": lambda: habits(folder, options.jobs),
        }
        for part in options.only or PARTS:
            report[part] = guarded(parts[part])
            print(f"{part}: {json.dumps({k: v for k, v in report[part].items() if k != 'gloo'}, indent=1)}", flush=True)
            write(options.json, report)
    return int(wrong_in(report))


if __name__ == "__main__":
    sys.exit(main())
