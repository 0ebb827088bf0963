// One latent: everything that evidence has of it, in the parts of the page of latents on disk.
import { html, useEffect, useLayoutEffect, useRef } from "./view.js";
import "./latent-page/latent.js"; // sets latentParts
import { get, query } from "./api.js";
import { number } from "./format.js";
import { folder } from "./latents.js";
import { Command, Loading, useLoaded, Wrong } from "./parts.js";
import { go, link } from "./routes.js";

const INTERVALS = 8; // as proto/evidence.py

const zipped = (first, second) => first.map((one, i) => [one, second[i]]);
const scored = rows => rows.length ? rows.map(one => [one.latent, one.score]) : undefined;

// The service's facts as the page of latents on disk writes them.
const compact = one => ({
  ...one, range: one.histogram_range,
  promoted: zipped(one.promoted_text, one.promoted_values), suppressed: zipped(one.suppressed_text, one.suppressed_values),
  nearest: zipped(one.nearest_latents, one.nearest_cosines), cofiring: zipped(one.cofiring_latents, one.cofiring_phi),
  twins: one.twins.map(twin => ({
    sae: twin.path, title: `${twin.differs_in.join(", ") || "same settings"}: ${twin.sae}`,
    cosine: scored(twin.nearest), phi: scored(twin.cofiring), children: scored(twin.children),
  })),
  contexts: one.examples.map(example => [
    example.interval, example.value, example.document, example.position, example.peak, example.text, example.activations,
  ]),
});

// The left and right arrow turn pages, unless something is typed.
function useArrows(turn) {
  const newest = useRef(turn);
  newest.current = turn;
  useEffect(() => {
    const keys = event => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], held = event.altKey || event.ctrlKey || event.metaKey;
      if (step && !held && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) newest.current(step);
    };
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  }, []);
}

export function Latent({ rest: [id], parameters: { sae = "" }, about }) {
  const latent = Number(id), place = useRef(null), at = (other, of = sae) => link(`latent/${other}`, { sae: of });
  const { value: found, problem, again } = useLoaded(
    signal => get(`latents/${encodeURIComponent(id)}?${query({ sae })}`, signal), [id, sae]);
  useLayoutEffect(() => {
    if (found && place.current) place.current.replaceChildren(...globalThis.latentParts.parts(compact(found), INTERVALS, at));
  }, [found]);
  useArrows(step => go(`latent/${Math.max(0, latent + step)}`, { sae }, true));
  return html`<nav class="buttons" aria-label="Latents">${latent > 0 && html`<a href=${at(latent - 1)}>← previous</a>`}
    <a href=${link("latents", { sae })}>all latents</a><a href=${at(latent + 1)}>next →</a></nav>
    <h1 class="title">Latent ${id}</h1><p class="muted">${sae}</p>
    ${problem && html`<${Wrong} problem=${problem} again=${again} />`}${!found && !problem && html`<${Loading} what="the latent" />`}
    ${found?.label && html`<p>${found.label}${found.label_score !== null && html` <span class="muted">
      (score ${number(found.label_score)})</span>`}</p>`}
    ${found && html`${!about?.read_only && html`<div class="buttons">
      <a class="button" href=${link("steer", { sae, latent: id })}>Steer with it</a></div>`}
      <${Command}>${`scopemill latent ${folder(about, sae)} ${id}`}<//>`}
    <div ref=${place} hidden=${!found}></div>`;
}
