// What a sweep would take in time, money and memory, before it is started.
import { html, useEffect, useState } from "./view.js";
import { post } from "./api.js";
import { bytes, count, duration, number, price } from "./format.js";
import { Command } from "./parts.js";

const CARDS = ["l4", "l40s", "a100", "h100", "h200"], REST = 300;
const hours = value => duration(value * 3600);

export function Estimate({ config, valid }) {
  const [hardware, setHardware] = useState("h100"), [dollars, setDollars] = useState(""), [share, setShare] = useState("");
  const [{ found, problem }, set] = useState({});
  useEffect(() => {
    if (!valid) { set({}); return undefined; }
    let old = false;
    const asked = { config, hardware, price: dollars ? Number(dollars) : null, utilisation: share ? Number(share) : null };
    const told = answer => { if (!old) set(answer); };
    const later = setTimeout(() => post("trainings/estimate", asked).then(found => told({ found }), problem => told({ problem })), REST);
    return () => { old = true; clearTimeout(later); };
  }, [config, valid, hardware, dollars, share]);
  return html`<section aria-label="Estimate" aria-live="polite"><div class="filters"><label><span class="muted">on</span> <select
    value=${hardware} onChange=${event => setHardware(event.target.value)}>${CARDS.map(one => html`<option>${one}</option>`)}</select>
    </label>
      <label><span class="muted">$ an hour</span> <input size="5" inputmode="decimal" placeholder="usual" value=${dollars}
        onInput=${event => setDollars(event.target.value)} /></label>
      <label><span class="muted">utilisation</span> <input size="4" inputmode="decimal" placeholder="0.4" value=${share}
        onInput=${event => setShare(event.target.value)} /></label></div>
    ${!valid && html`<p class="muted">Time, cost and memory are estimated once every field is valid.</p>`}
    ${problem && html`<p class="wrong sentences">${problem.message}</p>`}
    ${found && html`<${Sums} found=${found} /><${Details} found=${found} /><${Command}>${found.command}<//>`}</section>`;
}

function Sums({ found }) {
  const sums = {
    trainings: count(found.trainings), "accelerator time": hours(found.hours), cost: price(found.price), kept: bytes(found.kept_bytes),
    "most memory": bytes(Math.max(0, ...found.memory.map(one => one.bytes))),
  };
  return html`<dl class="figures">${Object.entries(sums).map(([title, sum]) => html`<div key=${title}>
    <dt class="muted">${title}</dt><dd>${sum}</dd></div>`)}</dl>`;
}

const partsOf = one => Object.entries(one.parts).map(([name, part]) => `${name}: ${bytes(part)}`).join("\n");

const Details = ({ found }) => html`<details><summary>By stage and process</summary>
  <div class="scroll" tabindex="0" role="region" aria-label="Stages, a table"><table><thead><tr><th scope="col">Stage</th>
    <th scope="col" class="n">Tokens</th><th scope="col" class="n">FLOP</th><th scope="col" class="n">Time</th>
    <th scope="col" class="n">Cost</th></tr></thead>
    <tbody>${found.stages.map(one => html`<tr><th scope="row">${one.name}</th><td class="n">${count(one.tokens)}</td>
      <td class="n">${number(one.flops, 3)}</td><td class="n">${hours(one.hours)}</td><td class="n">${price(one.price)}</td></tr>`)}
    </tbody></table></div>
  <dl class="pairs">${found.memory.map(one => html`<div><dt>${one.process}</dt><dd title=${partsOf(one)}>${bytes(one.bytes)}</dd></div>`)}
    ${Object.entries(found.facts).map(([name, fact]) => html`<div><dt>${name}</dt><dd>${fact}</dd></div>`)}</dl>
  <p class="muted">${found.hardware}</p></details>`;
