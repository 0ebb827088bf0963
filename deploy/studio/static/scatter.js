// The scatter of L0 against quality: every point is a link, so a keyboard reaches it; the Pareto line is of each group.
import { html, useRef, useState } from "./view.js";
import { marks, scale } from "./axes.js";
import { COLOURS } from "./charts.js";
import { number } from "./format.js";
import { download } from "./parts.js";
import { csv, png, standalone } from "./picture.js";
import { link } from "./routes.js";

const WIDE = 720, HIGH = 420, LEFT = 62, RIGHT = 16, TOP = 14, BOTTOM = 46, SIZE = { width: WIDE, height: HIGH };
const ERRORS = { fvu: "FVU", delta_loss: "delta loss" };
const SHAPES = ["M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0", "M-4.5 -4.5H4.5V4.5H-4.5Z", "M0 -6L5.6 4.5H-5.6Z", "M0 -6.4L6.4 0L0 6.4L-6.4 0Z"];

// The colour and shape of the group that is i-th.
const look = i => ({ colour: `var(${COLOURS[i % COLOURS.length]})`, shape: SHAPES[Math.floor(i / COLOURS.length + i) % SHAPES.length] });

const says = (point, error) => [
  `${point.name}: L0 ${number(point.l0)}, ${ERRORS[error]} ${number(point[error])}`, point[`pareto_${error}`] && "on the Pareto line",
  !point.measured && "not evaluated",
].filter(Boolean).join(", ");

export function Scatter({ points, name }) {
  const [error, setError] = useState("fvu"), [logarithmic, setLogarithmic] = useState(true), [hidden, hide] = useState(new Set());
  const picture = useRef(null), groups = [...new Set(points.map(point => point.group))];
  const known = points.filter(point => point.l0 !== null && point[error] !== null), missing = points.length - known.length;
  const shown = known.filter(point => !hidden.has(point.group) && (!logarithmic || point.l0 > 0));
  const toggle = group => hide(before => {
    const after = new Set(before);
    if (!after.delete(group)) after.add(group);
    return after;
  });
  const files = {
    CSV: () => download(`${name}.csv`, csv(points), "text/csv"), PNG: () => png(picture.current, SIZE, `${name}.png`),
    SVG: () => download(`${name}.svg`, standalone(picture.current, SIZE), "image/svg+xml"),
  };
  return html`<section aria-label="L0 against quality"><div class="heading"><h2>L0 against ${ERRORS[error]}</h2>
    <label><span class="muted">Quality</span> <select value=${error} onChange=${event => setError(event.target.value)}>
      ${Object.entries(ERRORS).map(([key, title]) => html`<option value=${key}>${title}</option>`)}</select></label>
    <label><input type="checkbox" checked=${logarithmic} onChange=${event => setLogarithmic(event.target.checked)} /> logarithmic</label>
    <div class="group" role="group" aria-label="Download">${Object.entries(files).map(([title, save]) => html`<button type="button"
      key=${title} disabled=${title !== "CSV" && !shown.length} onClick=${save}>${title}</button>`)}</div></div>
    ${shown.length ? html`<${Plot} ...${{ shown, groups, error, logarithmic, picture }} />` : html`<p class="muted">
      ${points.length ? `No point has both L0 and ${ERRORS[error]} yet.` : "This sweep has no trainings yet."}</p>`}
    <div class="legend" role="group" aria-label="Groups">${groups.map((group, i) => html`<button type="button" class="plain" key=${group}
      aria-pressed=${hidden.has(group) ? "false" : "true"} onClick=${() => toggle(group)}>
      <svg viewBox="-8 -8 16 16" aria-hidden="true"><path d=${look(i).shape}
        style=${{ fill: hidden.has(group) ? "none" : look(i).colour, stroke: look(i).colour }} /></svg>${group}</button>`)}</div>
    <p class="muted">The line joins the trainings of a group that no other beats in both. Hollow points are not evaluated: their figures
      are of the training.${missing > 0 && ` ${missing} of ${points.length} have no ${ERRORS[error]} yet.`}</p></section>`;
}

function Plot({ shown, groups, error, logarithmic, picture }) {
  const high = logarithmic && shown.every(point => point[error] > 0); // an error may be negative
  const x = scale(shown.map(point => point.l0), LEFT, WIDE - RIGHT, logarithmic);
  const y = scale(shown.map(point => point[error]), HIGH - BOTTOM, TOP, high);
  const place = point => `${x.at(point.l0).toFixed(1)} ${y.at(point[error]).toFixed(1)}`;
  const lines = groups.map((group, i) => {
    const best = shown.filter(point => point.group === group && point[`pareto_${error}`]).sort((a, b) => a.l0 - b.l0);
    return html`<path key=${group} class="pareto" style=${{ stroke: look(i).colour }}
      d=${best.map((point, at) => `${at ? "L" : "M"}${place(point)}`).join("")} />`;
  });
  return html`<svg ref=${picture} class="scatter" viewBox=${`0 0 ${WIDE} ${HIGH}`} role="group"
    aria-label=${`Scatter of L0 against ${ERRORS[error]}, ${shown.length} trainings; each point is a link to its training`}>
    ${marks(x.low, x.high, logarithmic).map(mark => html`<g class="axis">
      <line x1=${x.at(mark)} x2=${x.at(mark)} y1=${TOP} y2=${HIGH - BOTTOM} />
      <text x=${x.at(mark)} y=${HIGH - BOTTOM + 17} text-anchor="middle">${number(mark)}</text></g>`)}
    ${marks(y.low, y.high, high).map(mark => html`<g class="axis">
      <line x1=${LEFT} x2=${WIDE - RIGHT} y1=${y.at(mark)} y2=${y.at(mark)} />
      <text x=${LEFT - 7} y=${y.at(mark) + 4} text-anchor="end">${number(mark)}</text></g>`)}
    <text class="name" x=${(LEFT + WIDE - RIGHT) / 2} y=${HIGH - 8} text-anchor="middle">L0</text>
    <text class="name" transform=${`translate(14 ${(TOP + HIGH - BOTTOM) / 2}) rotate(-90)`} text-anchor="middle">${ERRORS[error]}</text>
    ${lines}${shown.map(point => html`<${Point} key=${point.id} point=${point} error=${error} place=${place(point)}
      ...${look(groups.indexOf(point.group))} />`)}
    </svg>`;
}

const Point = ({ point, error, place, colour, shape }) => html`<a href=${link(`training/${encodeURIComponent(point.id)}`)}
  aria-label=${says(point, error)}><path class=${`point ${point.measured ? "" : "unmeasured"}`} d=${shape}
  transform=${`translate(${place})`} style=${{ fill: point.measured ? colour : "var(--paper)", stroke: colour }}>
  <title>${says(point, error)}</title></path></a>`;
