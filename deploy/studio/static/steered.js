// What a steering wrote and measured: a column for each configuration, and its doses.
import { html } from "./view.js";
import { Chart } from "./charts.js";
import { number } from "./format.js";

const DOSED = { kl: "KL", delta_loss: "Delta loss" };

export function Columns({ result, written, prompt }) {
  const results = result?.columns ?? {}, names = [...new Set([...Object.keys(results), ...Object.keys(written)])];
  if (!names.length) return null;
  return html`<div class="beside" aria-live="polite">${names.map(name => html`<section class="card" key=${name} aria-label=${name}>
      <h2>${name}</h2>${(results[name]?.texts ?? Object.values(written[name] ?? {})).map(text => html`<p class="free">
        <span class="muted">${prompt}</span>${text.startsWith(prompt) ? text.slice(prompt.length) : text}</p>`)}
      ${results[name] && html`<${Figures} one=${results[name]} />`}</section>`)}</div>
    ${names.filter(name => results[name]?.doses?.length).map(name => html`<${Doses} key=${name} name=${name} one=${results[name]} />`)}`;
}

const share = value => `${(100 * value).toFixed(2)}%`;
const Pair = ({ title, children }) => html`<div><dt>${title}</dt><dd>${children}</dd></div>`;

const Effect = ({ effect }) => html`<${Pair} title="KL (nats a token)">${number(effect.kl)}<//>
  <${Pair} title="delta loss">${number(effect.delta_loss)}<//><${Pair} title="promoted tokens">${share(effect.promoted)}<//>
  <${Pair} title="of the model">${share(effect.promoted_before)}<//>`;

const Figures = ({ one: { effect, scores } }) => html`<dl class="pairs">
  ${effect ? html`<${Effect} effect=${effect} />` : html`<div><dt>the text that others are measured against</dt></div>`}
  ${Object.entries(scores ?? {}).map(([latent, score]) => html`<${Pair} key=${latent} title=${`output score of latent ${latent}`}>
    ${number(score)}<//>`)}</dl>`;

function Doses({ name, one }) {
  const steps = one.doses.map(dose => dose.dose), of = (side, figure) => one.doses.map(dose => dose[side][figure]);
  const lines = figure => [{ name: "steered", values: of("steered", figure) }, { name: "random push", values: of("control", figure) }];
  return html`<section aria-label=${`Doses of ${name}`}><h2>Doses of ${name}</h2>
    <p>${one.collapse ? `Text collapses at dose ${number(one.collapse)}.` : "Text does not collapse at these doses."}</p>
    <div class="charts">${Object.entries(DOSED).map(([figure, title]) => html`<${Chart} key=${figure} title=${`${title} by dose`}
      lines=${lines(figure).map(line => ({ ...line, steps }))} />`)}</div></section>`;
}
