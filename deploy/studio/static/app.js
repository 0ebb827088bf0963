// The studio: what every page has around it, and which page is shown.
import { html, render, useEffect, useRef, useState } from "./view.js";
import { get, signIn } from "./api.js";
import { ago } from "./format.js";
import { useLive, watch } from "./live.js";
import { Confirm, Loading, Notices, Wrong } from "./parts.js";
import { link, place } from "./routes.js";
import { Trainings } from "./trainings.js";

// Pages that are not looked at first are loaded when they are.
const PAGES = {
  trainings: { title: "Trainings", page: Trainings },
  training: { title: "Training", load: async () => (await import("./training.js")).Training },
  compare: { title: "Compare", load: async () => (await import("./compare.js")).Compare },
  sweeps: { title: "Sweeps", load: async () => (await import("./sweeps.js")).Sweeps },
  sweep: { title: "Sweep", load: async () => (await import("./sweep.js")).Sweep },
  latents: { title: "Latents", load: async () => (await import("./latents.js")).Latents },
  new: { title: "Start", writes: true, load: async () => (await import("./new-training.js")).NewTraining },
  templates: { title: "Templates", load: async () => (await import("./templates.js")).Templates },
  saes: { title: "SAEs", load: async () => (await import("./saes.js")).Saes },
  steer: { title: "Steer", writes: true, load: async () => (await import("./steer.js")).Steer },
  latent: { title: "Latent", load: async () => (await import("./latent.js")).Latent },
};
const MENU = ["trainings", "sweeps", "new", "templates", "saes", "latents", "steer"];

function usePlace() {
  const [now, set] = useState(place());
  useEffect(() => {
    const changed = () => set(place());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return now;
}

function useAbout() {
  const [state, set] = useState({ about: null, problem: null });
  const load = () => get("about").then(about => set({ about, problem: null }), problem => set(now => ({ ...now, problem })));
  useEffect(() => { load(); }, []);
  useLive(["bucket"], load);
  useEffect(() => watch(state => { if (state === "open") load(); }), []);
  return { ...state, load };
}

function useStream() {
  const [state, set] = useState("open");
  useEffect(() => watch(set), []);
  return state;
}

function Page({ where, about }) {
  const found = PAGES[where.name], [, turn] = useState(0), [problem, setProblem] = useState(null);
  useEffect(() => {
    setProblem(null);
    if (!found?.load || found.page) return;
    found.load().then(
      page => { found.page = page; turn(now => now + 1); },
      () => setProblem(new Error("The page's files cannot be read from the service.")),
    );
  }, [where.name]);
  if (!found) return html`<h1 class="title">There is no such page</h1><p><a href=${link("trainings")}>All trainings</a></p>`;
  if (problem) return html`<${Wrong} problem=${problem} again=${() => location.reload()} />`;
  if (!found.page) return html`<${Loading} what="the page" />`;
  return html`<${found.page} key=${[where.name, ...where.rest].join("/")} ...${where} about=${about} />`;
}

function Trouble({ about, stream, problem }) {
  if (problem?.status === 401) return null;
  if (stream === "broken" || problem) return html`<p
    class="trouble" role="alert">The service does not answer; what is shown may be old. This page tries again by itself.</p>`;
  if (about && !about.reachable) return html`<p
    class="trouble sentences" role="alert">The bucket does not answer: ${about.problem} What is shown was read ${ago(about.read_at)}.</p>`;
  return null;
}

function App() {
  const where = usePlace(), { about, problem } = useAbout(), stream = useStream(), main = useRef(null), first = useRef(true);
  useEffect(() => {
    document.title = `${where.rest[0] ? `${where.rest[0]} · ` : ""}${PAGES[where.name]?.title ?? "Not found"} · Scopemill studio`;
    if (!first.current) { main.current.focus({ preventScroll: true }); scrollTo(0, 0); }
    first.current = false;
  }, [where.name, where.rest.join("/")]);
  const skip = event => { event.preventDefault(); main.current.focus(); };
  return html`<a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <header class="top"><a class="brand" href=${link("trainings")}>Scopemill</a>
      <nav aria-label="Pages">${MENU.filter(name => PAGES[name] && !(about?.read_only && PAGES[name].writes)).map(name => html`<a
        href=${link(name)}
        aria-current=${where.name === name ? "page" : undefined}>${PAGES[name].title}</a>`)}</nav>
      <span class="muted cut bucket" title=${about?.bucket}>${about?.bucket}${about?.read_only ? " · read only" : ""}</span></header>
    <${Trouble} about=${about} stream=${stream} problem=${problem} />
    <main id="main" tabindex="-1" ref=${main}>${problem?.status === 401 ? html`<h1 class="title">This studio asks for its token</h1><p
      class="sentences">${problem.message}</p>`
      : html`<${Page} where=${where} about=${about} />`}</main><${Notices} /><${Confirm} />`;
}

const root = document.getElementById("root");
signIn().catch(() => {}).then(() => { // a wrong token shows as the answer to the first request
  root.replaceChildren();
  render(html`<${App} />`, root);
});
