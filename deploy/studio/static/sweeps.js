// All sweeps of the bucket, those at work first.
import { html } from "./view.js";
import { get } from "./api.js";
import { ago, duration, percent } from "./format.js";
import { useLive } from "./live.js";
import { Bar, Empty, Loading, State, useLoaded, useThrottled, Wrong } from "./parts.js";
import { link } from "./routes.js";

export function Sweeps({ about }) {
  const { value: sweeps, problem, again } = useLoaded(signal => get("trainings/sweep", signal), []), reload = useThrottled(again, 2000);
  useLive(["sweep/*", "training/*", "trainings", "bucket"], reload);
  return html`<h1 class="title">Sweeps</h1>
    ${problem && html`<${Wrong} problem=${problem} again=${again} />`}
    ${!sweeps && !problem && html`<${Loading} what="sweeps" />`}
    ${sweeps && !sweeps.length && html`<${Empty}><p>There is no sweep in <code>${about?.bucket}</code> yet.</p>
      ${about && !about.read_only && html`<a class="button" href=${link("new")}>Start one</a>`}<//>`}
    ${sweeps && html`<ul class="tiles">${sweeps.map(one => html`<li class="card" key=${one.name}><header><h2><a
      href=${link(`sweep/${encodeURIComponent(one.name)}`)}>${one.name}</a></h2><${State} state=${one.state} reason=${one.reason} />
      </header>
      <${Counts} counts=${one.counts} sweep=${one.name} /><${SweepProgress} sweep=${one} />
      <p class="muted sentences">${one.phase ?? one.reason ?? (one.updated ? `last changed ${ago(one.updated)}` : "")}</p></li>`)}</ul>`}`;
}

export const Counts = ({ counts, sweep }) => html`<p class="group">
  ${Object.entries(counts).filter(([, many]) => many).map(([state, many]) => html`<a class=${state}
  href=${link("trainings", { sweep, state })}>${many} ${state}</a>`)}</p>`;

export const SweepProgress = ({ sweep }) => html`<div class="progress wide">
  <${Bar} percent=${sweep.progress_pct} label=${`Progress of ${sweep.name}`} />
  <span class="muted">${percent(sweep.progress_pct)} of all steps${sweep.eta !== null ? ` · ${duration(sweep.eta)} left` : ""}</span>
    </div>`;
