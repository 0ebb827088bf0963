// Published SAEs: a Gemma Scope tree, chosen from by model, site, layer, width and L0, and imported one by one.
import { html, useEffect, useState } from "./view.js";
import { get, post, query } from "./api.js";
import { shell } from "./actions.js";
import { number } from "./format.js";
import { Job, useJob } from "./jobs.js";
import { attempt, Command, Empty, Loading, Pages, useLoaded, Wrong } from "./parts.js";

const PAGE = 100;
const owned = name => `hf://google/gemma-scope-${name}`;
const TREES = [
  ...["2b-pt-res", "2b-pt-mlp", "2b-pt-att", "2b-pt-transcoders"].map(owned),
  ...["9b-pt-res", "9b-pt-mlp", "9b-pt-att", "9b-it-res", "27b-pt-res"].map(owned),
  ...["270m", "1b", "4b", "12b", "27b"].flatMap(size => [owned(`2-${size}-pt`), owned(`2-${size}-it`)]),
];
const CHOICES = { model: ["models", "Model"], site: ["sites", "Site"], layer: ["layers", "Layer"], width: ["widths", "Width"] };

export function GemmaScope({ about, imported }) {
  const [source, setSource] = useState(null), [chosen, choose] = useState({}), [page, turn] = useState(0);
  const asked = source && { source, ...chosen, offset: page * PAGE, limit: PAGE };
  const { value: found, problem, loading, again } = useLoaded(
    signal => asked ? get(`saes/gemma-scope?${query(asked)}`, signal) : Promise.resolve(null), [asked]);
  const tree = found?.source === source ? found : null;
  const [started, start] = useState(null), { job, problem: lost } = useJob(started);
  useEffect(() => { if (job?.state === "completed") { again(); imported(); } }, [job?.state]);
  const browse = event => {
    event.preventDefault();
    choose({});
    turn(0);
    setSource(event.target.source.value.trim());
  };
  const set = (name, value) => { choose(now => ({ ...now, [name]: value })); turn(0); };
  const take = async match => {
    const begun = await attempt(() => post("saes/import", { source, match }));
    if (begun) start(begun);
  };
  return html`<section aria-label="Gemma Scope"><h2>Import from Gemma Scope</h2>
    <form class="filters" onSubmit=${browse}>
      <label class="grow"><span class="muted">Tree</span> <input name="source" list="trees" size="42" required
        defaultValue=${TREES[0]} /></label>
      <datalist id="trees">${TREES.map(one => html`<option value=${one} />`)}</datalist>
      <button>Browse</button></form>
    ${source && loading && !tree && html`<${Loading} what="the tree" />`}
    ${problem && html`<${Wrong} problem=${problem} again=${again} />`}
    ${tree && html`<${Filters} choices=${tree.choices} chosen=${chosen} set=${set} />
      ${tree.items.length ? html`<${Table} tree=${tree} take=${about?.read_only ? null : take} busy=${job?.state === "running"} />`
        : html`<${Empty}><p>The tree has no such SAE.</p><//>`}
      <${Pages} page=${page} size=${PAGE} total=${tree.total} what="SAEs" turn=${turn} />
      <${Command}>${`scopemill import ${shell(source)} ${shell(about?.bucket ?? "BUCKET")} --match '*'`}<//>`}
    <${Job} job=${job} problem=${lost} what="Import" /></section>`;
}

function Filters({ choices, chosen, set }) {
  const number = (name, title) => html`<label><span class="muted">${title}</span> <input inputmode="decimal" size="5"
    value=${chosen[name] ?? ""} onChange=${event => set(name, event.target.value.trim())} /></label>`;
  return html`<search class="filters" aria-label="Filter the tree">
    ${Object.entries(CHOICES).map(([name, [all, title]]) => html`<label key=${name}><span class="muted">${title}</span> <select
      value=${chosen[name] ?? ""} onChange=${event => set(name, event.target.value)}><option value="">all</option>
      ${choices[all].map(one => html`<option value=${one}>${one}</option>`)}</select></label>`)}
    ${number("least_l0", "L0 from")}${number("most_l0", "to")}</search>`;
}

const Table = ({ tree, take, busy }) => html`<div class="scroll tall" tabindex="0" role="region" aria-label="SAEs of the tree, a table">
  <table><thead><tr><th scope="col">SAE</th><th scope="col">Model</th><th scope="col">Site</th><th scope="col" class="n">Layer</th>
    <th scope="col" class="n">Width</th><th scope="col" class="n">L0</th><th scope="col"><span class="hidden">Import</span></th></tr>
  </thead><tbody>${tree.items.map(one => html`<tr key=${one.path}><td><code>${one.path}</code></td><td>${one.model}</td><td>${one.site}</td>
    <td class="n">${one.layer ?? "–"}</td><td class="n">${one.width}</td><td class="n">${number(one.l0)}</td>
    <td>${tree.imported.includes(one.folder) ? html`<span class="completed">in the bucket</span>` : take && html`<button type="button"
      disabled=${busy} aria-label=${`Import ${one.path}`} onClick=${() => take(one.path)}>Import</button>`}</td></tr>`)}</tbody>
  </table></div>`;
