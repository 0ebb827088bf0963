// What can be done to trainings: each button says which command does the same.
import { html } from "./view.js";
import { post, remove, training as at } from "./api.js";
import { attempt, Command, confirm } from "./parts.js";
import { link } from "./routes.js";

export const shell = text => /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
export const command = (about, action, ids) =>
  `scopemill trainings ${action} ${shell(about?.bucket ?? "BUCKET")} ${ids.map(shell).join(" ")}`;

export const CAN = { // states in which an action means something
  stop: ["running", "pending"],
  retry: ["failed", "stopped", "pending"],
  delete: ["running", "pending", "completed", "failed", "stopped"],
};
const WARNING = "Checkpoints, weights, evaluations and evidence are removed from the bucket. They cannot be brought back.";

const answered = asked => `${asked.action}: ${asked.driver}`;

export async function act(action, id, name, about) {
  if (action === "delete") {
    const sure = await confirm({ title: `Delete ${name}?`, text: WARNING, action: "Delete", command: command(about, "delete", [id]) });
    return sure ? attempt(() => remove(at(id)), answered) : undefined;
  }
  return attempt(() => post(at(id, action)), answered);
}

async function actOnAll(action, ids, about) {
  if (action === "delete") {
    const sure = await confirm({ title: `Delete ${ids.length} trainings?`, text: WARNING, names: ids, action: `Delete ${ids.length}`,
      command: command(about, "delete", ids) });
    if (!sure) return undefined;
  }
  return attempt(() => post(`trainings/${action}`, { ids }), ({ asked, missing }) =>
    [...asked.map(answered), missing.length && `${missing.length} of them are not there any more.`].filter(Boolean).join("\n"));
}

const MOST_COMPARED = 16;

export function Bulk({ chosen, clear, all, total, about, after }) {
  const ids = [...chosen];
  if (!ids.length) return html`<div class="bulk muted">${total > 0 && html`<button type="button" class="plain"
    onClick=${() => attempt(all)}>Select all ${total}</button>`}</div>`;
  const run = async action => {
    if (!await actOnAll(action, ids, about)) return;
    if (action === "delete") clear();
    after();
  };
  return html`<section class="bulk active" aria-label="Selected trainings"><b role="status">${ids.length} selected</b>
    ${!about?.read_only && ["stop", "retry", "delete"].map(action => html`<button type="button" class=${action === "delete" ? "danger" : ""}
      onClick=${() => run(action)}>
      ${action === "delete" ? "Delete…" : action === "stop" ? "Stop" : "Retry"}</button>`)}
    ${ids.length > 1 && ids.length <= MOST_COMPARED && html`<a class="button" href=${link("compare", { ids: ids.join() })}>Compare</a>`}
    <button type="button" class="plain" onClick=${() => attempt(all)}>Select all ${total}</button><button type="button" class="plain"
      onClick=${clear}>Select none</button>
    ${!about?.read_only && html`<details><summary>On the command line</summary>
      ${["stop", "retry", "delete"].map(action => html`<${Command} label=${action}>${command(about, action, ids)}<//>`)}</details>`}
  </section>`;
}
