// Orders to a job: only where the server was started with --allow-actions, with its token, under a name.

import { ask, byId, element } from "./words.js";

const FORMS = {
  rollback: { title: "Go back to a checkpoint", what: "The steps behind it are undone, and exactly their samples are trained on again.", reason: true },
  readmit: { title: "Try again what is in quarantine", what: "Mend the samples first. A job that was done goes on when its workers are launched again.", reason: false },
  policy: { title: "Change a parameter of the policy", what: "Counts from the next measurement on. An empty value is the default.", reason: true },
  cluster: { title: "Say whether the cluster is busy", what: "While it is busy, no node is started again.", reason: true },
};

export class Orders {
  constructor(job, found) {
    this.job = job;
    this.found = found;
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
    if (kind === "policy") return [field("Parameter", element("input", { name: "parameter", required: "", maxlength: "63", placeholder: "gain_min" })), field("Value", element("input", { name: "value", maxlength: "63", placeholder: "0.08" }))];
    if (kind === "cluster") return [field("The cluster is", element("select", { name: "cluster" }, element("option", { value: "busy", text: "busy" }), element("option", { value: "free", text: "free" }))), field("For seconds (0: until told)", element("input", { name: "for_s", type: "number", min: "0", value: "600" }))];
    return [];
  }

  async send(event, kind, said) {
    event.preventDefault();
    const given = Object.fromEntries(new FormData(event.target));
    this.token = given.token;
    this.who = given.who;
    const order = { who: given.who, reason: given.reason };
    if (kind === "rollback") order.step = Number(given.step);
    if (kind === "policy") order.changes = { [given.parameter]: given.value };
    if (kind === "cluster") Object.assign(order, { cluster: given.cluster, for_s: Number(given.for_s) });
    said.className = "said";
    said.textContent = "Sent; waiting for the answer …";
    const button = event.target.querySelector(".go");
    button.disabled = true;
    try {
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

function field(label, input) {
  return element("label", {}, element("span", { text: label }), input);
}
