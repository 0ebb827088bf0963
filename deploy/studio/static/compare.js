// Trainings side by side: their curves in common charts, the hyperparameters in which they differ, and what was measured.
import { html, useMemo } from "./view.js";
import { get, query } from "./api.js";
import { Chart } from "./charts.js";
import { number, value } from "./format.js";
import { useLive } from "./live.js";
import { Empty, Loading, State, useLoaded, useThrottled, Wrong } from "./parts.js";
import { link } from "./routes.js";

const CURVES = { loss: "Loss", l0: "L0", fvu: "FVU", dead: "Dead latents" };
const QUALITY = { l0: "L0", fvu: "FVU", delta_loss: "delta loss", recovered_zero: "loss recovered", dead_fraction: "dead fraction" };

// The curve of each training under one name.
const linesOf = (found, name) => (found?.metrics ?? []).map((one, i) => ({
  name: found.trainings[i].name, ...(one.series[name] ?? { steps: [], values: [] }),
}));

export function Compare({ parameters }) {
  const ids = (parameters.ids ?? "").split(",").filter(Boolean);
  const { value: found, problem, again } = useLoaded(
    signal => ids.length ? get(`compare?${query({ id: ids })}`, signal) : Promise.resolve(null), ids);
  const reload = useThrottled(again, 4000);
  useLive(ids.map(id => `training/${id}`), reload);
  const charts = useMemo(() => Object.keys(CURVES).map(name => [name, linesOf(found, name)]), [found]);
  if (ids.length < 2) return html`<h1 class="title">Compare</h1><${Empty}>
    <p>Select two or more trainings in the list, then choose Compare.</p><a class="button" href=${link("trainings")}>All trainings</a><//>`;
  if (!found) return problem ? html`<h1 class="title">Compare</h1>
    <${Wrong} problem=${problem} again=${again} />` : html`<${Loading} what="trainings" />`;
  const differing = Object.entries(found.differing);
  return html`<h1 class="title">Compare ${found.trainings.length} trainings</h1>
    <div class="charts">${charts.map(([name, lines]) => html`<${Chart} key=${name}
      title=${CURVES[name]} lines=${lines} height=${240} />`)}</div>
    <div class="scroll" tabindex="0" role="region" aria-label="Differences, a table"><table><thead><tr><th scope="col"></th>
      ${found.trainings.map(one => html`<th scope="col"><a href=${link(`training/${encodeURIComponent(one.id)}`)}>${one.name}</a><br />
      <${State} state=${one.state} reason=${one.reason} /></th>`)}</tr></thead>
    <tbody>${Object.entries(QUALITY).map(([name, title]) => html`<tr><th scope="row">${title}</th>${found.trainings.map(one => html`<td>
      ${number(one.quality?.[name])}</td>`)}</tr>`)}
      <tr><th scope="rowgroup" colspan=${found.trainings.length + 1}>
        ${differing.length ? "Hyperparameters that differ" : "All hyperparameters are the same"}</th></tr>
      ${differing.map(([name, values]) => html`<tr><th scope="row">${name}</th>${values.map(one => html`<td><code>${value(one)}</code>
        </td>`)}</tr>`)}</tbody></table></div>`;
}
