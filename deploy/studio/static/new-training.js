// The form that starts trainings: a sweep file, section by section, checked and estimated before anything starts.
import { html, useEffect, useMemo, useRef, useState } from "./view.js";
import { get, post, training as at } from "./api.js";
import { Estimate } from "./estimate.js";
import { configOf, fieldsOf, problemsBy, SECTIONS, typedOf } from "./fields.js";
import { attempt, Command, Copy, download, Loading, notice, useLoaded, Wrong } from "./parts.js";
import { go, link } from "./routes.js";
import { SaveTemplate } from "./templates.js";

const REST = 400; // milliseconds without a key until what is typed is checked
const PLACES = ["model.name", "corpus.source"]; // long
const DRAFT = "new-training"; // kept until it is started, so that a closed tab loses nothing

export function NewTraining({ parameters }) {
  const { value: schema, problem, again } = useLoaded(signal => get("trainings/schema", signal), []);
  return html`<h1 class="title">Start trainings</h1>${problem && html`<${Wrong} problem=${problem} again=${again} />`}
    ${!schema && !problem && html`<${Loading} what="the form" />`}${schema && html`<${Form} fields=${fieldsOf(schema)} parameters=${parameters} />`}`;
}

// What the form begins with: a template, a sweep or a training to be like, or the draft.
async function beginning(fields, { template, sweep, like }) {
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

function Form({ fields: given, parameters }) {
  const fields = useMemo(() => given, []), [typed, setTyped] = useState({}), [evidence, setEvidence] = useState(true), [template, setTemplate] = useState(null);
  const [checked, setChecked] = useState(null), [pressed, setPressed] = useState(false), [problem, setProblem] = useState(null), form = useRef(null), ready = useRef(false);
  const config = useMemo(() => configOf(fields, typed, evidence), [typed, evidence]);

  useEffect(() => {
    beginning(fields, parameters).then(found => {
      if (found.draft) { setTyped(found.draft.typed); setEvidence(found.draft.evidence); }
      if (found.config) { setTyped(typedOf(fields, found.config)); setEvidence("evidence" in found.config ? Boolean(found.config.evidence) : true); }
      if (found.template) setTemplate(found.template);
      ready.current = true;
    }, setProblem);
  }, [JSON.stringify(parameters)]);
  useEffect(() => {
    if (ready.current) sessionStorage.setItem(DRAFT, JSON.stringify({ typed, evidence }));
    let old = false;
    const later = setTimeout(() => post("trainings/validate", { config }).then(found => { if (!old) { setChecked(found); setProblem(null); } }, error => { if (!old) setProblem(error); }), REST);
    return () => { old = true; clearTimeout(later); };
  }, [config]);

  const problems = problemsBy(fields, checked?.problems ?? []), shown = path => (problems[path] ?? []).filter(reason => pressed || reason !== "field required");
  const set = (path, text) => setTyped(now => ({ ...now, [path]: text }));
  const load = name => attempt(async () => {
    const found = await get(`training-templates/${encodeURIComponent(name)}`);
    setTyped(now => ({ ...now, ...typedOf(fields, found.config) }));
    setTemplate(name);
    notice(`Loaded template ${name}: what it gives replaced what was typed.`);
  });
  const start = async event => {
    event.preventDefault();
    setPressed(true);
    const found = await attempt(() => post("trainings/validate", { config }));
    if (!found) return;
    setChecked(found);
    if (!found.valid) {
      notice("Some fields are not right yet: the first of them has the focus.", "problem");
      setTimeout(() => form.current.querySelector("[aria-invalid=true]")?.focus(), 60);
      return;
    }
    const started = await attempt(() => post("trainings", { config, template }), done => `Started ${done.trainings.length} trainings: ${done.driver}\n${done.command}`);
    if (started) { sessionStorage.removeItem(DRAFT); go(`sweep/${encodeURIComponent(started.sweep)}`); }
  };
  return html`<form class="start" ref=${form} onSubmit=${start} novalidate><div class="sections">
    <${Loader} load=${load} loaded=${template} />
    ${problem && html`<${Wrong} problem=${problem} />`}
    ${shown("").map(sentence => html`<p class="wrong sentences" role="alert">${sentence}</p>`)}
    ${Object.entries(SECTIONS).map(([section, { title }]) => html`<${Section} key=${section} ...${{ section, title, fields: fields[section], typed, set, shown, evidence, setEvidence }} />`)}
    </div><aside aria-label="Check and start"><h2>Before the start</h2>
    <p role="status" class=${checked?.valid ? "completed" : ""}>
      ${!checked ? "Checking…" : checked.valid ? "Every field is valid." : `${checked.problems.length} ${checked.problems.length === 1 ? "field is" : "fields are"} missing or wrong.`}</p>
    <${Estimate} config=${config} valid=${checked?.valid} />
    <div class="buttons"><button class="primary">Start</button><${SaveTemplate} config=${config} />
      <button type="button" onClick=${() => { setTyped({}); setTemplate(null); setPressed(false); go("new", {}, true); }}>Empty the form</button></div>
    ${checked?.yaml && html`<details><summary>The sweep file, for the command line</summary><div class="buttons">
      <${Copy} text=${checked.yaml} /><button type="button"
      onClick=${() => download(`${config.name}.yaml`, checked.yaml, "text/yaml")}>Download</button></div>
      <pre class="log" tabindex="0">${checked.yaml}</pre><${Command}>${`scopemill sweep ${config.name}.yaml`}<//></details>`}</aside>
        </form>`;
}

function Loader({ load, loaded }) {
  const { value: list, problem } = useLoaded(signal => get("training-templates", signal), []);
  return html`<div class="filters"><label><span class="muted">Begin with a template</span> <select value=""
    onChange=${event => { if (event.target.value) load(event.target.value); event.target.value = ""; }}><option value="">
    ${loaded ? `loaded: ${loaded}` : "choose one"}</option>
    ${(list ?? []).map(one => html`<option value=${one.name}>${one.favourite ? "★ " : ""}${one.name}</option>`)}</select></label>
    <datalist id="packaged">${(list ?? []).filter(one => !one.own).map(one => html`<option value=${one.name} />`)}</datalist><a
      href=${link("templates")}>All templates</a>${problem && html`<span class="muted">${problem.message}</span>`}</div>`;
}

function Section({ section, title, fields, typed, set, shown, evidence, setEvidence }) {
  const main = fields.filter(field => field.main), rest = fields.filter(field => !field.main), given = rest.filter(field => typed[field.path]?.trim() || shown(field.path).length).length;
  const off = section === "evidence" && !evidence;
  return html`<fieldset><legend>${title}</legend>${section in SECTIONS && section && shown(section).map(reason => html`<p class="wrong">
    ${reason}</p>`)}
    ${section === "evidence" && html`<label><input type="checkbox" checked=${evidence}
      onChange=${event => setEvidence(event.target.checked)} /> find out what every latent means, once its SAE is finished</label>`}
    <div class="inputs">${main.map(field => html`<${Field} key=${field.path} ...${{ field, text: typed[field.path] ?? "", set, problems: shown(field.path) }} />`)}</div>
    ${rest.length > 0 && !off && html`<details open=${rest.some(field => shown(field.path).length)}>
      <summary>Advanced${given ? `: ${given} given` : ""}</summary><div class="inputs">
      ${rest.map(field => html`<${Field} key=${field.path} ...${{ field, text: typed[field.path] ?? "", set, problems: shown(field.path) }} />`)}</div></details>`}</fieldset>`;
}

function Field({ field, text, set, problems }) {
  const id = `field-${field.path}`, common = { id, "aria-describedby": `${id}-hint`, "aria-invalid": problems.length ? "true" : undefined, "aria-required": field.needed ? "true" : undefined };
  const typed = event => set(field.path, event.target.value), placeholder = field.templated ? "from the template" : field.standard || (field.needed ? "" : "absent");
  const chosen = text.split(/\s*,\s*/).filter(Boolean), pick = (option, on) => set(field.path, on ? [...chosen.filter(one => one !== "all"), option].join(", ") : chosen.filter(one => one !== option).join(", "));
  const input = field.kind === "choice" ? html`<select ...${common} value=${text} onChange=${typed}><option value="">
    ${field.templated ? placeholder : field.standard ? `${field.standard} (default)` : field.needed ? "choose one" : "absent"}</option>
    ${field.options.map(one => html`<option value=${one}>${one}</option>`)}</select>`
    : field.kind === "choices" ? html`<div class="group" role="group" ...${common} tabindex="-1" aria-label=${field.name}>
      ${[...field.options, ...(field.all ? ["all"] : [])].map(one => html`<label><input type="checkbox" checked=${chosen.includes(one)}
      onChange=${event => one === "all" ? set(field.path, event.target.checked ? "all" : "") : pick(one, event.target.checked)} /> ${one}</label>`)}</div>`
      : field.kind === "json" ? html`<textarea ...${common} rows="2" spellcheck=${false} placeholder=${placeholder} value=${text}
        onInput=${typed} />`
        : html`<input ...${common} type="text" list=${field.path === "train.template" ? "packaged" : undefined} spellcheck=${false} autocomplete="off" inputmode=${field.kind === "number" ? "decimal" : undefined} placeholder=${placeholder} value=${text} onInput=${typed} />`;
  return html`<div class=${`field ${problems.length ? "bad" : ""} ${field.kind === "choices" ? "broad" : PLACES.includes(field.path) ? "double" : ""}`}><label for=${id}>${field.name.replaceAll("_", " ")}${field.needed && html`<span class="muted"> needed</span>`}</label>${input}
    <div id=${`${id}-hint`} class="hint">${problems.map(reason => html`<p class="failed">${reason}</p>`)}<p class="muted">
      ${field.hint}${field.readBy && field.readBy !== "every architecture" && ` Read by ${field.readBy}.`}</p></div></div>`;
}
