// The latents of an SAE: listed, searched, and one by one.
import { html, useEffect, useLayoutEffect, useRef, useState } from "./view.js";
import "./latent-page/latent.js"; // sets latentParts
import { get, query } from "./api.js";
import { count, number } from "./format.js";
import { Command, Empty, Loading, useLoaded, useThrottled, Wrong } from "./parts.js";
import { shell } from "./actions.js";
import { go, link } from "./routes.js";

const PAGE = 100;
const SORTS = { latent: "Latent", density: "Density", max: "Maximum", mean: "Mean", cluster: "Cluster" };

export const folder = (about, sae) => shell(`${about?.bucket ?? "BUCKET"}/${sae}`);
const visible = text => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll("\r", "␍") || "∅";
export const Token = ({ children }) => html`<span class="token">${visible(children ?? "")}</span>`;

export function SaeChoice({ sae, change, evidence = true }) {
  const { value: found, problem, again } = useLoaded(signal => get(`saes?${query({ evidence: evidence || null, limit: 2000 })}`, signal), [evidence]);
  if (problem) return html`<${Wrong} problem=${problem} again=${again} />`;
  if (!found) return html`<${Loading} what="SAEs" />`;
  if (!found.items.length) return html`<${Empty}>
    <p>No SAE of this bucket has evidence yet: <code>scopemill evidence SWEEP.yaml</code> makes it, or a sweep file with a section <code>evidence</code>.</p><//>`;
  return html`<label class="grow"><span class="muted">SAE</span> <select value=${sae} onChange=${event => change(event.target.value)}>
    ${!sae && html`<option value="">choose one</option>`}
    ${found.items.map(one => html`<option value=${one.path}>${one.path.replace(/^saes\//, "")}</option>`)}</select></label>`;
}

export function Latents({ parameters, about }) {
  const { sae = "", sort = "density", up = "", label = "", dead = "", page = "0", find = "", text = "" } = parameters;
  const set = changes => go("latents", { ...parameters, page: "", ...changes }, true);
  return html`<h1 class="title">Latents</h1>
    <div class="filters"><${SaeChoice} sae=${sae} change=${path => go("latents", { sae: path })} />
    ${sae && html`<${GoTo} sae=${sae} /><${Ask} title="Find a word" hint="label, token or context"
      value=${find} ask=${word => set({ find: word, text: "" })} />
      <${Ask} title="Fires on a text" hint="the language model reads it"
        value=${text} ask=${given => set({ text: given, find: "" })} />`}</div>
    ${sae && (find || text ? html`<${Hits} sae=${sae} text=${find || text} words=${Boolean(find)} clear=${() => set({ find: "", text: "" })} about=${about} />`
      : html`<${Listed} ...${{ sae, sort, up, label, dead, page: Number(page), set, about }} />`)}`;
}

const GoTo = ({ sae }) => html`<form class="inline"
  onSubmit=${event => { event.preventDefault(); go(`latent/${event.target.number.value.trim()}`, { sae }); }}>
  <label><span class="muted">Latent</span> <input name="number" inputmode="numeric" size="6" required pattern="[0-9]+" autocomplete="off" />
    </label><button>Show</button></form>`;

function Ask({ title, hint, value, ask }) {
  return html`<form class="inline" role="search" onSubmit=${event => { event.preventDefault(); ask(event.target.text.value.trim()); }}>
    <label><span class="muted">${title}</span> <input type="search" name="text" placeholder=${hint} defaultValue=${value} key=${value} />
    </label><button>Search</button></form>`;
}

function Listed({ sae, sort, up, label, dead, page, set, about }) {
  const asked = { sae, sort, ascending: up ? true : null, label: label ? `*${label}*` : null, dead: dead ? true : null, offset: page * PAGE, limit: PAGE };
  const { value: found, problem, again } = useLoaded(signal => get(`latents?${query(asked)}`, signal), asked);
  const heading = name => html`<th scope="col" class="n" aria-sort=${sort === name ? up ? "ascending" : "descending" : undefined}>
    <button type="button" class="plain" onClick=${() => set({ sort: name, up: sort === name && !up ? "1" : "" })}>${SORTS[name]}</button>
    </th>`;
  const last = found ? Math.max(0, Math.ceil(found.total / PAGE) - 1) : 0;
  return html`<div class="filters"><${Ask} title="Label" hint="* and ? are wildcards" value=${label} ask=${text => set({ label: text })} />
      <label><input type="checkbox" checked=${Boolean(dead)}
        onChange=${event => set({ dead: event.target.checked ? "1" : "" })} /> also those that never fired</label></div>
    <${Command}>${`scopemill latents ${folder(about, sae)} --sort ${sort}${up ? " --ascending" : ""}${label ? ` --label ${shell(`*${label}*`)}` : ""}${dead ? " --dead" : ""}`}<//>
    ${problem && html`<${Wrong} problem=${problem} again=${again} />`}${!found && !problem && html`<${Loading} what="latents" />`}
    ${found && !found.total && html`<${Empty}><p>No latent matches.</p><//>`}
    ${found?.total > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="Latents, a table"><table><thead><tr>
      ${Object.keys(SORTS).map(heading)}<th scope="col">Most frequent token</th><th scope="col">Promotes</th><th scope="col">Label</th></tr>
      </thead>
      <tbody>${found.items.map(one => html`<tr key=${one.latent}><td class="n"><a href=${link(`latent/${one.latent}`, { sae })}>
        ${one.latent}</a></td><td class="n">${number(one.density)}</td><td class="n">${number(one.max)}</td><td class="n">
        ${number(one.mean)}</td>
        <td class="n">${one.cluster ?? "–"}</td><td><${Token}>${one.top_token}<//></td><td>${one.promoted.map(text => html`<${Token}>
          ${text}<//> `)}</td><td class="free">${one.label}</td></tr>`)}</tbody></table></div>
      <nav class="buttons" aria-label="Pages"><button type="button" disabled=${page === 0}
        onClick=${() => set({ page: page - 1 || "" })}>Previous</button>
        <span>${count(found.total)} latents, page ${page + 1} of ${last + 1}</span><button type="button" disabled=${page >= last}
          onClick=${() => set({ page: page + 1 })}>Next</button></nav>`}`;
}

function Hits({ sae, text, words, clear, about }) {
  const { value: found, problem, again, loading } = useLoaded(signal => get(`search?${query({ sae, text, words, limit: 200 })}`, signal), [sae, text, words]);
  return html`<section aria-label="What was found"><div class="heading"><h2>
    ${words ? "Latents with the word" : "Latents that fire on"} “${text}”</h2><button type="button"
    onClick=${clear}>Show all latents</button></div>
    <${Command}>${`scopemill search ${folder(about, sae)} ${shell(text)}${words ? " --words" : ""}`}<//>
    ${problem && html`<${Wrong} problem=${problem} again=${again} />`}${loading && html`<${Loading} what="latents" />`}
    ${found && !found.items.length && html`<${Empty}><p>No latent has it.</p><//>`}
    ${found?.items.length > 0 && html`<ol class="hits">${found.items.map(one => html`<li><a
      href=${link(`latent/${one.latent}`, { sae })}>latent ${one.latent}</a> <span class="muted">
      ${one.found ? one.found.join(", ") : Object.entries(one).filter(([name, value]) => name !== "latent" && typeof value !== "object").map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "number" ? number(value) : value}`).join(", ")}</span></li>`)}</ol>`}</section>`;
}

// The service's facts as the page of latents on disk writes them.
const zipped = (first, second) => first.map((one, i) => [one, second[i]]);
const compact = one => ({ ...one, range: one.histogram_range,
  promoted: zipped(one.promoted_text, one.promoted_values), suppressed: zipped(one.suppressed_text, one.suppressed_values),
  nearest: zipped(one.nearest_latents, one.nearest_cosines), cofiring: zipped(one.cofiring_latents, one.cofiring_phi),
  contexts: one.examples.map(example => [example.interval, example.value, example.document, example.position, example.peak, example.text, example.activations]) });
const INTERVALS = 8; // as proto/evidence.py

export function Latent({ rest: [id], parameters: { sae = "" }, about }) {
  const latent = Number(id), { value: found, problem, again } = useLoaded(signal => get(`latents/${encodeURIComponent(id)}?${query({ sae })}`, signal), [id, sae]), place = useRef(null);
  useLayoutEffect(() => {
    if (found && place.current) place.current.replaceChildren(...globalThis.latentParts.parts(compact(found), INTERVALS, other => link(`latent/${other}`, { sae })));
  }, [found]);
  const turn = step => go(`latent/${Math.max(0, latent + step)}`, { sae }, true), newest = useRef(turn);
  newest.current = turn;
  useEffect(() => {
    const keys = event => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step && !event.altKey && !event.ctrlKey && !event.metaKey && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) newest.current(step);
    };
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  }, []);
  return html`<nav class="buttons" aria-label="Latents">${latent > 0 && html`<a
    href=${link(`latent/${latent - 1}`, { sae })}>← previous</a>`}<a href=${link("latents", { sae })}>all latents</a><a
    href=${link(`latent/${latent + 1}`, { sae })}>next →</a></nav>
    <h1 class="title">Latent ${id}</h1><p class="muted">${sae}</p>
    ${problem && html`<${Wrong} problem=${problem} again=${again} />`}${!found && !problem && html`<${Loading} what="the latent" />`}
    ${found && html`${found.label && html`<p>${found.label}${found.label_score !== null && html` <span
      class="muted">(score ${number(found.label_score)})</span>`}</p>`}
      <div class="buttons">${!about?.read_only && html`<a class="button"
        href=${link("steer", { sae, latent: id })}>Steer with it</a>`}</div><${Command}>
        ${`scopemill latent ${folder(about, sae)} ${id}`}<//>`}
    <div ref=${place} hidden=${!found}></div>`;
}
