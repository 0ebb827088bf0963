// The form that starts trainings: a sweep file, section by section, checked and estimated before anything starts.
import { html, useEffect, useMemo, useRef, useState } from "./view.js";
import { get, post, training as at } from "./api.js";
import { Estimate } from "./estimate.js";
import { configOf, fieldsOf, problemsBy, SECTIONS, typedOf } from "./fields.js";
import { Section } from "./inputs.js";
import { attempt, Command, Copy, download, Loading, notice, useLoaded, Wrong } from "./parts.js";
import { go, link } from "./routes.js";
import { SaveTemplate } from "./templates.js";

const REST = 400; // milliseconds without a key until what is typed is checked
const DRAFT = "new-training"; // kept until it is started, so that a closed tab loses nothing

export function NewTraining({ parameters }) {
  const { value: schema, problem, again } = useLoaded(signal => get("trainings/schema", signal), []);
  return html`<h1 class="title">Start trainings</h1>${problem && html`<${Wrong} problem=${problem} again=${again} />`}
    ${!schema && !problem && html`<${Loading} what="the form" />`}
    ${schema && html`<${Form} schema=${schema} parameters=${parameters} />`}`;
}

// What the form begins with: a template, a sweep or a training to be like, or the draft.
async function beginning({ template, sweep, like }) {
  if (template) return { template, config: (await get(`training-templates/${encodeURIComponent(template)}`)).config };
  if (!sweep && !like) return { draft: JSON.parse(sessionStorage.getItem(DRAFT) ?? "null") };
  const one = like ? await get(at(like)) : null, parent = await get(`trainings/sweep/${encodeURIComponent(sweep ?? one.sweep)}`);
  const config = structuredClone(parent.config ?? {});
  config.name = `${config.name ?? parent.name}-again`;
  if (one) {
    if (one.layer !== null) config.harvest = { ...config.harvest, layers: [one.layer], sites: [one.site] };
    config.train = { ...config.train, variants: [], widths: [one.width], sparsities: [one.sparsity] };
  }
  return { config };
}

// Starts what the form holds: several sparsities are a sweep, a parent with a child for each.
function begin(config, template) {
  const { sparsities, ...train } = config.train ?? {};
  return sparsities?.length > 1 && !train.variants?.length ? post("trainings/sweep", { config: { ...config, train }, sparsities, template })
    : post("trainings", { config, template });
}

// What was typed, by field, and the mapping that it means.
function useTyped(fields, parameters) {
  const [typed, setTyped] = useState({}), [evidence, setEvidence] = useState(true), [template, setTemplate] = useState(null);
  const [problem, setProblem] = useState(null), ready = useRef(false);
  useEffect(() => {
    beginning(parameters).then(({ draft, config, template: name }) => {
      if (draft) { setTyped(draft.typed); setEvidence(draft.evidence); }
      if (config) { setTyped(typedOf(fields, config)); setEvidence("evidence" in config ? Boolean(config.evidence) : true); }
      if (name) setTemplate(name);
      ready.current = true;
    }, setProblem);
  }, [JSON.stringify(parameters)]);
  useEffect(() => {
    if (ready.current) sessionStorage.setItem(DRAFT, JSON.stringify({ typed, evidence }));
  }, [typed, evidence]);
  const config = useMemo(() => configOf(fields, typed, evidence), [typed, evidence]);
  const load = name => attempt(async () => {
    const found = await get(`training-templates/${encodeURIComponent(name)}`);
    setTyped(now => ({ ...now, ...typedOf(fields, found.config) }));
    setTemplate(name);
    notice(`Loaded template ${name}: what it gives replaced what was typed.`);
  });
  const empty = () => { setTyped({}); setTemplate(null); go("new", {}, true); };
  const set = (path, text) => setTyped(now => ({ ...now, [path]: text }));
  return { typed, set, evidence, setEvidence, template, load, empty, config, problem };
}

// What the service says of a mapping, a moment after the last key.
function useChecked(config) {
  const [{ checked, problem }, set] = useState({ checked: null, problem: null });
  useEffect(() => {
    let old = false;
    const later = setTimeout(() => post("trainings/validate", { config }).then(
      found => { if (!old) set({ checked: found, problem: null }); },
      wrong => { if (!old) set(now => ({ ...now, problem: wrong })); },
    ), REST);
    return () => { old = true; clearTimeout(later); };
  }, [config]);
  return { checked, problem, setChecked: found => set({ checked: found, problem: null }) };
}

function Form({ schema, parameters }) {
  const fields = useMemo(() => fieldsOf(schema), []), form = useRef(null), [pressed, press] = useState(false);
  const { config, template, load, empty, problem, ...inputs } = useTyped(fields, parameters);
  const { checked, problem: unchecked, setChecked } = useChecked(config);
  const problems = problemsBy(fields, checked?.problems ?? []);
  const shown = path => (problems[path] ?? []).filter(reason => pressed || reason !== "field required");
  const start = async event => {
    event.preventDefault();
    press(true);
    const found = await attempt(() => post("trainings/validate", { config }));
    if (!found) return;
    setChecked(found);
    if (!found.valid) {
      notice("Some fields are not right yet: the first of them has the focus.", "problem");
      setTimeout(() => form.current.querySelector("[aria-invalid=true]")?.focus(), 60);
      return;
    }
    const told = done => `Started ${done.trainings.length} trainings: ${done.driver}\n${done.command}`;
    const started = await attempt(() => begin(config, template), told);
    if (started) { sessionStorage.removeItem(DRAFT); go(`sweep/${encodeURIComponent(started.sweep)}`); }
  };
  return html`<form class="start" ref=${form} onSubmit=${start} novalidate><div class="sections">
    <${Loader} load=${load} loaded=${template} />
    ${(problem ?? unchecked) && html`<${Wrong} problem=${problem ?? unchecked} />`}
    ${shown("").map(sentence => html`<p class="wrong sentences" role="alert">${sentence}</p>`)}
    ${Object.keys(SECTIONS).map(section => html`<${Section} key=${section} section=${section} fields=${fields[section]}
      shown=${shown} ...${inputs} />`)}</div>
    <aside aria-label="Check and start"><h2>Before the start</h2><${Verdict} checked=${checked} />
    <${Estimate} config=${config} valid=${checked?.valid} />
    <div class="buttons"><button class="primary">Start</button><${SaveTemplate} config=${config} />
      <button type="button" onClick=${() => { press(false); empty(); }}>Empty the form</button></div>
    ${checked?.yaml && html`<${File} name=${config.name} yaml=${checked.yaml} />`}</aside></form>`;
}

function Verdict({ checked }) {
  const wrong = checked?.problems.length, says = `${wrong} ${wrong === 1 ? "field is" : "fields are"} missing or wrong.`;
  return html`<p role="status" class=${checked?.valid ? "completed" : ""}>
    ${!checked ? "Checking…" : checked.valid ? "Every field is valid." : says}</p>`;
}

const File = ({ name, yaml }) => html`<details><summary>The sweep file, for the command line</summary><div class="buttons">
  <${Copy} text=${yaml} /><button type="button" onClick=${() => download(`${name}.yaml`, yaml, "text/yaml")}>Download</button></div>
  <pre class="log" tabindex="0">${yaml}</pre><${Command}>${`scopemill sweep ${name}.yaml`}<//></details>`;

function Loader({ load, loaded }) {
  const { value: list, problem } = useLoaded(signal => get("training-templates", signal), []);
  const choose = event => { if (event.target.value) load(event.target.value); event.target.value = ""; };
  return html`<div class="filters"><label><span class="muted">Begin with a template</span> <select value="" onChange=${choose}>
    <option value="">${loaded ? `loaded: ${loaded}` : "choose one"}</option>
    ${(list ?? []).map(one => html`<option value=${one.name}>${one.favourite ? "★ " : ""}${one.name}</option>`)}</select></label>
    <datalist id="packaged">${(list ?? []).filter(one => !one.own).map(one => html`<option value=${one.name} />`)}</datalist>
    <a href=${link("templates")}>All templates</a>${problem && html`<span class="muted">${problem.message}</span>`}</div>`;
}
