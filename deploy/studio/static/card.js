// One training in the list: its state, its progress and four live curves.
import { html, useEffect, useState } from "./view.js";
import { get, query, training as at } from "./api.js";
import { count, duration, number, percent } from "./format.js";
import { useLive } from "./live.js";
import { Bar, State } from "./parts.js";
import { link } from "./routes.js";
import { Sparkline } from "./sparkline.js";

const CURVES = ["loss", "l0", "fvu", "dead"], POINTS = 48;
const REST = 120; // milliseconds that an entry must stay in sight before its curves are asked for
const kept = new Map(); // curves by training: {step, series}

function remember(id, found) {
  kept.delete(id);
  kept.set(id, found);
  if (kept.size > 600) kept.delete(kept.keys().next().value);
}

// The curves of a training, which grow as messages come.
function useCurves(training) {
  const { id } = training, known = kept.get(id), [, turn] = useState(0);
  const fresh = known && known.step >= training.progress.step;
  useEffect(() => {
    if (fresh || !training.progress.step) return undefined;
    const stop = new AbortController();
    const later = setTimeout(async () => {
      try {
        const found = await get(at(id, `metrics?${query({ points: POINTS, series: CURVES.join() })}`), stop.signal);
        remember(id, { step: Math.max(found.step, training.progress.step), series: found.series });
        turn(now => now + 1);
      } catch { /* the card shows its numbers without curves; the page tells that the service is away */ }
    }, REST);
    return () => { clearTimeout(later); stop.abort(); };
  }, [id, Boolean(known), training.progress.step > 0]);
  useLive([`training/${id}`], ({ event, data }) => {
    const now = kept.get(id);
    if (event !== "progress" || !now || data.step <= now.step) return;
    const series = Object.fromEntries(CURVES.map(name => {
      const { steps, values } = now.series[name] ?? { steps: [], values: [] };
      return [name, { steps: [...steps.slice(-2 * POINTS), data.step], values: [...values.slice(-2 * POINTS), data[name]] }];
    }));
    remember(id, { step: data.step, series });
    turn(value => value + 1);
  });
  return known?.series;
}

const title = ({ inputs, targets }) => {
  const from = inputs.join(" + "), to = targets.join(" + ");
  return to && to !== from ? `${from} → ${to}` : from;
};
export const facts = ({ architecture, width, sparsity }) =>
  [architecture, width && `${count(width)} latents`, sparsity !== null && `sparsity ${number(sparsity)}`].filter(Boolean).join(" · ");

const Curves = ({ training }) => {
  const series = useCurves(training), { loss, l0, fvu, dead } = training.progress;
  return html`<div class="sparks"><${Sparkline} title="loss" series=${series?.loss} value=${loss} /><${Sparkline}
    title="L0" series=${series?.l0} value=${l0} />
    <${Sparkline} title="FVU" series=${series?.fvu} value=${fvu} /><${Sparkline} title="dead" series=${series?.dead}
      value=${dead} shown=${count} /></div>`;
};

const Progress = ({ training: { progress, state, name } }) => html`<div class="progress">
  <${Bar} percent=${progress.progress_pct} label=${`Progress of ${name}`} /><span class="muted">
  ${percent(progress.progress_pct)}${state === "running" && progress.eta !== null && ` · ${duration(progress.eta)} left`}</span></div>`;

const Choice = ({ training, chosen, toggle }) => html`<input type="checkbox" checked=${chosen} aria-label=${`Select ${training.name}`}
  onChange=${event => toggle(training.id, event.target.checked)} />`;

const Asked = ({ asked }) => asked.length > 0 && html`<span class="muted">asked to ${asked.join(", ")}</span>`;

const Title = ({ training }) => html`<a href=${link(`training/${encodeURIComponent(training.id)}`)} title=${training.name}>
  ${title(training)}</a>`;

export const Card = ({ training, chosen, toggle }) => html`<article class=${`card ${chosen ? "chosen" : ""}`}>
  <header><${Choice} ...${{ training, chosen, toggle }} /><h2><${Title} training=${training} /></h2>
    <${State} state=${training.state} reason=${training.reason} /></header>
  <p class="muted cut">${training.sweep} · ${facts(training)}</p>
  <${Curves} training=${training} /><${Progress} training=${training} />
  <p class="muted cut" title=${training.reason}><${Asked} asked=${training.asked} /> ${training.reason}</p></article>`;

export const Row = ({ training, chosen, toggle }) => html`<article class=${`row ${chosen ? "chosen" : ""}`}>
  <${Choice} ...${{ training, chosen, toggle }} /><div class="cut"><h2><${Title} training=${training} /></h2>
  <span class="muted">${training.sweep} · ${facts(training)}</span></div>
  <div><${State} state=${training.state} reason=${training.reason} /> <${Asked} asked=${training.asked} />
    <${Progress} training=${training} /></div>
  <${Curves} training=${training} /></article>`;
