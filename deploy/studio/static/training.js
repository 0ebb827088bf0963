// One training: its curves, hyperparameters and checkpoints, and what can be done to it.
import { html, useEffect, useMemo, useState } from "./view.js";
import { get, post, query, training as at } from "./api.js";
import { act, CAN, command } from "./actions.js";
import { facts } from "./card.js";
import { Chart } from "./charts.js";
import { count, duration, number, percent, value } from "./format.js";
import { useLive } from "./live.js";
import { attempt, Bar, Command, Copy, Empty, Loading, State, useLoaded, useThrottled, Wrong } from "./parts.js";
import { go, link } from "./routes.js";

const MAIN = {
  loss: "Loss", l0: "L0", fvu: "FVU (fraction of variance unexplained)", dead: "Dead latents", lr: "Learning rate",
  sparsity_factor: "Sparsity factor",
};
const POINTS = 600;

export function Training({ rest: [id], about }) {
  const loaded = useLoaded(signal => get(at(id), signal), [id]), one = loaded.value;
  const reload = useThrottled(loaded.again, 800), [turn, setTurn] = useState(0);
  useLive([`training/${id}`, "trainings", "bucket"], ({ event, data }) => {
    if (event === "progress" && one) {
      const { state, ...progress } = data;
      loaded.set({ ...one, progress, state });
      return;
    }
    if (["checkpoint", "resync"].includes(event)) setTurn(now => now + 1);
    if (event !== "checkpoint") reload();
  });
  if (!one) return loaded.problem ? html`<h1 class="title">Training</h1>
    <${Wrong} problem=${loaded.problem} again=${loaded.again} />` : html`<${Loading} what="the training" />`;
  const run = async action => {
    const asked = await act(action, id, one.name, about);
    if (asked && action === "delete") go("trainings"); else if (asked) reload();
  };
  return html`<nav class="crumbs" aria-label="Where this is"><a href=${link("trainings")}>Trainings</a> / <a
    href=${link(`sweep/${encodeURIComponent(one.sweep)}`)}>${one.sweep}</a></nav>
    <h1 class="title">${one.name} <${State} state=${one.state} reason=${one.reason} /></h1>
    <p class="muted">${[one.model, facts(one), one.path].join(" · ")}</p>
    ${one.reason && html`<p class=${one.state === "failed" ? "wrong sentences" : "sentences"}>${one.reason}</p>`}
    ${loaded.problem && html`<${Wrong} problem=${loaded.problem} again=${loaded.again} />`}
    <div class="progress wide"><${Bar} percent=${one.progress.progress_pct} label="Progress" />
      <span class="muted">step ${count(one.progress.step)} of ${count(one.progress.steps)} · ${percent(one.progress.progress_pct)}
        ${one.state === "running" && one.progress.eta !== null ? ` · ${duration(one.progress.eta)} left` : ""}
        ${one.progress.steps_per_second && one.state === "running" ? ` · ${number(one.progress.steps_per_second, 3)} steps/s` : ""}</span>
          </div>
    <${Actions} one=${one} run=${run} about=${about} />
    <${Curves} id=${id} step=${one.progress.step} />
    <${Quality} one=${one} about=${about} after=${reload} />
    <${Checkpoints} id=${id} turn=${turn} />
    <${Hyperparameters} config=${one.config} />`;
}

function Actions({ one, run, about }) {
  const can = action => !about?.read_only && CAN[action].includes(one.state) && !one.asked.includes(action);
  return html`<section aria-label="Actions"><div class="buttons">
    ${can("stop") && html`<button type="button" onClick=${() => run("stop")}>Stop</button>`}
    ${can("retry") && html`<button type="button" onClick=${() => run("retry")}>Retry</button>`}
    ${one.evidence && html`<a class="button" href=${link("latents", { sae: one.path })}>Browse latents</a>`}
    ${one.state === "completed" && !about?.read_only && html`<a class="button" href=${link("steer", { sae: one.path })}>Steer</a>`}
    ${!about?.read_only && html`<a class="button" href=${link("new", { like: one.id })}>Start one like it</a>`}
    ${can("delete") && html`<button type="button" class="danger" onClick=${() => run("delete")}>Delete…</button>`}
    ${one.asked.length > 0 && html`<span
      class="muted" role="status">asked to ${one.asked.join(", ")}; its driver carries it out</span>`}</div>
    <details><summary>The same on the command line</summary><${Command} label="the whole sweep">${one.command}<//>
      ${["stop", "retry", "delete"].filter(action => CAN[action].includes(one.state)).map(action => html`<${Command} label=${action}>
        ${command(about, action, [one.id])}<//>`)}</details></section>`;
}

// All curves, read once and then only what is new.
function useCurves(id) {
  const [state, set] = useState({ curves: null, problem: null });
  const load = async () => {
    const known = state.curves;
    try {
      const found = await get(at(id, `metrics?${query({ points: POINTS, since: known?.step ?? 0 })}`));
      const more = known && { rows: known.rows + found.rows, series: joined(known.series, found.series) };
      set({ problem: null, curves: { ...found, ...more } });
    } catch (problem) { set(now => ({ ...now, problem })); }
  };
  useEffect(() => { load(); }, [id]);
  return { ...state, more: useThrottled(load, 1000) };
}

const joined = (old, fresh) => Object.fromEntries(Object.entries(fresh).map(([name, { steps, values }]) => [name, {
  steps: [...(old[name]?.steps ?? []), ...steps], values: [...(old[name]?.values ?? []), ...values] }]));

function Curves({ id, step }) {
  const { curves, problem, more } = useCurves(id), [all, showAll] = useState(false), [logarithmic, setLogarithmic] = useState(false);
  useEffect(() => { if (curves && step > curves.step) more(); }, [step]);
  const shown = useMemo(() => Object.entries(curves?.series ?? {})
    .filter(([name, one]) => (name in MAIN || all) && one.values.some(value => value !== null))
    .map(([name, one]) => [name, [{ name, ...one }]]), [curves, all]);
  if (!curves) return problem ? html`<${Wrong} problem=${problem} again=${more} />` : html`<${Loading} what="curves" />`;
  if (!curves.rows) return html`<${Empty}><p>No step has been logged yet: the curves appear with the first one.</p><//>`;
  return html`<section aria-label="Curves"><div class="heading"><h2>Curves</h2>
    <label><input type="checkbox" checked=${logarithmic} onChange=${event => setLogarithmic(event.target.checked)} /> logarithmic</label>
    <label><input type="checkbox" checked=${all} onChange=${event => showAll(event.target.checked)} /> every column</label></div>
    <div class="charts">${shown.map(([name, lines]) => html`<${Chart} key=${name}
      title=${MAIN[name] ?? name.replaceAll("_", " ")} lines=${lines}
      logarithmic=${logarithmic && lines[0].values.every(value => value === null || value > 0)} />`)}</div></section>`;
}

const QUALITY = {
  l0: "L0", fvu: "FVU", delta_loss: "delta loss", recovered_zero: "loss recovered (zero)", recovered_mean: "loss recovered (mean)",
  dead_fraction: "dead fraction", decoder_cosine: "decoder cosine",
};

function Quality({ one, about, after }) {
  const [names, setNames] = useState(""), [answer, setAnswer] = useState(null);
  const evaluate = async event => {
    event.preventDefault();
    const found = await attempt(() => post(at(one.id, "evaluate"), { metrics: names.split(/[\s,]+/).filter(Boolean) }));
    if (found) { setAnswer(found); after(); }
  };
  return html`<section aria-label="Evaluation"><h2>Evaluation</h2>
    ${one.quality ? html`<dl class="figures">${Object.entries(QUALITY).map(([name, title]) => html`<div><dt class="muted">${title}</dt><dd>
      ${number(one.quality[name])}</dd></div>`)}</dl>
      <p class="muted">Measured on held-out text, of the checkpoint at step ${count(one.quality.step)}.</p>` : html`<p
        class="muted">Not evaluated yet.</p>`}
    ${!about?.read_only && html`<form class="inline" onSubmit=${evaluate}><label>Metrics <input value=${names}
      placeholder="all that the sweep asks for" onInput=${event => setNames(event.target.value)} /></label>
      <button>Evaluate</button></form><${Command}>${command(about, "evaluate", [one.id])}<//>`}
    ${answer && html`<div role="status"><p>
      ${answer.cached ? "All of them were measured already." : answer.request ? `Asked: ${answer.request.driver}` : ""}</p>
      <dl class="figures">${Object.entries(answer.metrics).map(([name, one]) => html`<div><dt class="muted">${name}</dt><dd>
        ${value(one)}</dd></div>`)}</dl></div>`}</section>`;
}

function Checkpoints({ id, turn }) {
  const { value: found, problem, again } = useLoaded(signal => get(at(id, "checkpoints"), signal), [id, turn]);
  return html`<section aria-label="Checkpoints"><h2>Checkpoints</h2>
    ${problem && html`<${Wrong} problem=${problem} again=${again} />`}
    ${found && !found.items.length && html`<p class="muted">None is written yet.</p>`}
    ${found?.items.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="Checkpoints, a table"><table><thead><tr>
      <th scope="col" class="n">Step</th><th scope="col">Resumable</th>
      <th scope="col" class="n">L0</th><th scope="col" class="n">FVU</th><th scope="col" class="n">Delta loss</th><th scope="col">Path</th>
        </tr></thead>
      <tbody>${[...found.items].reverse().map(one => html`<tr><td class="n">${count(one.step)}</td><td>
        ${one.resumable ? "yes" : "weights only"}</td>
        <td class="n">${number(one.quality?.l0)}</td><td class="n">${number(one.quality?.fvu)}</td><td class="n">
          ${number(one.quality?.delta_loss)}</td><td><code>${one.path}</code></td></tr>`)}</tbody></table></div>`}</section>`;
}

function Hyperparameters({ config }) {
  const [text, find] = useState("");
  if (!config) return null;
  const rows = Object.entries(config).filter(([name]) => name.includes(text.trim().toLowerCase()));
  return html`<section aria-label="Hyperparameters"><div class="heading"><h2>Hyperparameters</h2>
    <label>Find <input type="search" value=${text} onInput=${event => find(event.target.value)} /></label>
      <${Copy} text=${() => JSON.stringify(config, null, 2)} label="Copy as JSON" /></div>
    <dl class="pairs">${rows.map(([name, one]) => html`<div key=${name}><dt>${name}</dt><dd><code>${value(one)}</code></dd></div>`)}</dl>
    ${!rows.length && html`<p class="muted">No hyperparameter has this in its name.</p>`}</section>`;
}
