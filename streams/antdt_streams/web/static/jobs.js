// All jobs of the broker.

import { ago, ask, byId, count, element, setText } from "./words.js";

const EVERY_MS = 5000;

async function look() {
  try {
    const found = await ask("/api/jobs");
    byId("trouble").hidden = true;
    setText("broker", found.broker);
    setText("count", `${found.jobs.length} ${found.jobs.length === 1 ? "job" : "jobs"}`);
    byId("none").hidden = found.jobs.length > 0;
    byId("jobs").replaceChildren(...found.jobs.map(row));
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    byId("trouble").hidden = false;
    byId("trouble").textContent = error instanceof TypeError ? "The server of this page does not answer." : error.message;
  }
  if (!document.hidden) setTimeout(look, EVERY_MS);
}

function row(one) {
  const share = one.samples_total ? one.committed / one.samples_total : 0;
  const done = element("i", { class: "committed" });
  const left = element("i", { class: "left" });
  done.style.flexGrow = share;
  left.style.flexGrow = 1 - share;
  const word = one.state.split(":")[0];
  const kind = word === "trains" ? "well" : word === "done" ? "done" : "odd";
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, element("a", { href: `/jobs/${encodeURIComponent(one.job)}`, text: one.job })),
    element("td", {}, element("span", { class: `pill ${kind}`, text: word }), element("span", { class: "of", text: one.state.includes(":") ? one.state.slice(word.length + 1) : "" })),
    element("td", {}, element("div", { class: "bar" }, done, left), element("span", { class: "of", text: `${count(one.committed)} of ${count(one.samples_total)}` })),
    element("td", { class: "n", text: count(one.step) }),
    element("td", { class: "n", text: count(one.members) }),
    element("td", { class: "n", text: count(one.records) }),
    element("td", { class: "n", text: one.age_s === null ? "-" : `${ago(one.age_s)} ago` }),
  );
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
look();
