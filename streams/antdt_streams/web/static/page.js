// One job: what the server says of it, live or at a moment of its past, put where it is seen.

import { Lanes } from "./lanes.js";
import { Pace } from "./charts.js";
import { Orders } from "./orders.js";
import { ago, ask, byId, clock, count, element, percent, setText, short } from "./words.js";

const job = decodeURIComponent(location.pathname.split("/")[2] || "");
const url = new URL(location.href);
const PLACES = ["committed", "leased", "returned", "quarantined", "left"];
const RETRY_MS = 3000;

const seen = { found: null, at: url.searchParams.get("at"), worker: "", search: "", first: 0, rows: 40, skew: 0, silent: 0 };
let source = null, asked = null, waiting = 0, retry = 0;

const lanes = new Lanes(
  (first, rows) => { seen.first = first; seen.rows = rows; later(); },
  (worker) => { seen.worker = seen.worker === worker ? "" : worker; look(); },
);
const pace = new Pace();
const orders = new Orders(job, () => seen.found, () => seen.worker);

function query() {
  const words = new URLSearchParams({ first: seen.first, rows: seen.rows });
  if (seen.search) words.set("search", seen.search);
  if (seen.worker) words.set("worker", seen.worker);
  if (seen.at !== null) words.set("at", seen.at);
  return words;
}

function later(delay = 120) {
  clearTimeout(waiting);
  waiting = setTimeout(look, delay);
}

function look() {
  clearTimeout(retry);
  source?.close();
  asked?.abort();
  source = asked = null;
  const path = `/api/jobs/${encodeURIComponent(job)}`;
  if (seen.at === null) {
    source = new EventSource(`${path}/events?${query()}`);
    source.onmessage = (event) => { seen.silent = 0; show(JSON.parse(event.data)); };
    source.onerror = () => failed(path);
    return;
  }
  asked = new AbortController();
  document.body.classList.add("asking");
  ask(`${path}?${query()}`, { signal: asked.signal })
    .then((found) => { seen.silent = 0; show(found); })
    .catch((error) => { if (error.name !== "AbortError") tell(error.message); })
    .finally(() => document.body.classList.remove("asking"));
}

// An event source does not say what is wrong: ask once in words, then try again.
function failed(path) {
  source?.close();
  seen.silent ||= Date.now();
  ask(`${path}?${query()}`)
    .then((found) => { if (seen.at === null) show(found); })
    .catch((error) => {
      const gone = error instanceof TypeError;
      tell(gone ? `The server of this page does not answer since ${clock(seen.silent)}: what is shown is from before.` : error.message);
    });
  clearTimeout(retry);
  retry = setTimeout(look, RETRY_MS);
}

function tell(sentence) {
  const banner = byId("trouble");
  banner.hidden = !sentence;
  banner.textContent = sentence || "";
  document.body.classList.toggle("stale", Boolean(sentence));
}

function show(found) {
  seen.found = found;
  seen.skew = found.live ? Date.now() - found.now_ms : seen.skew;
  const trouble = found.trouble;
  tell(trouble ? `${trouble.sentence} Since ${clock(trouble.since_ms)}; what is shown is from before.` : "");
  head(found);
  verdict(found);
  samples(found);
  lanes.show(found, seen.worker);
  pace.show(found.pace, found.marks);
  decisions(found);
  health(found);
  ages();
  orders.show(found);
  document.documentElement.dataset.offset = found.offset;
  if (!window.readyAt) requestAnimationFrame(() => { window.readyAt ||= performance.now(); document.documentElement.dataset.ready = "yes"; });
}

function head(found) {
  document.title = `${job}: ${found.state}`;
  setText("job", job);
  const state = found.trouble ? (found.trouble.gone ? "gone" : "not known") : found.current === false ? "reading" : found.live || found.done ? found.state : "as it was";
  setText("state", state);
  byId("state").className = `pill ${state === "done" ? "done" : state === "trains" ? "well" : "odd"}`;
  setText("step", count(found.step));
  setText("rate", found.samples_per_s === null ? "-" : short(found.samples_per_s));
  setText("members", found.attached ? `${found.members} servers, ${count(found.attached)} workers` : count(found.members));
  setText("generation", count(found.generation));
  setText("plan", count(found.plan));
  setText("policy", found.policy || "-");
  byId("step").title = byId("generation").title = byId("plan").title = byId("members").title = `log@${found.offset}`;
  byId("rate").title = found.measured_at === null ? "" : `measurements@${found.measured_at}`;
  const slider = byId("at");
  slider.max = found.end;
  if (document.activeElement !== slider || found.live) slider.value = found.offset;
  slider.setAttribute("aria-valuetext", `log offset ${found.offset}`);
  const live = byId("live");
  live.setAttribute("aria-pressed", String(found.live));
  live.textContent = found.live ? "Live" : "Back to now";
  const past = byId("past");
  past.hidden = found.live;
  if (!found.live) past.textContent = `The past: everything here is as it was after entry ${count(found.offset)} of ${count(found.end)}${found.time_ms ? `, at ${clock(found.time_ms)}` : ""}.`;
}

function ages() {
  const found = seen.found;
  if (!found) return;
  const now = Date.now() - seen.skew;
  const when = found.time_ms ? `${clock(found.time_ms)}, ${ago((now - found.time_ms) / 1000)} ago` : "";
  setText("when", `log@${found.offset} of ${found.end}${when ? `  ·  ${when}` : ""}`);
  for (const one of document.querySelectorAll("[data-since]")) one.textContent = `${ago((now - Number(one.dataset.since)) / 1000)} ago`;
}

function verdict(found) {
  const card = byId("verdict").closest(".verdict");
  card.classList.toggle("slow", found.slow > 0);
  setText("verdict", found.verdict);
  const last = found.decisions.at(-1);
  const effect = last?.effect;
  const came = effect ? ` ${last.author ? "It" : `It was to save ${percent(last.predicted_gain)} of the step time and`} saved ${percent(effect.measured_gain)} ± ${percent(effect.gain_error)}: ${effect.verdict.replaceAll("_", " ")}.` : last && last.action !== "NONE" ? (found.done ? " What it saved was not measured." : " What it saves is being measured.") : "";
  setText("acted", last ? `${name(last)} (decisions@${last.offset}): ${last.reason}.${came}` : found.current === false ? "Reading what was decided …" : "Nothing was decided yet.");
  const why = found.why;
  setText("why-verdict", why && seen.worker ? why.verdict : "");
  byId("evidence").replaceChildren(...(why ? [...why.evidence, ...why.done].map((text) => element("li", { text })) : []));
  setText("next", why ? why.next : "");
}

const name = (one) => ({ KILL_RESTART: `Restart of ${one.target}`, NONE: "Policy" })[one.action] || `Plan ${one.plan}`;

function samples(found) {
  const all = found.samples;
  setText("samples-of", `${count(all.committed)} of ${count(all.total)} in the model (${all.total ? ((100 * all.committed) / all.total).toFixed(1) : 0} %), log@${found.offset}`);
  byId("bar").replaceChildren(...PLACES.map((place) => part(place, all)));
  const words = PLACES.map((place) => `${count(all[place])} ${place}`).join(", ");
  byId("bar").setAttribute("aria-label", `Of ${count(all.total)} samples: ${words}`);
  byId("places").replaceChildren(...PLACES.map((place) => element("li", {}, element("i", { class: place }), element("b", { text: count(all[place]) }), document.createTextNode(` ${place}`))));
  byId("epochs").replaceChildren(...found.epochs.map((one) => {
    const said = `epoch ${one.epoch}: ${PLACES.map((place) => `${count(one[place])} ${place}`).join(", ")}`;
    return element("div", { class: "epoch", title: said, role: "img", "aria-label": said }, element("span", { text: `epoch ${one.epoch}` }), element("div", { class: "bar" }, ...PLACES.map((place) => part(place, one))));
  }));
}

function part(place, all) {
  const made = element("i", { class: place, title: `${place}: ${count(all[place])}` });
  made.style.flexGrow = all.total ? all[place] / all.total : place === "left" ? 1 : 0;
  made.hidden = !all[place] && all.total > 0;
  return made;
}

function decisions(found) {
  setText("decisions-of", found.decisions.length ? `the newest ${found.decisions.length}` : "none yet");
  const open = new Set([...document.querySelectorAll("#decisions li.chosen")].map((one) => one.dataset.offset));
  byId("decisions").replaceChildren(...found.decisions.toReversed().map((one, at) => decision(one, open, at === 0 && !found.done)));
  const last = found.live && found.workers_total ? found : null;
  const read = last?.read?.steps;
  const sampled = read && read[1] > 0 ? `, ${((100 * read[0]) / (read[0] + read[1])).toFixed(0)} % of the step records are read` : "";
  const slow = found.slow ? `${count(found.slow)} slow` : "none slow";
  const shown = found.workers_found !== found.workers_total ? `${count(found.workers_found)} of ` : "";
  setText("lanes-of", `${shown}${count(found.workers_total)} workers, ${slow}${found.servers.length ? `, ${found.servers.length} servers` : ""}${sampled}`);
}

function decision(one, open, newest) {
  const effect = one.effect;
  const gain = effect
    ? element("span", { class: `gain ${effect.verdict}`, title: effect.told, text: `${one.author ? "ordered" : `predicted ${percent(-one.predicted_gain)}`}, measured ${percent(-effect.measured_gain)} ± ${percent(effect.gain_error)}: ${effect.verdict.replaceAll("_", " ")}` })
    : one.action === "NONE" ? null : element("span", { class: "gain", text: one.predicted_gain ? `predicted ${percent(-one.predicted_gain)}, not measured ${newest ? "yet" : "by itself"}` : one.author ? `ordered, not measured ${newest ? "yet" : "by itself"}` : "no gain was predicted" });
  const changes = element("span", { class: "changes" }, ...one.changes.map(([worker, before, now]) => element("span", { text: before === null ? `${worker} ${now}` : `${worker} ${before}→${now}` })));
  const source = element("span", { class: "source", text: `decisions@${one.offset}, measurements@${one.evidence[0]}${one.evidence[1] !== one.evidence[0] ? `–${one.evidence[1]}` : ""}, ${one.author ? "by order" : one.policy}${effect && effect.in_effect_step >= 0 ? `, in effect from step ${effect.in_effect_step} after ${effect.delay_s} s` : ""}` });
  return element(
    "li",
    { "data-offset": one.offset, class: open.has(String(one.offset)) ? "chosen" : "", tabindex: "0", onmouseenter: () => pace.mark(one.offset), onmouseleave: () => pace.mark(null), onfocus: () => pace.mark(one.offset), onblur: () => pace.mark(null) },
    element("div", { class: "said-so" }, element("span", {}, element("b", { text: ({ KILL_RESTART: `↻ ${one.target.split(".")[0]} `, NONE: "" })[one.action] ?? `plan ${one.plan} ` }), document.createTextNode(one.reason)), one.time_ms ? element("time", { text: clock(one.time_ms) }) : null),
    element("div", {}, ...[gain, changes].filter(Boolean)),
    source,
  );
}

function health(found) {
  const at = `log@${found.offset}`;
  const tiles = [["in office", found.leader || "nobody", found.leader_at === null ? "" : `since log@${found.leader_at}`, found.leader ? "" : "odd"]];
  tiles.push(["newest entry", found.time_ms ? { since: found.time_ms } : "-", at, ""]);
  const services = found.health?.services;
  for (const service of ["ledger", "monitor", "controller"]) {
    const one = services?.[service];
    const lag = one?.behind === null || one?.behind === undefined ? "?" : one.behind ? `${count(one.behind)} behind` : "up to date";
    const word = !one ? (found.live ? "asking" : "of now only") : one.answers === false ? "not there" : lag;
    tiles.push([service, word, one ? one.said : "", one && one.answers === false && !found.done ? "bad" : ""]);
  }
  const letters = found.health?.dead_letters;
  const newest = letters?.newest;
  tiles.push(["dead letters", letters ? count(letters.count) : "-", newest ? `dead-letters@${newest.offset}: ${newest.service}, ${newest.of}: ${newest.reason}` : "none", letters?.count ? "odd" : ""]);
  tiles.push(["void entries", count(found.void_entries), found.void_entries ? "of former leaders, or of somebody else" : at, found.void_entries ? "odd" : ""]);
  tiles.push(["refused requests", count(found.refused), at, ""]);
  byId("health").replaceChildren(...tiles.map(([term, said, more, kind]) => {
    const told = typeof said === "object" ? element("dd", { "data-since": said.since, text: "" }) : element("dd", { text: said });
    return element("div", { class: kind, title: more }, element("dt", { text: term }), told, element("small", { text: more }));
  }));
}

// -- the moment

function go(at) {
  seen.at = at === null ? null : String(at);
  const here = new URL(location.href);
  if (at === null) here.searchParams.delete("at");
  else here.searchParams.set("at", at);
  history.replaceState(null, "", here);
}

byId("at").addEventListener("input", (event) => {
  go(Number(event.target.value));
  setText("when", `log@${event.target.value} of ${event.target.max}`);
  later(150);
});
byId("live").addEventListener("click", () => { if (seen.at !== null) { go(null); look(); } });
byId("search").addEventListener("input", (event) => {
  seen.search = event.target.value.trim();
  seen.first = 0;
  byId("scroll").scrollTop = 0;
  later(200);
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { source?.close(); source = null; clearTimeout(retry); } else if (source === null && seen.at === null) look();
});
addEventListener("popstate", () => { seen.at = new URL(location.href).searchParams.get("at"); look(); });
setInterval(ages, 1000);
setText("job", job);
look();
