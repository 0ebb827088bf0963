// Finished SAEs of the bucket, and published ones that can be imported.
import { html } from "./view.js";
import { get, query } from "./api.js";
import { count, number } from "./format.js";
import { GemmaScope } from "./gemma-scope.js";
import { folder } from "./latents.js";
import { Copy, Empty, Loading, Pages, useLoaded, Wrong } from "./parts.js";
import { go, link } from "./routes.js";

const PAGE = 100;
const BOXES = {
  text: ["Find", { type: "search", size: 24, placeholder: "a part of the path" }], model: ["Model", { size: 10 }],
  layer: ["Layer", { inputmode: "numeric", size: 4 }], architecture: ["Architecture", { size: 10 }],
  width: ["Latents", { inputmode: "numeric", size: 8 }],
};

export function Saes({ parameters, about }) {
  const { evidence = "", page = "0", ...rest } = parameters, at = Number(page);
  const asked = { ...rest, evidence: evidence ? true : null, offset: at * PAGE, limit: PAGE };
  const { value: found, problem, again } = useLoaded(signal => get(`saes?${query(asked)}`, signal), asked);
  const set = changes => go("saes", { ...parameters, page: "", ...changes }, true);
  return html`<h1 class="title">SAEs</h1><section aria-label="SAEs of this bucket"><h2>In this bucket</h2>
    <search class="filters" aria-label="Filter the SAEs">
      ${Object.entries(BOXES).map(([name, [title, attributes]]) => html`<label key=${name}><span class="muted">${title}</span> <input
        ...${attributes} value=${parameters[name] ?? ""} onChange=${event => set({ [name]: event.target.value.trim() })} /></label>`)}
      <label><input type="checkbox" checked=${Boolean(evidence)}
        onChange=${event => set({ evidence: event.target.checked ? "1" : "" })} /> with evidence</label></search>
    ${problem && html`<${Wrong} problem=${problem} again=${again} />`}${!found && !problem && html`<${Loading} what="SAEs" />`}
    ${found && !found.total && html`<${Empty}><p>
      ${Object.keys(parameters).length ? "No SAE matches." : "No SAE of this bucket is finished yet."}</p><//>`}
    ${found?.total > 0 && html`<${Table} items=${found.items} about=${about} />
      <${Pages} page=${at} size=${PAGE} total=${found.total} what="SAEs" turn=${to => set({ page: to || "" })} />`}</section>
    <${GemmaScope} about=${about} imported=${again} />`;
}

const Table = ({ items, about }) => html`<div class="scroll" tabindex="0" role="region" aria-label="SAEs, a table"><table><thead><tr>
  <th scope="col">SAE</th><th scope="col" class="n">Latents</th><th scope="col" class="n">L0</th><th scope="col" class="n">FVU</th>
  <th scope="col" class="n">Delta loss</th><th scope="col">Made by</th><th scope="col">Look</th></tr></thead>
  <tbody>${items.map(one => html`<tr key=${one.path}><td><code>${one.path.replace(/^saes\//, "")}</code></td>
    <td class="n">${count(one.width)}</td><td class="n">${number(one.quality?.l0)}</td><td class="n">${number(one.quality?.fvu)}</td>
    <td class="n">${number(one.quality?.delta_loss)}</td><td><${Origin} one=${one} /></td>
    <td><a href=${link("latents", { sae: one.path })}>latents</a> ${!about?.read_only && html`<a
      href=${link("steer", { sae: one.path })}>steer</a> `}<${Copy} text=${folder(about, one.path)} label="Copy path" /></td></tr>`)}
  </tbody></table></div>`;

const Origin = ({ one }) => one.training ? html`<a href=${link(`training/${encodeURIComponent(one.training)}`)}>training</a>`
  : one.imported_from ?? "another sweep";
