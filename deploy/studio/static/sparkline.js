// A curve as small as a word, for a card.
import { html } from "./view.js";
import { number } from "./format.js";

const WIDE = 100, HIGH = 28;

// The line of a series, as an SVG path in a box of 100 x 28; gaps stay gaps.
export function path(steps, values) {
  const known = values.filter(value => value !== null);
  if (known.length < 2) return "";
  const low = Math.min(...known), high = Math.max(...known), first = steps[0], span = steps[steps.length - 1] - first || 1;
  let line = "", pen = "M";
  values.forEach((value, i) => {
    if (value === null) { pen = "M"; return; }
    const y = high > low ? (HIGH - 2) * (1 - (value - low) / (high - low)) + 1 : HIGH / 2;
    line += `${pen}${((steps[i] - first) / span * WIDE).toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
  });
  return line;
}

export const Sparkline = ({ title, series, value, shown = number }) => html`<div class="spark">
  <span class="muted">${title}</span><b>${shown(value)}</b>
  <svg viewBox=${`0 0 ${WIDE} ${HIGH}`} preserveAspectRatio="none" aria-hidden="true">
    ${series && html`<path d=${path(series.steps, series.values)} />`}</svg></div>`;
