// The latents of an SAE, from its evidence: listed, filtered by label, searched for a word or for what fires on a text.
import { html } from "./view.js";
import { get, query } from "./api.js";
import { shell } from "./actions.js";
import { number } from "./format.js";
import { Command, Empty, Loading, Pages, useLoaded, Wrong } from "./parts.js";
import { go, link } from "./routes.js";

const PAGE = 100;
const SORTS = { latent: "Latent", density: "Density", max: "Maximum", mean: "Mean", cluster: "Cluster" };

export const folder = (about, sae) => shell(`${about?.bucket ?? "BUCKET"}/${sae}`);
const visible = text => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll("\r", "␍") || "∅";
const Token = ({ children }) => html`<span class="token">${visible(children ?? "")}</span>`;
const short = path => path.replace(/^saes\//, "");

export function SaeChoice({ sae, change, evidence = true }) {
  const asked = { evidence: evidence || null, limit: 2000 };
  const { value: found, problem, again } = useLoaded(signal => get(`saes?${query(asked)}`, signal), [evidence]);
  if (problem) return html`<${Wrong} problem=${problem} again=${again} />`;
  if (!found) return html`<${Loading} what="SAEs" />`;
  const paths = found.items.map(one => one.path);
  if (sae && !paths.includes(sae)) paths.unshift(sae);
  if (!paths.length) return html`<${Empty}><p>No SAE of this bucket has evidence yet: <code>scopemill evidence SWEEP.yaml</code> makes it,
    or a sweep file with a section <code>evidence</code>.</p><//>`;
  return html`<label class="grow"><span class="muted">SAE</span> <select value=${sae} onChange=${event => change(event.target.value)}>
    ${!sae && html`<option value="">choose one</option>`}
    ${paths.map(path => html`<option value=${path}>${short(path)}</option>`)}</select></label>`;
}

export function Latents({ parameters, about }) {
  const { sae = "", sort = "density", up = "", label = "", dead = "", page = "0", find = "", text = "", model = "" } = parameters;
  const set = changes => go("latents", { ...parameters, page: "", ...changes }, true);
  const hits = { sae, text: find || text, words: Boolean(find), model: find ? "" : model, about, clear: () => set({ find: "", text: "" }) };
  return html`<h1 class="title">Latents</h1>
    <div class="filters"><${SaeChoice} sae=${sae} change=${path => go("latents", { sae: path })} />
    ${sae && html`<${GoTo} sae=${sae} />
      <${Ask} title="Find a word" hint="label, token or context" value=${find} ask=${word => set({ find: word, text: "" })} />
      <${AskModel} text=${text} model=${model} ask=${given => set({ ...given, find: "" })} />`}</div>
    ${sae && (hits.text ? html`<${Hits} ...${hits} />`
      : html`<${Listed} ...${{ sae, sort, up, label, dead, page: Number(page), set, about }} />`)}`;
}

function GoTo({ sae }) {
  const show = event => { event.preventDefault(); go(`latent/${event.target.number.value.trim()}`, { sae }); };
  return html`<form class="inline" onSubmit=${show}><label><span class="muted">Latent</span>
    <input name="number" inputmode="numeric" size="6" required pattern="[0-9]+" autocomplete="off" /></label><button>Show</button></form>`;
}

function Ask({ title, hint, value, ask }) {
  return html`<form class="inline" role="search" onSubmit=${event => { event.preventDefault(); ask(event.target.text.value.trim()); }}>
    <label><span class="muted">${title}</span> <input type="search" name="text" placeholder=${hint} defaultValue=${value} key=${value} />
    </label><button>Search</button></form>`;
}

function AskModel({ text, model, ask }) {
  const send = event => {
    event.preventDefault();
    ask({ text: event.target.text.value.trim(), model: event.target.model.value.trim() });
  };
  return html`<form class="inline" role="search" onSubmit=${send}>
    <label><span class="muted">Fires on a text</span> <input type="search" name="text" placeholder="the language model reads it"
      defaultValue=${text} key=${text} /></label>
    <label><span class="muted">Language model</span> <input name="model" placeholder="as its sweep names it" defaultValue=${model}
      key=${model} /></label><button>Search</button></form>`;
}

function Listed({ sae, sort, up, label, dead, page, set, about }) {
  const asked = {
    sae, sort, ascending: up ? true : null, label: label ? `*${label}*` : null, dead: dead ? true : null, offset: page * PAGE, limit: PAGE,
  };
  const { value: found, problem, again } = useLoaded(signal => get(`latents?${query(asked)}`, signal), asked);
  if (problem?.status === 404) return html`<${Nothing} problem=${problem} sae=${sae} about=${about} />`;
  const options = [up && "--ascending", label && `--label ${shell(`*${label}*`)}`, dead && "--dead"].filter(Boolean);
  return html`<div class="filters"><${Ask} title="Label" hint="* and ? are wildcards" value=${label} ask=${text => set({ label: text })} />
      <label><input type="checkbox" checked=${Boolean(dead)}
        onChange=${event => set({ dead: event.target.checked ? "1" : "" })} /> also those that never fired</label></div>
    <${Command}>${["scopemill latents", folder(about, sae), `--sort ${sort}`, ...options].join(" ")}<//>
    ${problem && html`<${Wrong} problem=${problem} again=${again} />`}${!found && !problem && html`<${Loading} what="latents" />`}
    ${found && !found.total && html`<${Empty}><p>No latent matches.</p><//>`}
    ${found?.total > 0 && html`<${Table} ...${{ items: found.items, sae, sort, up, set }} />
      <${Pages} page=${page} size=${PAGE} total=${found.total} what="latents" turn=${to => set({ page: to || "" })} />`}`;
}

// An SAE without evidence, such as one that was just imported: how to make it.
const Nothing = ({ problem, sae, about }) => html`<${Empty}><p class="sentences">${problem.message}</p>
  <p>An SAE of a sweep gets it by <code>scopemill evidence SWEEP.yaml</code>; an imported one from a text:</p>
  <${Command} label="Its evidence">${`scopemill evidence ${folder(about, sae)} --model MODEL --corpus TEXT.jsonl`}<//>
  <p class="muted">Until then its latents can be searched by what fires on a text, and steered with.</p><//>`;

function Table({ items, sae, sort, up, set }) {
  const heading = name => html`<th scope="col" class="n" aria-sort=${sort === name ? up ? "ascending" : "descending" : undefined}>
    <button type="button" class="plain" onClick=${() => set({ sort: name, up: sort === name && !up ? "1" : "" })}>${SORTS[name]}</button>
    </th>`;
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Latents, a table"><table><thead><tr>
    ${Object.keys(SORTS).map(heading)}<th scope="col">Most frequent token</th><th scope="col">Promotes</th><th scope="col">Label</th>
    </tr></thead><tbody>${items.map(one => html`<tr key=${one.latent}>
      <td class="n"><a href=${link(`latent/${one.latent}`, { sae })}>${one.latent}</a></td>
      <td class="n">${number(one.density)}</td><td class="n">${number(one.max)}</td><td class="n">${number(one.mean)}</td>
      <td class="n">${one.cluster ?? "–"}</td><td><${Token}>${one.top_token}<//></td>
      <td>${one.promoted.map(text => html`<${Token}>${text}<//> `)}</td><td class="free">${one.label}</td></tr>`)}</tbody></table></div>`;
}

// What is told of a latent that was found: where it has the word, or how it fires on the text.
const told = one => one.found ? one.found.join(", ") : Object.entries(one)
  .filter(([name, value]) => name !== "latent" && typeof value !== "object")
  .map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "number" ? number(value) : value}`).join(", ");

function Hits({ sae, text, words, model, clear, about }) {
  const asked = { sae, text, words, model, limit: 200 };
  const { value: found, problem, again, loading } = useLoaded(signal => get(`search?${query(asked)}`, signal), [sae, text, words, model]);
  const options = words ? ["--words"] : model ? [`--model ${shell(model)}`] : [];
  return html`<section aria-label="What was found"><div class="heading"><h2>
    ${words ? "Latents with the word" : "Latents that fire on"} “${text}”</h2>
    <button type="button" onClick=${clear}>Show all latents</button></div>
    <${Command}>${["scopemill search", folder(about, sae), shell(text), ...options].join(" ")}<//>
    ${problem && html`<${Wrong} problem=${problem} again=${again} />`}${loading && html`<${Loading} what="latents" />`}
    ${found && !found.items.length && html`<${Empty}><p>No latent has it.</p><//>`}
    ${found?.items.length > 0 && html`<ol class="hits">${found.items.map(one => html`<li>
      <a href=${link(`latent/${one.latent}`, { sae })}>latent ${one.latent}</a> <span class="muted">${told(one)}</span></li>`)}</ol>`}
    </section>`;
}
