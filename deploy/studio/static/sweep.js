// A sweep: how far it is, the scatter of its trainings, their figures, and what can be done to all of them.
import { html, useState } from "./view.js";
import { get, post } from "./api.js";
import { CAN, command } from "./actions.js";
import { count, number, percent } from "./format.js";
import { useLive } from "./live.js";
import { attempt, Bar, Command, confirm, Copy, Loading, State, useLoaded, useThrottled, Wrong } from "./parts.js";
import { link } from "./routes.js";
import { Scatter } from "./scatter.js";
import { Counts, SweepProgress } from "./sweeps.js";

export function Sweep({ rest: [name], about }) {
  const { value: sweep, problem, again } = useLoaded(signal => get(`trainings/sweep/${encodeURIComponent(name)}`, signal), [name]);
  const reload = useThrottled(again, 2000);
  useLive([`sweep/${name}`, `training/${name}:*`, "trainings", "bucket"], reload);
  if (!sweep) return problem ? html`<h1 class="title">${name}</h1>
    <${Wrong} problem=${problem} again=${again} />` : html`<${Loading} what="the sweep" />`;
  return html`<nav class="crumbs" aria-label="Where this is"><a href=${link("sweeps")}>Sweeps</a></nav>
    <h1 class="title">${sweep.name} <${State} state=${sweep.state} reason=${sweep.reason} /></h1>
    ${problem && html`<${Wrong} problem=${problem} again=${again} />`}
    <${Counts} counts=${sweep.counts} sweep=${name} /><${SweepProgress} sweep=${sweep} />
    ${sweep.phase && html`<div class="progress wide"><${Bar} percent=${sweep.phase_pct} label="Progress of this phase" /><span>
      ${sweep.phase}${sweep.phase_pct === null ? "" : `, ${percent(sweep.phase_pct)}`}</span></div>`}
    ${sweep.reason && html`<p class="sentences">${sweep.reason}</p>`}${sweep.driver && html`<p
      class="muted">Driven by ${sweep.driver}.</p>`}
    <${Actions} sweep=${sweep} about=${about} after=${reload} />
    ${sweep.says.length > 0 && html`<details open=${sweep.state === "running"}><summary>What its driver says</summary><pre
      class="log" tabindex="0">${sweep.says.join("\n")}</pre></details>`}
    <${Scatter} points=${sweep.points} name=${name} />
    <${Aggregates} all=${sweep.aggregates} />
    <${Children} children=${sweep.children} points=${sweep.points} />
    ${sweep.config && html`<details><summary>The sweep file</summary><div class="buttons">
      <${Copy} text=${() => JSON.stringify(sweep.config, null, 2)} label="Copy as JSON" />
      ${!about?.read_only && html`<a class="button" href=${link("new", { sweep: name })}>Start one like it</a>`}</div><pre
        class="log" tabindex="0">${JSON.stringify(sweep.config, null, 2)}</pre></details>`}`;
}

function Actions({ sweep, about, after }) {
  const ids = action => sweep.children.filter(one => CAN[action].includes(one.state)).map(one => one.id);
  const run = async action => {
    const wanted = ids(action);
    const sure = action === "retry" || await confirm({
      title: `Stop all ${wanted.length} trainings of ${sweep.name}?`, text: "Each writes a checkpoint first; retry goes on from there.",
      action: "Stop", names: wanted, command: command(about, "stop", wanted),
    });
    const told = found => found.asked.map(one => `${one.action}: ${one.driver}`).join("\n");
    if (sure && await attempt(() => post(`trainings/${action}`, { ids: wanted }), told)) after();
  };
  return html`<section aria-label="Actions"><div class="buttons">
    ${!about?.read_only && sweep.state === "running" && ids("stop").length > 0 && html`<button type="button"
      onClick=${() => run("stop")}>Stop all…</button>`}
    ${!about?.read_only && sweep.state !== "running" && ids("retry").length > 0 && html`<button type="button"
      onClick=${() => run("retry")}>Retry ${ids("retry").length}</button>`}
    <a class="button" href=${link("trainings", { sweep: sweep.name })}>Show as cards</a></div>
    <${Command}>${sweep.command}<//></section>`;
}

const TITLES = {
  l0: "L0", fvu: "FVU", loss: "loss", delta_loss: "delta loss", recovered_zero: "loss recovered", dead_fraction: "dead fraction",
};

const Aggregates = ({ all }) => Object.keys(all).length > 0 && html`<section aria-label="Over all trainings"><h2>Over all trainings</h2><div
  class="scroll" tabindex="0" role="region" aria-label="Aggregates, a table"><table class="narrow"><thead><tr><th scope="col">Figure</th>
  <th scope="col" class="n">Least</th><th scope="col" class="n">Mean</th><th scope="col" class="n">Most</th></tr></thead><tbody>
    ${Object.entries(all).map(([name, one]) => html`<tr><th scope="row">${TITLES[name] ?? name}</th>
  <td class="n">${number(one.least)}</td><td class="n">${number(one.mean)}</td><td class="n">${number(one.most)}</td></tr>`)}</tbody>
    </table></div></section>`;

const ROWS = 50; // of the table until all are asked for

function Children({ children, points }) {
  const [all, showAll] = useState(false), [chosen, choose] = useState([]), by = Object.fromEntries(points.map(point => [point.id, point]));
  const toggle = (id, on) => choose(now => on ? [...now, id] : now.filter(one => one !== id));
  const shown = all ? children : children.slice(0, ROWS);
  return html`<section aria-label="Trainings"><div class="heading"><h2>Trainings</h2>${chosen.length > 1 && chosen.length <= 16 && html`<a
    class="button" href=${link("compare", { ids: chosen.join() })}>Compare ${chosen.length}</a>`}</div>
    <div class="scroll" tabindex="0" role="region" aria-label="Trainings, a table"><table><thead><tr><th scope="col"><span
      class="hidden">Compare</span></th><th scope="col">Training</th><th scope="col">State</th><th scope="col" class="n">Step</th>
      <th scope="col" class="n">L0</th><th scope="col" class="n">FVU</th><th scope="col" class="n">Delta loss</th><th scope="col"
        class="n">Dead</th><th scope="col">Pareto</th></tr></thead>
    <tbody>${shown.map(one => html`<tr key=${one.id}><td><input type="checkbox" aria-label=${`Compare ${one.name}`}
      checked=${chosen.includes(one.id)} onChange=${event => toggle(one.id, event.target.checked)} /></td>
      <td><a href=${link(`training/${encodeURIComponent(one.id)}`)}>${one.name}</a></td><td>
        <${State} state=${one.state} reason=${one.reason} /></td><td class="n">${count(one.progress.step)}</td>
      <td class="n">${number(by[one.id]?.l0)}</td><td class="n">${number(by[one.id]?.fvu)}</td><td class="n">
        ${number(by[one.id]?.delta_loss)}</td><td class="n">${count(one.progress.dead)}</td>
      <td>${[by[one.id]?.pareto_fvu && "FVU", by[one.id]?.pareto_delta_loss && "delta loss"].filter(Boolean).join(", ")}</td>
        </tr>`)}</tbody></table></div>
    ${children.length > shown.length && html`<button type="button" class="plain"
      onClick=${() => showAll(true)}>Show all ${children.length}</button>`}</section>`;
}
