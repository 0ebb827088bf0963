// A chart of curves that can be read off.
import { html, useEffect, useRef, useState } from "./view.js";
import uPlot from "./vendor/uplot.js";
import { number } from "./format.js";

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const COLOURS = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6", "--line-7", "--line-8"];

// Joins series of different steps into uPlot's columns.
function columns(lines) {
  const steps = [...new Set(lines.flatMap(line => line.steps))].sort((a, b) => a - b), at = new Map(steps.map((step, i) => [step, i]));
  return [steps, ...lines.map(line => {
    const column = new Array(steps.length).fill(undefined);
    line.steps.forEach((step, i) => { column[at.get(step)] = line.values[i]; });
    return column;
  })];
}

// A chart of lines [{name, steps, values}]; drag to zoom, double-click to see all again.
export function Chart({ title, lines, logarithmic = false, height = 190 }) {
  const place = useRef(null), plot = useRef(null), [dark, setDark] = useState(0);
  const kind = lines.map(line => line.name).join("\n");
  useEffect(() => {
    const scheme = matchMedia("(prefers-color-scheme: dark)"), changed = () => setDark(turn => turn + 1);
    scheme.addEventListener("change", changed);
    return () => scheme.removeEventListener("change", changed);
  }, []);
  useEffect(() => {
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
    const made = new uPlot({
      width: place.current.clientWidth, height,
      scales: { x: { time: false }, y: logarithmic ? { distr: 3 } : {} },
      axes: [
        { ...axis, values: (_, marks) => marks.map(mark => number(mark)) },
        { ...axis, size: 62, values: (_, marks) => marks.map(mark => mark === null ? "" : number(mark, 3)) },
      ],
      series: [{ label: "step" }, ...lines.map((line, i) => ({
        label: line.name, stroke: colour(COLOURS[i % COLOURS.length]), width: 1.5, spanGaps: true, points: { show: line.steps.length < 3 },
        value: (_, value) => number(value),
      }))],
      cursor: { sync: { key: "steps" }, points: { size: 6 } },
      legend: { live: true },
    }, columns(lines), place.current);
    plot.current = made;
    const sized = new ResizeObserver(() => { if (place.current) made.setSize({ width: place.current.clientWidth, height }); });
    sized.observe(place.current);
    return () => { sized.disconnect(); made.destroy(); plot.current = null; };
  }, [kind, logarithmic, height, dark]);
  useEffect(() => {
    if (!plot.current) return;
    const { min, max } = plot.current.scales.x, before = plot.current.data[0];
    const zoomed = min !== null && min !== undefined && (min > before[0] || max < before[before.length - 1]);
    plot.current.setData(columns(lines), !zoomed);
    if (zoomed) plot.current.setScale("x", { min, max });
  }, [lines]);
  const newest = lines.map(line => `${line.name} ${number([...line.values].reverse().find(value => value !== null))}`).join(", ");
  return html`<figure class="chart"><figcaption>${title}</figcaption><div ref=${place} role="img"
    aria-label=${`${title} by step: ${newest}`}></div></figure>`;
}
