"""What the demo shows: a live view in a terminal, plain lines elsewhere, and the summary.

Every frame of a run has the same number of lines, none of them longer than the terminal: nothing jumps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from antdt_streams.demo.options import DemoOptions
from antdt_streams.demo.run import Run, Screen, Watch
from antdt_streams.views.control import SLOW, WorkerView
from antdt_streams.views.drawing import has_unicode, line, speed_line

WIDTH_MAX = 100
BAR = 14
DECISIONS_SHOWN = 4
DECISIONS_LISTED = 8
LINE_EVERY_S = 5.0
FRAMES_PER_S = 4


@contextmanager
def screen_of(console: Console, options: DemoOptions) -> Iterator[Screen]:
    """A live view in a terminal; a line now and then where the output goes elsewhere."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield Lines()
        return
    with Live(console=console, refresh_per_second=FRAMES_PER_S, transient=True) as live:
        yield Frames(live, options)


class Frames:
    def __init__(self, live: Live, options: DemoOptions) -> None:
        self._live, self._options = live, options
        self._speeds_before: list[int] = []

    def show(self, watch: Watch, title: str) -> None:
        with watch.changed:
            self._live.update(frame(watch, title, self._options, self._speeds_before, self._live.console))

    def ended(self, title: str, run: Run) -> None:
        self._live.console.print(_ended(title, run), highlight=False, soft_wrap=True)
        self._speeds_before = [run.audit["committed"] // max(1, round(run.train_s))]


class Lines:
    """A line every few seconds, and one for every decision."""

    def __init__(self) -> None:
        self._said_at, self._told = 0.0, 0

    def show(self, watch: Watch, title: str) -> None:
        with watch.changed:
            progress = watch.progress
            for decision in watch.control.decisions[self._told :]:
                self._told += 1
                self._say(f"{progress.train_s:6.1f} s  plan {decision.plan}: {decision.reason}")
            if monotonic() - self._said_at < LINE_EVERY_S:
                return
            self._said_at = monotonic()
            if not progress.speeds:
                self._say(f"{title}: the workers are starting")
                return
            sizes = " ".join(f"{w}={v.batch_size}" for w, v in sorted(watch.control.workers.items()))
            self._say(f"{progress.train_s:6.1f} s  {progress.committed:,} of {progress.total:,} samples, {sizes}")

    def ended(self, title: str, run: Run) -> None:
        self._said_at, self._told = 0.0, 0
        self._say(_ended(title, run))

    @staticmethod
    def _say(line: str) -> None:
        print(line, flush=True)


def _ended(title: str, run: Run) -> str:
    proven = "every sample exactly once" if run.audit["exactly_once"] else "NOT exactly once"
    return f"{title.split(':', maxsplit=1)[0]}: {run.train_s:.1f} s, accuracy {run.accuracy:.3f}, {proven}"


def frame(watch: Watch, title: str, options: DemoOptions, speeds_before: list[int], console: Console) -> RenderableType:
    """Progress, one line a worker, the newest decisions with their reason. The caller holds `watch.changed`."""
    width = min(WIDTH_MAX, console.width)
    progress, speeds = watch.progress, watch.progress.speeds
    done, total = progress.committed, progress.total
    if not speeds:
        head = f"starting {options.workers} workers …"
    else:
        head = f"{progress.train_s:5.1f} s   step {progress.step}   {done:,} of {total:,} samples"
    lines = [line(f"plan {d.plan}: {d.reason}", "yellow") for d in watch.control.decisions[-DECISIONS_SHOWN:]]
    lines += [Text("")] * (DECISIONS_SHOWN - len(lines))
    parts: list[RenderableType] = [
        line(head, "bold"),
        Padding(ProgressBar(total=total or 1, completed=done, width=width - 4), 0),
        speed_line(
            speeds,
            width - 4,
            has_unicode(console),
            f" (static: {speeds_before[0]:,})" if speeds_before else "",
            max(speeds_before, default=1),
        ),
        Text(""),
        _workers(watch.control.workers, options, has_unicode(console)),
        Text(""),
        *lines,
    ]
    return Panel(Group(*parts), title=title, title_align="left", width=width)


def _workers(views: dict[str, WorkerView], options: DemoOptions, unicode: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, expand=False)
    for name, width in (("worker", -14), ("samples/s", 9), ("a step", 6), ("", -BAR), ("idle", 7), ("detector", -13)):
        table.add_column(name, justify="left" if width < 0 else "right", width=abs(width), no_wrap=True)
    largest = max((v.batch_size for v in views.values()), default=1) or 1
    for rank in range(options.workers):
        worker = f"w{rank}"
        view = views.get(worker, WorkerView())
        done = options.injected.get(worker)
        style = "red" if view.node_class in SLOW else "green"
        length = max(1, round(BAR * view.batch_size / largest)) if view.batch_size else 0
        table.add_row(
            worker + (f" ({done})" if done else ""),
            f"{view.samples_per_s:,.0f}" if view.own_s else "",
            str(view.batch_size) if view.own_s else "",
            Text(f"{('█' if unicode else '#') * length:<{BAR}}", style=style),
            f"{1000 * view.wait_s:,.0f} ms" if view.own_s else "",
            Text("" if view.node_class == "unknown" else view.node_class, style=style),
        )
    return table


def verdict(result: dict[str, Any]) -> RenderableType:
    """Of one run on parameter servers."""
    audit = result["audit"]
    undone = audit["rolled_back_steps"]
    lines = [
        f"{result['train_s']:.1f} s, accuracy {result['accuracy']:.3f}, {audit['steps']:,} versions of the model",
        f"When s1 died, {undone} of them were undone on all servers, and their samples were done again.",
        audit["verdict"],
    ]
    return Text("\n".join(lines))


def summary(result: dict[str, Any]) -> RenderableType:
    """Static, mitigated and ideal side by side; decisions; audits."""
    table = Table(title="The same job, twice", title_justify="left", box=None, padding=(0, 2))
    for name in ("", "static", "mitigated", "ideal"):
        table.add_column(name, justify="right" if name else "left")
    s, m, i = result["static_s"], result["mitigated_s"], result["ideal_s"]
    table.add_row("training time", f"{s:.1f} s", f"{m:.1f} s", f"{i:.1f} s")
    table.add_row("times as fast", "1.00x", f"{result['speedup']:.2f}x", f"{s / i:.2f}x")
    table.add_row("accuracy", f"{result['accuracy_static']:.3f}", f"{result['accuracy_mitigated']:.3f}", "")
    table.add_row("decisions", "0", str(len(result["decisions"])), "")
    names = ("static", "mitigated")
    table.add_row("exactly once", *("yes" if result[f"audit_{n}"]["exactly_once"] else "NO" for n in names), "")
    reasons = [f"  plan {d['plan']}: {d['reason']}" for d in result["decisions"][:DECISIONS_LISTED]]
    if more := len(result["decisions"]) - len(reasons):
        reasons.append(f"  … and {more} more")
    verdicts = [f"  {n:<9}  {result[f'audit_{n}']['verdict']}" for n in names]
    ideal = [
        "Ideal: the injected speeds alone. Every sample is done by whoever is free first,",
        "and computing, network and the time until somebody notices cost nothing.",
    ]
    blocks = [ideal, ["Decisions of the mitigated run", *reasons], ["Audits, from the logs alone", *verdicts]]
    return Group(table, *(Text("\n".join(["", *block])) for block in blocks))
