// The scatter of L0 against quality: every point is a link, so a keyboard reaches it; the Pareto line is of each group.
import { html, useRef, useState } from "./view.js";
import { COLOURS } from "./charts.js";
import { number } from "./format.js";
import { download } from "./parts.js";
import { link } from "./routes.js";

const WIDE = 720, HIGH = 420, LEFT = 62, RIGHT = 16, TOP = 14, BOTTOM = 46;
const ERRORS = { fvu: "FVU", delta_loss: "delta loss" };
const SHAPES = ["M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0", "M-4.5 -4.5H4.5V4.5H-4.5Z", "M0 -6L5.6 4.5H-5.6Z", "M0 -6.4L6.4 0L0 6.4L-6.4 0Z"];

// Marks of an axis: 1, 2 and 5 times powers of ten, few of them.
export function marks(low, high, logarithmic) {
  if (logarithmic) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const times of [1, 2, 5]) {
        const mark = times * 10 ** power;
        if (mark >= low && mark <= high) found.push(mark);
      }
    }
    if (found.length >= 2) return found.length > 8 ? found.filter(mark => /^1/.test((mark / 10 ** Math.floor(Math.log10(mark) + 1e-9)).toFixed(0))) : found;
  }
  const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 5, 10].find(times => times * power >= rough) * power;
  const found = [];
  for (let mark = Math.ceil(low / step) * step; mark <= high + step * 1e-9; mark += step) found.push(+mark.toPrecision(12));
  return found;
}

function scale(values, from, to, logarithmic) {
  let low = Math.min(...values), high = Math.max(...values);
  if (logarithmic) {
    const margin = Math.max(1.02, (high / low) ** .06);
    [low, high] = [low / margin, high * margin];
    const span = Math.log(high / low);
    return { low, high, at: value => from + (to - from) * Math.log(value / low) / span };
  }
  const margin = (high - low || Math.abs(high) || 1) * .06;
  [low, high] = [low - margin, high + margin];
  return { low, high, at: value => from + (to - from) * (value - low) / (high - low) };
}

export function Scatter({ points, name }) {
  const [error, setError] = useState("fvu"), [logarithmic, setLogarithmic] = useState(true), [hidden, hide] = useState(new Set()), picture = useRef(null);
  const groups = [...new Set(points.map(point => point.group))];
  const known = points.filter(point => point.l0 !== null && point[error] !== null && !hidden.has(point.group));
  const shown = logarithmic ? known.filter(point => point.l0 > 0) : known;
  const x = shown.length && scale(shown.map(point => point.l0), LEFT, WIDE - RIGHT, logarithmic);
  const y = shown.length && scale(shown.map(point => point[error]), HIGH - BOTTOM, TOP, logarithmic && shown.every(point => point[error] > 0));
  const high = logarithmic && shown.every(point => point[error] > 0);
  const look = group => { const i = groups.indexOf(group); return { colour: COLOURS[i % COLOURS.length], shape: SHAPES[Math.floor(i / COLOURS.length + i) % SHAPES.length] }; };
  const toggle = group => hide(before => { const after = new Set(before); if (!after.delete(group)) after.add(group); return after; });
  const missing = points.length - points.filter(point => point.l0 !== null && point[error] !== null).length;
  return html`<section aria-label="L0 against quality"><div class="heading"><h2>L0 against ${ERRORS[error]}</h2>
    <label><span class="muted">Quality</span> <select value=${error} onChange=${event => setError(event.target.value)}>
      ${Object.entries(ERRORS).map(([key, title]) => html`<option value=${key}>${title}</option>`)}</select></label>
    <label><input type="checkbox" checked=${logarithmic} onChange=${event => setLogarithmic(event.target.checked)} /> logarithmic</label>
    <div class="group" role="group" aria-label="Download"><button type="button"
      onClick=${() => download(`${name}.csv`, csv(points), "text/csv")}>CSV</button>
      <button type="button" disabled=${!shown.length}
        onClick=${() => download(`${name}.svg`, standalone(picture.current), "image/svg+xml")}>SVG</button>
      <button type="button" disabled=${!shown.length} onClick=${() => png(picture.current, `${name}.png`)}>PNG</button></div></div>
    ${!shown.length ? html`<p class="muted">
      ${points.length ? `No point has both L0 and ${ERRORS[error]} yet.` : "This sweep has no trainings yet."}</p>` : html`
    <svg ref=${picture} class="scatter" viewBox=${`0 0 ${WIDE} ${HIGH}`} role="group"
      aria-label=${`Scatter of L0 against ${ERRORS[error]}, ${shown.length} trainings; each point is a link to its training`}>
      ${marks(x.low, x.high, logarithmic).map(mark => html`<g class="axis">
        <line x1=${x.at(mark)} x2=${x.at(mark)} y1=${TOP} y2=${HIGH - BOTTOM} />
        <text x=${x.at(mark)} y=${HIGH - BOTTOM + 17} text-anchor="middle">${number(mark)}</text></g>`)}
      ${marks(y.low, y.high, high).map(mark => html`<g class="axis"><line x1=${LEFT} x2=${WIDE - RIGHT} y1=${y.at(mark)} y2=${y.at(mark)} />
        <text x=${LEFT - 7} y=${y.at(mark) + 4} text-anchor="end">${number(mark)}</text></g>`)}
      <text class="name" x=${(LEFT + WIDE - RIGHT) / 2} y=${HIGH - 8} text-anchor="middle">L0</text>
      <text class="name" transform=${`translate(14 ${(TOP + HIGH - BOTTOM) / 2}) rotate(-90)`} text-anchor="middle">${ERRORS[error]}</text>
      ${groups.filter(group => !hidden.has(group)).map(group => html`<path
        class="pareto" style=${{ stroke: `var(${look(group).colour})` }} d=${line(shown.filter(point => point.group === group && point[`pareto_${error}`]), x, y, error)} />`)}
      ${shown.map(point => html`<a key=${point.id} href=${link(`training/${encodeURIComponent(point.id)}`)}
        aria-label=${says(point, error)}>
        <path class=${`point ${point.measured ? "" : "unmeasured"}`} style=${{ fill: point.measured ? `var(${look(point.group).colour})` : "var(--paper)", stroke: `var(${look(point.group).colour})` }}
          transform=${`translate(${x.at(point.l0).toFixed(1)} ${y.at(point[error]).toFixed(1)})`} d=${look(point.group).shape}><title>
            ${says(point, error)}</title></path></a>`)}</svg>`}
    <div class="legend" role="group" aria-label="Groups">${groups.map(group => html`<button type="button" class="plain"
      aria-pressed=${hidden.has(group) ? "false" : "true"} onClick=${() => toggle(group)}>
      <svg viewBox="-8 -8 16 16" aria-hidden="true">
        <path style=${{ fill: hidden.has(group) ? "none" : `var(${look(group).colour})`, stroke: `var(${look(group).colour})` }} d=${look(group).shape} /></svg>${group}</button>`)}</div>
    <p class="muted">The line joins the trainings of a group that no other beats in both. Hollow points are not evaluated: their figures are of the training.
      ${missing > 0 ? ` ${missing} of ${points.length} have no ${ERRORS[error]} yet.` : ""}</p></section>`;
}

const says = (point, error) => `${point.name}: L0 ${number(point.l0)}, ${ERRORS[error]} ${number(point[error])}${point[`pareto_${error}`] ? ", on the Pareto line" : ""}${point.measured ? "" : ", not evaluated"}`;

const line = (points, x, y, error) => [...points].sort((a, b) => a.l0 - b.l0).map((point, i) => `${i ? "L" : "M"}${x.at(point.l0).toFixed(1)} ${y.at(point[error]).toFixed(1)}`).join("");

const COLUMNS = ["id", "name", "group", "sparsity", "l0", "fvu", "delta_loss", "measured", "pareto_fvu", "pareto_delta_loss"];
const cell = value => value === null || value === undefined ? "" : /[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
export const csv = points => [COLUMNS.join(), ...points.map(point => COLUMNS.map(name => cell(point[name])).join())].join("\n") + "\n";

// The picture with its colours written into it, so that it looks the same in any program.
function standalone(svg) {
  const copy = svg.cloneNode(true), from = [svg, ...svg.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
  from.forEach((node, i) => {
    const look = getComputedStyle(node);
    for (const name of ["fill", "stroke", "stroke-width", "font-family", "font-size", "opacity"]) to[i].setAttribute(name, look.getPropertyValue(name));
    to[i].removeAttribute("style");
    to[i].removeAttribute("class");
  });
  for (const [name, value] of Object.entries({ xmlns: "http://www.w3.org/2000/svg", width: WIDE, height: HIGH })) copy.setAttribute(name, value);
  for (const anchor of copy.querySelectorAll("a")) anchor.replaceWith(...anchor.childNodes);
  const ground = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [name, value] of Object.entries({ width: WIDE, height: HIGH, fill: getComputedStyle(document.body).backgroundColor })) ground.setAttribute(name, value);
  copy.prepend(ground);
  return new XMLSerializer().serializeToString(copy);
}

function png(svg, name) {
  const image = new Image(), source = URL.createObjectURL(new Blob([standalone(svg)], { type: "image/svg+xml" }));
  image.onload = () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * WIDE, 2 * HIGH];
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(blob => download(name, blob));
    URL.revokeObjectURL(source);
  };
  image.src = source;
}
