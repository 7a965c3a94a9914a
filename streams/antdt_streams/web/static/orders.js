// Orders to a job: only where the server was started with --allow-actions, with its token, under a name.

import { ask, byId, element } from "./words.js";

const FORMS = {
  rollback: { title: "Go back to a checkpoint", what: "The steps behind it are undone, and exactly their samples are trained on again.", reason: true },
  readmit: { title: "Try again what is in quarantine", what: "Mend the samples first. A job that was done goes on when its workers are launched again.", reason: false },
  restart: { title: "Start a worker or server again", what: "It leaves, and its launcher starts its next life. Nothing is lost or repeated.", reason: true },
  policy: { title: "Change a parameter of the policy", what: "Counts from the next measurement on. An empty value is the default.", reason: true },
  promote: { title: "Let another policy decide", what: "From now on, also after a restart. What is in force stays until it decides otherwise.", reason: true },
  cluster: { title: "Say whether the cluster is busy", what: "While it is busy, no node is started again.", reason: true },
};

// Those that come with antdt; one that is installed is typed.
const POLICIES = ["nd", "dd", "adjust-bs", "even", "none", "lb-bsp", "backup", "backup-drop", "asp", "asp-dds", "ant-colony"];

export class Orders {
  constructor(job, found, chosen) {
    this.job = job;
    this.found = found;
    this.chosen = chosen;
    this.token = "";
    this.who = "";
    this.dialog = byId("dialog");
    const button = byId("orders");
    button.addEventListener("click", () => this.open());
    ask("/api/may").then((may) => { button.hidden = !may.actions; }).catch(() => {});
  }

  show(found) {
    byId("orders").disabled = !found.live;
  }

  open(kind = "rollback") {
    const form = FORMS[kind];
    const choose = element("select", { name: "kind", "aria-label": "Order", onchange: (event) => this.open(event.target.value) }, ...Object.entries(FORMS).map(([key, one]) => element("option", { value: key, text: one.title })));
    choose.value = kind;
    const said = element("p", { class: "said", role: "status" });
    const body = element(
      "form",
      { method: "dialog", onsubmit: (event) => this.send(event, kind, said) },
      element("h2", { id: "dialog-title", text: `Order to ${this.job}` }),
      choose,
      element("p", { text: form.what }),
      ...this.fields(kind),
      form.reason ? field("Why", element("input", { name: "reason", required: "", maxlength: "500" })) : null,
      field("Your name", element("input", { name: "who", required: "", maxlength: "63", autocomplete: "name", value: this.who })),
      field("Token", element("input", { name: "token", type: "password", required: "", autocomplete: "off", value: this.token })),
      said,
      element("div", { class: "buttons" }, element("button", { type: "button", text: "Close", onclick: () => this.dialog.close() }), element("button", { type: "submit", class: "go", text: "Send the order" })),
    );
    this.dialog.replaceChildren(body);
    if (!this.dialog.open) this.dialog.showModal();
  }

  fields(kind) {
    if (kind === "rollback") {
      const steps = this.found()?.checkpoints || [];
      const options = [element("option", { value: "-1", text: "the newest checkpoint" }), ...steps.map((step) => element("option", { value: step, text: `step ${step}` }))];
      return [field("To", element("select", { name: "step" }, ...options))];
    }
    if (kind === "restart") return [field("Worker or server", element("input", { name: "worker", required: "", maxlength: "63", placeholder: "w1", spellcheck: "false", value: this.chosen() }))];
    if (kind === "promote") {
      const names = element("datalist", { id: "policies" }, ...POLICIES.map((name) => element("option", { value: name })));
      const name = element("input", { name: "policy", required: "", maxlength: "63", placeholder: "nd", spellcheck: "false", list: "policies" });
      const parameters = element("input", { name: "parameters", maxlength: "500", placeholder: "gain_min=0.08 restart=off", spellcheck: "false" });
      return [field("Policy", name), names, field("Parameters", parameters)];
    }
    if (kind === "policy") return [field("Parameter", element("input", { name: "parameter", required: "", maxlength: "63", placeholder: "gain_min" })), field("Value", element("input", { name: "value", maxlength: "63", placeholder: "0.08" }))];
    if (kind === "cluster") return [field("The cluster is", element("select", { name: "cluster" }, element("option", { value: "busy", text: "busy" }), element("option", { value: "free", text: "free" }))), field("For seconds (0: until told)", element("input", { name: "for_s", type: "number", min: "0", value: "600" }))];
    return [];
  }

  async send(event, kind, said) {
    event.preventDefault();
    const given = Object.fromEntries(new FormData(event.target));
    this.token = given.token;
    this.who = given.who;
    said.className = "said";
    said.textContent = "Sent; waiting for the answer …";
    const button = event.target.querySelector(".go");
    button.disabled = true;
    try {
      const order = { who: given.who, reason: given.reason, ...asked(kind, given) };
      const headers = { "Content-Type": "application/json", "X-Antdt-Token": given.token };
      const answer = await ask(`/api/jobs/${encodeURIComponent(this.job)}/orders/${kind}`, { method: "POST", headers, body: JSON.stringify(order) });
      said.textContent = answer.said;
      said.classList.add("well");
    } catch (error) {
      said.textContent = error.message;
      said.classList.add("bad");
    } finally {
      button.disabled = false;
    }
  }
}

// What an order says beside who gives it, and why.
function asked(kind, given) {
  if (kind === "rollback") return { step: Number(given.step) };
  if (kind === "restart") return { worker: given.worker };
  if (kind === "policy") return { changes: { [given.parameter]: given.value } };
  if (kind === "promote") return { policy: given.policy, changes: pairs(given.parameters) };
  if (kind === "cluster") return { cluster: given.cluster, for_s: Number(given.for_s) };
  return {};
}

// Parameters as they are typed on a command line.
function pairs(text) {
  const words = text.split(/\s+/).filter(Boolean);
  const wrong = words.find((word) => word.indexOf("=") < 1);
  if (wrong) throw new Error(`${wrong}: say NAME=VALUE.`);
  return Object.fromEntries(words.map((word) => [word.slice(0, word.indexOf("=")), word.slice(word.indexOf("=") + 1)]));
}

function field(label, input) {
  return element("label", {}, element("span", { text: label }), input);
}
