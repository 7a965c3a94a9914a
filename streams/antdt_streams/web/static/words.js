// How numbers and times are said, and elements are made. Text is set as text: a name from a topic is never markup.

export const byId = (id) => document.getElementById(id);

export function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (value === null || value === undefined) continue;
    if (key === "text") made.textContent = value;
    else if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
export const count = (n) => (n === null || n === undefined ? "-" : whole.format(n));

export function short(n) {
  if (n === null || n === undefined) return "-";
  const units = [[1e9, "G"], [1e6, "M"], [1e4, "k"]];
  for (const [size, unit] of units) if (n >= size) return `${(n / (unit === "k" ? 1e3 : size)).toPrecision(3)}${unit}`;
  return whole.format(n);
}

export function ms(value) {
  if (!value) return "-";
  if (value >= 10000) return `${(value / 1000).toFixed(1)} s`;
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toPrecision(2);
}

export const percent = (share) => `${share < 0 ? "−" : ""}${Math.abs(100 * share).toFixed(0)} %`;

export function ago(seconds) {
  const s = Math.max(0, seconds);
  if (s < 90) return `${s.toFixed(0)} s`;
  if (s < 5400) return `${(s / 60).toFixed(0)} min`;
  if (s < 129600) return `${(s / 3600).toFixed(0)} h`;
  return `${(s / 86400).toFixed(0)} d`;
}

export function clock(timeMs) {
  const at = new Date(timeMs);
  const two = (n) => String(n).padStart(2, "0");
  const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  const day = at.toDateString() === new Date().toDateString() ? "" : `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} `;
  return day + time;
}

export function setText(id, text) {
  const node = byId(id);
  if (node.textContent !== text) node.textContent = text;
}

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export async function ask(url, options = {}) {
  const answer = await fetch(url, options);
  const body = await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}` }));
  if (!answer.ok) throw new Error(body.error || `${answer.status}`);
  return body;
}
