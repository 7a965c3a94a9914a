"""The live view of a run in a terminal, and the summary of the demo."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from antdt_streams.demo.watch import Watch

DECISIONS_SHOWN = 4
BAR = 24


def live(watch: Watch, title: str, elapsed_s: float) -> RenderableType:
    """Progress, one line a worker, the newest decisions with their reason."""
    with watch.lock:
        state = watch.fold.state
        done, total = (state.committed_total, state.samples_total) if state else (0, 1)
        step = state.committed if state else 0
        workers = sorted(watch.workers.items())
        largest = max((v.batch_size for _, v in workers), default=1) or 1
        table = Table(box=None, padding=(0, 1), expand=False)
        for name, justify in (("worker", "left"), ("samples/s", "right"), ("batch", "right"), ("", "left")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        table.add_column("waits", justify="right")
        table.add_column("class")
        for worker, view in workers:
            bar = "█" * max(1, round(BAR * view.batch_size / largest)) if view.batch_size else ""
            slow = view.node_class in ("persistent", "transient", "deterministic")
            table.add_row(
                worker,
                f"{view.samples_per_s:,.0f}",
                str(view.batch_size),
                Text(f"{bar:<{BAR}}", style="red" if slow else "green"),
                f"{1000 * view.wait_s:,.0f} ms",
                Text(view.node_class, style="red" if slow else ""),
            )
        lines = [Text(f"plan {d.plan}: {d.reason}", style="yellow") for d in watch.decisions[-DECISIONS_SHOWN:]]
    head = Text(f"step {step:<6} {done:,} of {total:,} samples in the model   {elapsed_s:5.1f} s")
    parts: list[RenderableType] = [head, ProgressBar(total=total, completed=done, width=60), table, *lines]
    return Panel(Group(*parts), title=title, title_align="left", width=100)


def summary(result: dict[str, Any]) -> RenderableType:
    """Static, mitigated and ideal side by side, decisions, audits."""
    table = Table(title="The same job, twice", title_justify="left", box=None, padding=(0, 2))
    for name in ("", "static", "mitigated", "ideal"):
        table.add_column(name, justify="left" if not name else "right")
    s, m, i = result["static_s"], result["mitigated_s"], result["ideal_s"]
    table.add_row("time", f"{s:.1f} s", f"{m:.1f} s", f"{i:.1f} s")
    table.add_row("against static", "1.00x", f"{result['speedup']:.2f}x faster", f"{s / i:.2f}x")
    table.add_row("accuracy", f"{result['accuracy_static']:.3f}", f"{result['accuracy_mitigated']:.3f}", "")
    table.add_row("decisions", "0", str(len(result["decisions"])), "")
    table.add_row(
        "exactly once", *("yes" if result[f"audit_{n}"]["exactly_once"] else "NO" for n in ("static", "mitigated")), ""
    )
    reasons = [Text(f"  plan {d['plan']}: {d['reason']}") for d in result["decisions"][:6]]
    more = len(result["decisions"]) - len(reasons)
    if more > 0:
        reasons.append(Text(f"  … and {more} more"))
    verdicts = [Text(f"  audit of the {n} run: {result[f'audit_{n}']['verdict']}") for n in ("static", "mitigated")]
    note = Text("  ideal: the injected speeds alone, every sample where it is done first; no computing, no network.")
    return Group(table, Text(""), *reasons, Text(""), *verdicts, note)
