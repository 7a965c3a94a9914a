// Step time over time, median and 99th percentile, with each decision as a mark where it was made. uPlot draws.

import { byId, clock, colour, ms, setText } from "./words.js";

export class Pace {
  constructor() {
    this.into = byId("pace");
    this.marks = [];
    this.chosen = null;
    new ResizeObserver(() => this.resize()).observe(this.into);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild());
  }

  show(pace, marks) {
    this.data = [pace.at_s, pace.p50_ms, pace.p99_ms];
    this.width = pace.width_s;
    this.marks = marks.map(([timeMs, plan, action, offset]) => ({ at: timeMs / 1000, one: { plan, action, offset } }));
    if (!this.plot) this.rebuild();
    else this.plot.setData(this.data);
    const n = pace.at_s.length;
    const words = n ? `Step time: median ${ms(pace.p50_ms[n - 1])} ms, 99th percentile ${ms(pace.p99_ms[n - 1])} ms; ${this.marks.length} decisions are marked` : "No step is known yet";
    this.into.setAttribute("aria-label", words);
    this.tell(null);
  }

  // The numbers beside the curves: of the point under the cursor, else of the newest.
  tell(index) {
    const n = this.data[0].length, at = index ?? n - 1;
    const said = (row) => (n && at < n ? `${ms(this.data[row][at])} ms` : "-");
    setText("p50", said(1));
    setText("p99", said(2));
    const when = index === null || index === undefined || at >= n ? "" : `at ${clock(this.data[0][at] * 1000)}`;
    setText("pace-of", n ? when || `a point is ${this.width} s` : "no step yet");
  }

  mark(offset) {
    this.chosen = offset;
    this.plot?.redraw(false);
  }

  size() {
    return { width: Math.max(120, this.into.clientWidth), height: Math.max(90, this.into.clientHeight) };
  }

  resize() {
    if (this.plot) this.plot.setSize(this.size());
  }

  rebuild() {
    if (!this.data) return;
    this.plot?.destroy();
    const axis = { stroke: colour("faint"), grid: { stroke: colour("rule"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const line = (label, name, width) => ({ label, stroke: colour(name), width, points: { show: (u) => u.data[0].length < 3 } });
    this.plot = new window.uPlot(
      {
        ...this.size(),
        padding: [8, 8, 0, 0],
        cursor: { drag: { x: false, y: false }, points: { size: 6 } },
        legend: { show: false },
        scales: { x: { time: true, range: (_, low, high) => this.span(low, high) }, y: { range: (_, __, high) => [0, high > 0 ? high * 1.12 : 1] } },
        series: [
          {},
          line("p50", "compute", 2),
          line("p99", "slow", 1.5),
        ],
        axes: [{ ...axis, space: 76, size: 24, values: (_, all) => all.map((v) => clock(v * 1000).slice(-8)) }, { ...axis, size: 46, values: (_, all) => all.map((v) => (v >= 1000 ? `${v / 1000} s` : `${v} ms`)) }],
        hooks: { draw: [(u) => this.drawMarks(u)], setCursor: [(u) => this.tell(u.cursor.idx)] },
      },
      this.data,
      this.into,
    );
  }

  // A decision behind the newest step is seen, too.
  span(low, high) {
    if (low === null || low === undefined) return [0, 1];
    const marks = this.marks.map(({ at }) => at).filter((at) => at > high && at < high + 600);
    return [low, Math.max(high, low + 10, ...marks)];
  }

  drawMarks(u) {
    const pen = u.ctx, box = u.bbox, scale = window.devicePixelRatio || 1;
    pen.save();
    pen.font = `${10 * scale}px system-ui, sans-serif`;
    pen.textAlign = "center";
    let before = -1e9;
    for (const { at, one } of this.marks) {
      const x = Math.round(u.valToPos(at, "x", true)) + 0.5;
      if (x < box.left || x > box.left + box.width) continue;
      const chosen = one.offset === this.chosen;
      pen.strokeStyle = pen.fillStyle = colour(chosen ? "ink" : "mark");
      pen.lineWidth = (chosen ? 2 : 1) * scale;
      pen.setLineDash(chosen ? [] : [3 * scale, 3 * scale]);
      pen.beginPath();
      pen.moveTo(x, box.top + 12 * scale);
      pen.lineTo(x, box.top + box.height);
      pen.stroke();
      if (x - before < 14 * scale && !chosen) continue;
      before = x;
      pen.fillText(({ KILL_RESTART: "↻", NONE: "P" })[one.action] ?? String(one.plan), x, box.top + 9 * scale);
    }
    pen.restore();
  }
}
