// Finished SAEs of the bucket, and published ones that can be imported.
import { html, useState } from "./view.js";
import { get, post, query } from "./api.js";
import { folder } from "./latents.js";
import { shell } from "./actions.js";
import { count, number } from "./format.js";
import { Job, useJob } from "./jobs.js";
import { attempt, Command, Copy, Empty, Loading, useLoaded, Wrong } from "./parts.js";
import { go, link } from "./routes.js";

const PAGE = 100;

export function Saes({ parameters, about }) {
  const { text = "", model = "", layer = "", architecture = "", width = "", evidence = "", page = "0" } = parameters;
  const asked = { text, model, layer, architecture, width, evidence: evidence ? true : null, offset: Number(page) * PAGE, limit: PAGE };
  const { value: found, problem, again } = useLoaded(signal => get(`saes?${query(asked)}`, signal), asked);
  const set = changes => go("saes", { ...parameters, page: "", ...changes }, true);
  const box = (name, title, value, attributes = {}) => html`<label><span class="muted">
    ${title}</span> <input ...${attributes} size=${attributes.size ?? 10} value=${value}
    onChange=${event => set({ [name]: event.target.value.trim() })} /></label>`;
  return html`<h1 class="title">SAEs</h1><section aria-label="SAEs of this bucket"><h2>In this bucket</h2>
    <search class="filters" aria-label="Filter the SAEs">
      ${box("text", "Find", text, { type: "search", size: 24, placeholder: "a part of the path" })}${box("model", "Model", model)}${box("layer", "Layer", layer, { inputmode: "numeric", size: 4 })}
      ${box("architecture", "Architecture", architecture)}${box("width", "Latents", width, { inputmode: "numeric", size: 8 })}
      <label><input type="checkbox" checked=${Boolean(evidence)}
        onChange=${event => set({ evidence: event.target.checked ? "1" : "" })} /> with evidence</label></search>
    ${problem && html`<${Wrong} problem=${problem} again=${again} />`}${!found && !problem && html`<${Loading} what="SAEs" />`}
    ${found && !found.total && html`<${Empty}><p>
      ${Object.keys(parameters).length ? "No SAE matches." : "No SAE of this bucket is finished yet."}</p><//>`}
    ${found?.total > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="SAEs, a table"><table><thead><tr>
      <th scope="col">SAE</th><th scope="col" class="n">Latents</th><th scope="col" class="n">L0</th><th scope="col" class="n">FVU</th>
      <th scope="col" class="n">Delta loss</th><th scope="col">Made by</th><th scope="col">Look</th></tr></thead>
      <tbody>${found.items.map(one => html`<tr key=${one.path}><td><code>${one.path.replace(/^saes\//, "")}</code></td><td class="n">
        ${count(one.width)}</td><td class="n">${number(one.quality?.l0)}</td><td class="n">${number(one.quality?.fvu)}</td><td class="n">
        ${number(one.quality?.delta_loss)}</td>
        <td>${one.training ? html`<a href=${link(`training/${encodeURIComponent(one.training)}`)}>training</a>` : one.imported_from ?? "another sweep"}</td>
        <td>${one.evidence && html`<a href=${link("latents", { sae: one.path })}>latents</a> `}${!about?.read_only && html`<a
          href=${link("steer", { sae: one.path })}>steer</a> `}<${Copy} text=${folder(about, one.path)} label="Copy path" /></td>
          </tr>`)}</tbody></table></div>
      ${found.total > PAGE && html`<nav class="buttons" aria-label="Pages"><button type="button" disabled=${page === "0"}
        onClick=${() => set({ page: Number(page) - 1 || "" })}>Previous</button><span>
        ${count(found.total)} SAEs, page ${Number(page) + 1}</span>
        <button type="button" disabled=${(Number(page) + 1) * PAGE >= found.total}
          onClick=${() => set({ page: Number(page) + 1 })}>Next</button></nav>`}`}</section>
    <${GemmaScope} about=${about} imported=${again} />`;
}

const TREES = ["hf://google/gemma-scope-2b-pt-res", "hf://google/gemma-scope-2b-pt-mlp", "hf://google/gemma-scope-2b-pt-att", "hf://google/gemma-scope-9b-pt-res"];

function GemmaScope({ about, imported }) {
  const [asked, ask] = useState(null), [started, start] = useState(null), { job, problem: lost } = useJob(started);
  const { value: found, problem, loading, again } = useLoaded(signal => asked ? get(`saes/gemma-scope?${query(asked)}`, signal) : Promise.resolve(null), [asked]);
  const browse = event => { event.preventDefault(); ask(Object.fromEntries(new FormData(event.target))); };
  const take = async match => { const begun = await attempt(() => post("saes/import", { source: asked.source, match })); if (begun) start(begun); };
  const box = (name, title, size) => html`<label><span class="muted">${title}</span> <input name=${name} size=${size} /></label>`;
  return html`<section aria-label="Gemma Scope"><h2>Import from Gemma Scope</h2>
    <form class="filters" onSubmit=${browse}><label class="grow"><span
      class="muted">Tree</span> <input name="source" list="trees" required defaultValue=${TREES[0]} /></label><datalist id="trees">
      ${TREES.map(one => html`<option value=${one} />`)}</datalist>
      ${box("layer", "Layer", 4)}${box("width", "Width", 5)}${box("least_l0", "L0 from", 5)}${box("most_l0", "to", 5)}<button>Browse</button></form>
    ${asked && loading && html`<${Loading} what="the tree" />`}${problem && html`<${Wrong} problem=${problem} again=${again} />`}
    ${found && !found.items.length && html`<${Empty}><p>The tree has no such SAE.</p><//>`}
    ${found?.items.length > 0 && html`<div class="scroll tall" tabindex="0" role="region" aria-label="SAEs of the tree, a table"><table>
      <thead><tr><th scope="col">SAE</th><th scope="col">Site</th><th scope="col" class="n">Layer</th><th scope="col" class="n">Width</th>
      <th scope="col" class="n">L0</th><th scope="col"><span class="hidden">Import</span></th></tr></thead>
      <tbody>${found.items.map(one => html`<tr key=${one.path}><td><code>${one.path}</code></td><td>${one.site}</td><td class="n">
        ${one.layer ?? "–"}</td><td class="n">${one.width}</td><td class="n">${number(one.l0)}</td>
        <td>${!about?.read_only && html`<button type="button" aria-label=${`Import ${one.path}`}
          onClick=${() => take(one.path)}>Import</button>`}</td></tr>`)}</tbody></table></div>
      <p class="muted">${found.total} SAEs match.</p><${Command}>
        ${`scopemill import ${shell(found.source)} ${shell(about?.bucket ?? "BUCKET")} --match '*'`}<//>`}
    <${Job} job=${job} problem=${lost} what="Import" />${job?.state === "completed" && html`<button type="button"
      onClick=${imported}>Show what was imported</button>`}</section>`;
}
