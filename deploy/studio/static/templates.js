// Training templates: kept on the bucket for everybody, beside those that the package carries.
import { html, useRef, useState } from "./view.js";
import { get, patch, post, query, remove } from "./api.js";
import { attempt, confirm, download, Empty, Loading, useLoaded, Wrong } from "./parts.js";
import { link } from "./routes.js";

const at = (name, rest = "") => `training-templates/${encodeURIComponent(name)}${rest}`;

export function Templates({ about }) {
  const { value: list, problem, again } = useLoaded(signal => get("training-templates", signal), []);
  const file = useRef(null), [replace, setReplace] = useState(false), writes = !about?.read_only;
  const then = work => attempt(work).then(again);
  const take = async event => {
    const text = await event.target.files[0]?.text();
    event.target.value = "";
    if (!text) return;
    await attempt(async () => {
      let content;
      try { content = JSON.parse(text); } catch { throw new Error("This file is not JSON: choose one that Export wrote."); }
      return post(`training-templates/import?${query({ replace })}`, content);
    }, found => `Imported ${found.map(one => one.name).join(", ")}.`);
    again();
  };
  return html`<h1 class="title">Training templates</h1>
    <div class="buttons"><button type="button" onClick=${() => save()}>Export your own</button>
      ${writes && html`<button type="button" onClick=${() => file.current.click()}>Import…</button>
        <input ref=${file} type="file" hidden accept="application/json,.json" aria-label="A file of templates" onChange=${take} />
      <label><input type="checkbox" checked=${replace}
        onChange=${event => setReplace(event.target.checked)} /> replace those of the same name</label>`}</div>
    ${problem && html`<${Wrong} problem=${problem} again=${again} />`}${!list && !problem && html`<${Loading} what="templates" />`}
    ${list && !list.length && html`<${Empty}><p>There is no template yet: the form that starts trainings saves one.</p><//>`}
    ${list && html`<ul class="tiles">${list.map(one => html`<${Template} key=${one.name} ...${{ one, writes, then }} />`)}</ul>`}`;
}

const save = name => attempt(async () => {
  const document = await get(`training-templates/export?${query({ name })}`);
  download(`${name ?? "training-templates"}.json`, JSON.stringify(document, null, 2), "application/json");
});

function Template({ one, writes, then }) {
  const duplicate = name => then(() => post(at(one.name, "/duplicate"), { name }));
  const ask = { title: `Delete template ${one.name}?`, text: "Trainings that were started from it stay as they are.", action: "Delete" };
  const drop = async () => { if (await confirm(ask)) then(() => remove(at(one.name))); };
  return html`<li class="card"><header><button type="button" class="plain star" aria-pressed=${one.favourite ? "true" : "false"}
      aria-label=${`${one.name} is a favourite`} disabled=${!writes}
      onClick=${() => then(() => patch(at(one.name), { favourite: !one.favourite }))}>${one.favourite ? "★" : "☆"}</button>
      <h2>${one.name}</h2><span class="muted">${one.own ? "" : "comes with Scopemill"}</span></header>
    <p class="muted">${one.description || "No description."}</p><p class="muted">used ${one.uses} ${one.uses === 1 ? "time" : "times"}</p>
    <details><summary>Content</summary><pre class="log" tabindex="0">${JSON.stringify(one.config, null, 2)}</pre></details>
    <div class="buttons">${writes && html`<a class="button" href=${link("new", { template: one.name })}>Use</a>
        <${Ask} title="Duplicate" label="Name of the copy" value=${`${one.name}-copy`} done=${duplicate} />`}
      <button type="button" onClick=${() => save(one.name)}>Export</button>
      ${writes && one.own && html`<button type="button" class="danger" onClick=${drop}>Delete…</button>`}</div></li>`;
}

// A button that asks for one line of text.
function Ask({ title, label, value, done }) {
  const [open, set] = useState(false);
  if (!open) return html`<button type="button" onClick=${() => set(true)}>${title}</button>`;
  return html`<form class="inline" onSubmit=${event => { event.preventDefault(); set(false); done(event.target.text.value.trim()); }}>
    <input name="text" aria-label=${label} defaultValue=${value} required autofocus /><button>OK</button>
    <button type="button" class="plain" onClick=${() => set(false)}>Cancel</button></form>`;
}

// Saves what the form holds, but for what belongs to one sweep alone.
export function SaveTemplate({ config }) {
  const [open, set] = useState(false), [name, setName] = useState(""), [description, describe] = useState("");
  const save = async () => {
    const { name: _, bucket, ...rest } = config;
    const given = { name: name.trim(), description, config: rest };
    if (await attempt(() => post("training-templates", given), found => `Saved template ${found.name}.`)) set(false);
  };
  if (!open) return html`<button type="button" onClick=${() => set(true)}>Save as template…</button>`;
  return html`<fieldset class="inputs"><legend>Save as template</legend><label>Name <input value=${name} autofocus
    onInput=${event => setName(event.target.value)} /></label>
    <label>Description <input value=${description} onInput=${event => describe(event.target.value)} /></label>
    <div class="buttons"><button type="button" disabled=${!name.trim()} onClick=${save}>Save</button><button type="button" class="plain"
      onClick=${() => set(false)}>Cancel</button></div></fieldset>`;
}
