// The lanes: a row of text for each worker in sight, and one canvas that draws their newest steps beside them.

import { byId, colour, count, element, ms } from "./words.js";

const ROW = 22, ROW_MAX = 72;
const MARGIN = 8; // rows loaded beyond those in sight
const ROWS_MAX = 100;
const PARTS = ["data", "compute", "communication", "wait"];
const SLOW = new Set(["persistent", "transient", "deterministic", "absent"]);

export class Lanes {
  // wants(first, rows): other rows have come into sight. chosen(worker): somebody wants to know why.
  constructor(wants, chosen) {
    this.scroll = byId("scroll");
    this.rows = byId("rows");
    this.canvas = byId("lanes");
    this.wants = wants;
    this.chosen = chosen;
    this.found = { workers: [], servers: [], first: 0, workers_found: 0 };
    this.worker = "";
    this.tall = ROW; // of one row: few workers have more room
    this.scroll.addEventListener("scroll", () => this.moved());
    this.scroll.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.moved()).observe(this.scroll);
  }

  inSight() {
    const first = Math.max(0, Math.floor(this.scroll.scrollTop / this.tall) - MARGIN);
    const rows = Math.min(ROWS_MAX, Math.ceil(this.scroll.clientHeight / ROW) + 2 * MARGIN);
    return { first, rows: Math.max(rows, 2 * MARGIN) };
  }

  moved() {
    this.draw();
    const { first, rows } = this.inSight();
    const last = Math.min(first + rows, this.found.workers_found);
    const seen = Math.max(0, Math.floor(this.scroll.scrollTop / this.tall));
    const below = Math.min(this.found.workers_found, seen + Math.ceil(this.scroll.clientHeight / this.tall));
    const have = [this.found.first, this.found.first + this.found.workers.length];
    if (last > first && (seen < have[0] || below > have[1])) this.wants(first, rows);
  }

  show(found, worker) {
    this.found = found;
    this.worker = worker;
    const all = found.workers_found + found.servers.length;
    this.tall = Math.max(ROW, Math.min(ROW_MAX, Math.floor(this.scroll.clientHeight / Math.max(1, all))));
    this.rows.style.height = `${all * this.tall}px`;
    const made = found.workers.map((one, at) => this.row(one, found.first + at));
    made.push(...found.servers.map((one, at) => this.row(one, found.workers_found + at, true)));
    const focused = document.activeElement?.dataset?.worker;
    this.rows.replaceChildren(...made);
    if (focused) this.rows.querySelector(`[data-worker="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    this.draw();
  }

  row(one, at, server = false) {
    const slow = SLOW.has(one.class);
    const label = `${one.worker}: ${one.class}, ${count(one.batch_size)} samples a step, ${ms(one.own_ms_a_sample)} ms a sample, waits ${ms(one.wait_ms)} ms`;
    const made = element(
      "div",
      {
        class: `row${slow ? " slow" : ""}${one.worker === this.worker ? " chosen" : ""}`,
        role: "option", tabindex: "-1", "aria-label": label, "aria-selected": String(one.worker === this.worker),
        "data-worker": one.worker, "data-at": at, title: `steps@${one.steps_at ?? "-"}, step ${one.step ?? "-"}`,
        onclick: () => this.chosen(one.worker),
      },
      element("span", { class: "name", text: one.worker }),
      element("span", { class: "class", text: server ? "server" : one.class }),
      element("span", { class: "n", text: server ? "" : count(one.batch_size) }),
      element("span", { class: "n", text: server ? "" : ms(one.own_ms_a_sample) }),
      element("span", { class: "n", text: ms(one.wait_ms) }),
    );
    made.style.transform = `translateY(${at * this.tall}px)`;
    made.style.height = `${this.tall}px`;
    return made;
  }

  key(event) {
    const rows = [...this.rows.children];
    const at = rows.indexOf(document.activeElement);
    const go = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (go !== undefined && rows.length) {
      const next = rows[Math.min(rows.length - 1, Math.max(0, at + go))];
      next.focus({ preventScroll: true });
      const top = Number(next.dataset.at) * this.tall, end = top + this.tall;
      if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
      if (end > this.scroll.scrollTop + this.scroll.clientHeight) this.scroll.scrollTop = end - this.scroll.clientHeight;
      event.preventDefault();
    } else if ((event.key === "Enter" || event.key === " ") && at >= 0) {
      this.chosen(rows[at].dataset.worker);
      event.preventDefault();
    }
  }

  draw() {
    const box = this.canvas.parentElement.getBoundingClientRect();
    const left = parseFloat(getComputedStyle(this.canvas).left) || 0;
    const bar = this.scroll.offsetWidth - this.scroll.clientWidth;
    const width = Math.max(0, box.width - left - bar - 4), height = this.scroll.clientHeight;
    const scale = window.devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * scale) || this.canvas.height !== Math.round(height * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
      this.canvas.style.width = `${width}px`;
      this.canvas.style.height = `${height}px`;
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (width < 40) return;
    const top = this.scroll.scrollTop;
    const at = (index) => index * this.tall - top;
    const shown = this.found.workers.map((one, index) => [one, at(this.found.first + index)]);
    const servers = this.found.servers.map((one, index) => [one, at(this.found.workers_found + index)]);
    const inside = ([, y]) => y > -this.tall && y < height;
    paint(pen, shown.filter(inside), width, this.tall);
    paint(pen, servers.filter(inside), width, this.tall);
  }
}

// Steps that all have in common stand below each other, as wide as the longest of them; else each lane is by itself.
function paint(pen, lanes, width, tall) {
  const fills = { colours: PARTS.map(colour), tall };
  const steps = new Map();
  for (const [one] of lanes)
    for (let i = 0; i < one.lane.length; i += 5) {
      const total = one.lane[i + 1] + one.lane[i + 2] + one.lane[i + 3] + one.lane[i + 4];
      const known = steps.get(one.lane[i]) || { total: 0, lanes: 0 };
      steps.set(one.lane[i], { total: Math.max(known.total, total), lanes: known.lanes + 1 });
    }
  const numbers = [...steps.keys()].sort((a, b) => a - b);
  if (!numbers.length) return;
  const entries = lanes.reduce((sum, [one]) => sum + one.lane.length / 5, 0);
  const together = lanes.length === 1 || entries / numbers.length > 0.4 * lanes.length;
  if (together) inColumns(pen, lanes, width, fills, steps, numbers.slice(-32));
  else byThemselves(pen, lanes, width, fills);
}

function inColumns(pen, lanes, width, fills, steps, numbers) {
  const all = numbers.reduce((sum, number) => sum + steps.get(number).total, 0) || 1;
  const gap = Math.min(1.5, width / numbers.length / 6);
  const each = (width - gap * numbers.length) / all;
  const from = new Map();
  let x = 0;
  for (const number of numbers) {
    from.set(number, x);
    x += steps.get(number).total * each + gap;
  }
  for (const [one, y] of lanes)
    for (let i = 0; i < one.lane.length; i += 5)
      if (from.has(one.lane[i])) segments(pen, one.lane, i, from.get(one.lane[i]), y, each, fills);
}

function byThemselves(pen, lanes, width, fills) {
  let longest = 1;
  for (const [one] of lanes) {
    let total = 0;
    for (let i = 0; i < one.lane.length; i += 5) total += one.lane[i + 1] + one.lane[i + 2] + one.lane[i + 3] + one.lane[i + 4];
    longest = Math.max(longest, total);
  }
  const each = width / longest;
  for (const [one, y] of lanes) {
    let x = width;
    for (let i = one.lane.length - 5; i >= 0; i -= 5) {
      const total = one.lane[i + 1] + one.lane[i + 2] + one.lane[i + 3] + one.lane[i + 4];
      x -= total * each;
      segments(pen, one.lane, i, x, y, each, fills, 1);
    }
  }
}

function segments(pen, lane, i, x, y, each, fills, gap = 0) {
  for (let part = 0; part < 4; part++) {
    const wide = lane[i + 1 + part] * each;
    if (wide <= 0) continue;
    pen.fillStyle = fills.colours[part];
    const thin = (part === 3 ? 0.24 : 0.14) * fills.tall;
    pen.fillRect(x, y + thin, Math.max(wide - (part === 3 ? gap : 0), 0.4), fills.tall - 2 * thin);
    x += wide;
  }
}
