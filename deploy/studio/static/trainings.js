// The list of trainings: cards with live figures, filtered, sorted, selected and acted upon.
import { html, useCallback, useEffect, useRef, useState } from "./view.js";
import { get, query } from "./api.js";
import { Card, Row } from "./card.js";
import { VirtualList } from "./list.js";
import { useLive } from "./live.js";
import { Empty, Loading, useThrottled, Wrong } from "./parts.js";
import { go } from "./routes.js";
import { Bulk } from "./actions.js";

const PAGE = 100; // entries of one request
const STATES = ["running", "pending", "completed", "failed", "stopped"];
const SORTS = {
  sweep: "sweep", name: "name", state: "state", step: "step", loss: "loss", l0: "L0", fvu: "FVU", dead: "dead latents",
  delta_loss: "delta loss", width: "width", sparsity: "sparsity", updated: "last change",
};
const CARD = { height: 208, least: 320 }, ROW = { height: 62, least: Infinity }; // pixels

// The list that the service filters and sorts, of which those pages are kept that were seen.
function usePages(fields) {
  const key = query(fields), pages = useRef({ key, items: new Map(), asked: new Map() });
  const [about, set] = useState({ total: null, counts: {}, problem: null, turn: 0 });
  if (pages.current.key !== key) pages.current = { key, items: new Map(), asked: new Map() };

  const load = useCallback(async page => {
    const now = pages.current;
    if (now.asked.get(page)) return;
    now.asked.set(page, true);
    try {
      const found = await get(`trainings?${key}&${query({ offset: page * PAGE, limit: PAGE })}`);
      if (pages.current !== now) return;
      now.items.set(page, found.items);
      set(before => ({ total: found.total, counts: found.counts, problem: null, turn: before.turn + 1 }));
    } catch (problem) {
      now.asked.delete(page);
      if (pages.current === now) set(before => ({ ...before, problem }));
    }
  }, [key]);
  const again = useCallback(() => {
    const seen = [...pages.current.asked.keys()];
    pages.current.asked.clear();
    (seen.length ? seen : [0]).forEach(load);
  }, [load]);
  useEffect(() => { load(0); }, [load]);
  const seen = useCallback((first, last) => {
    for (let page = Math.floor(first / PAGE); page <= Math.floor(Math.max(first, last - 1) / PAGE); page++) load(page);
  }, [load]);
  const item = index => pages.current.items.get(Math.floor(index / PAGE))?.[index % PAGE];
  const change = (id, fields) => {
    for (const items of pages.current.items.values()) {
      const at = items.findIndex(one => one.id === id);
      if (at >= 0) { items[at] = { ...items[at], ...fields }; return true; }
    }
    return false;
  };
  return { ...about, item, seen, again, change, key, shown: () => set(before => ({ ...before, turn: before.turn + 1 })) };
}

export function Trainings({ parameters, about }) {
  const { state = "", sort = "sweep", order = "ascending", text = "", sweep = "", architecture = "" } = parameters;
  const fields = { state: state.split(",").filter(Boolean), sort, order, text, sweep, architecture };
  const pages = usePages(fields), [chosen, choose] = useState(new Set());
  const [layout, setLayout] = useState(localStorage.getItem("layout") ?? "cards");
  const redraw = useThrottled(pages.shown, 250), reload = useThrottled(pages.again, 1000);
  useLive(["training/*", "trainings", "bucket"], ({ channel, event, data }) => {
    if (!channel.startsWith("training/")) return reload();
    const id = channel.slice("training/".length);
    if (event === "progress") {
      const { state: now, ...progress } = data;
      if (pages.change(id, { progress, state: now })) redraw();
    } else if (event !== "checkpoint") {
      if (pages.change(id, data)) redraw();
      reload();
    }
  });
  const set = changes => go("trainings", { ...parameters, ...changes }, true);
  const toggle = useCallback((id, on) => choose(before => {
    const after = new Set(before);
    if (on) after.add(id); else after.delete(id);
    return after;
  }), []);
  const all = async () => choose(new Set((await get(`trainings?${pages.key}&limit=2000`)).items.map(one => one.id)));
  const arrange = name => { localStorage.setItem("layout", name); setLayout(name); };
  const narrow = useNarrow();
  const rows = layout === "rows" && !narrow, Entry = rows ? Row : Card;
  const filtered = Boolean(text || state || sweep || architecture), reset = () => go("trainings", {}, true);
  const show = index => {
    const one = pages.item(index);
    if (!one) return html`<div class="card waiting" />`;
    return html`<${Entry} key=${one.id} training=${one} chosen=${chosen.has(one.id)} toggle=${toggle} />`;
  };
  return html`<h1 class="title">Trainings <span class="muted">${pages.total ?? ""}</span></h1>
    <${Filters} ...${{ fields, counts: pages.counts, set, layout, arrange }} />
    <${Bulk} chosen=${chosen} clear=${() => choose(new Set())} all=${all} total=${pages.total} about=${about} after=${reload} />
    ${pages.problem && html`<${Wrong} problem=${pages.problem} again=${pages.again} />`}
    ${pages.total === null && !pages.problem && html`<${Loading} what="trainings" />`}
    ${pages.total === 0 && html`<${Nothing} filtered=${filtered} reset=${reset} about=${about} />`}
    ${pages.total > 0 && html`<${VirtualList} ...${rows ? ROW : CARD} count=${pages.total} label="Trainings" seen=${pages.seen}
      show=${show} />`}`;
}

function useNarrow() {
  const media = matchMedia("(max-width: 60rem)"), [narrow, set] = useState(media.matches);
  useEffect(() => {
    const changed = event => set(event.matches);
    media.addEventListener("change", changed);
    return () => media.removeEventListener("change", changed);
  }, []);
  return narrow;
}

function Filters({ fields, counts, set, layout, arrange }) {
  const [text, type] = useState(fields.text), find = useThrottled(() => set({ text }), 250);
  useEffect(() => { if (text !== fields.text) find(); }, [text]);
  useEffect(() => type(fields.text), [fields.text]);
  const toggle = state => {
    const others = fields.state.filter(one => one !== state);
    set({ state: (others.length < fields.state.length ? others : [...others, state]).join() });
  };
  return html`<search class="filters" aria-label="Filter the trainings">
    <label class="grow"><span class="muted">Find</span> <input type="search" value=${text} placeholder="name, sweep or model"
      onInput=${event => type(event.target.value)} /></label>
    <div class="group" role="group" aria-label="States">${STATES.map(state => html`<button type="button" class=${`chip ${state}`}
      aria-pressed=${fields.state.includes(state) ? "true" : "false"} onClick=${() => toggle(state)}>${state} <span class="muted">
        ${counts[state] ?? 0}</span></button>`)}</div>
    ${fields.sweep && html`<button type="button" class="chip" onClick=${() => set({ sweep: "" })}
      aria-label=${`Show all sweeps, not only ${fields.sweep}`}>sweep ${fields.sweep} ×</button>`}
    <label><span class="muted">Sort by</span> <select value=${fields.sort} onChange=${event => set({ sort: event.target.value })}>
      ${Object.entries(SORTS).map(([name, title]) => html`<option value=${name}>${title}</option>`)}</select></label>
    <button type="button" aria-label=${`Order: ${fields.order}; turn it round`}
      onClick=${() => set({ order: fields.order === "ascending" ? "descending" : "ascending" })}>
      ${fields.order === "ascending" ? "↑" : "↓"}</button>
    <div class="group wide-only" role="group" aria-label="Layout">${["cards", "rows"].map(name => html`<button type="button"
      aria-pressed=${layout === name ? "true" : "false"}
      onClick=${() => arrange(name)}>${name}</button>`)}</div></search>`;
}

const Nothing = ({ filtered, reset, about }) => filtered
  ? html`<${Empty}><p>No training matches these filters.</p><button type="button" onClick=${reset}>Show all</button><//>`
  : html`<${Empty}><h2>This bucket has no trainings yet</h2>
    ${about && !about.read_only && html`<p><a class="button" href="#/new">Start a training</a></p>`}
    <p class="muted">Whatever <code>scopemill sweep</code> writes to <code>${about?.bucket}</code> appears here by itself.</p><//>`;
