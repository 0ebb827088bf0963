// The form's inputs: a section of a sweep file with its advanced part, and one field with its hint and what is wrong with it.
import { html } from "./view.js";
import { SECTIONS } from "./fields.js";

const PLACES = ["model.name", "corpus.source"]; // long

export function Section({ section, fields, typed, set, shown, evidence, setEvidence }) {
  const main = fields.filter(field => field.main), rest = fields.filter(field => !field.main);
  const given = rest.filter(field => typed[field.path]?.trim() || shown(field.path).length).length;
  const wrong = rest.some(field => shown(field.path).length), off = section === "evidence" && !evidence;
  const inputs = list => html`<div class="inputs">${list.map(field => html`<${Field} key=${field.path} field=${field}
    text=${typed[field.path] ?? ""} set=${text => set(field.path, text)} problems=${shown(field.path)} />`)}</div>`;
  return html`<fieldset><legend>${SECTIONS[section].title}</legend>
    ${section && shown(section).map(reason => html`<p class="wrong">${reason}</p>`)}
    ${section === "evidence" && html`<label><input type="checkbox" checked=${evidence}
      onChange=${event => setEvidence(event.target.checked)} /> find out what every latent means, once its SAE is finished</label>`}
    ${inputs(main)}
    ${rest.length > 0 && !off && html`<details open=${wrong}>
      <summary>Advanced${given ? `: ${given} given` : ""}</summary>${inputs(rest)}</details>`}</fieldset>`;
}

// What stands in an input that is left alone.
const placeholder = field => field.templated ? "from the template" : field.standard || (field.needed ? "" : "absent");
const unchosen = field => field.standard && !field.templated ? `${field.standard} (default)` : field.needed && !field.templated
  ? "choose one" : placeholder(field);

const Select = ({ field, text, set, common }) => html`<select ...${common} value=${text} onChange=${event => set(event.target.value)}>
  <option value="">${unchosen(field)}</option>${field.options.map(one => html`<option value=${one}>${one}</option>`)}</select>`;

function Boxes({ field, text, set, common }) {
  const chosen = text.split(/\s*,\s*/).filter(Boolean);
  const pick = (option, on) => {
    if (option === "all") return set(on ? "all" : "");
    const others = chosen.filter(one => one !== option && one !== "all");
    return set((on ? [...others, option] : others).join(", "));
  };
  return html`<div class="group" role="group" ...${common} tabindex="-1" aria-label=${field.name}>
    ${[...field.options, ...(field.all ? ["all"] : [])].map(one => html`<label><input type="checkbox" checked=${chosen.includes(one)}
      onChange=${event => pick(one, event.target.checked)} /> ${one}</label>`)}</div>`;
}

const Area = ({ field, text, set, common }) => html`<textarea ...${common} rows="2" spellcheck=${false}
  placeholder=${placeholder(field)} value=${text} onInput=${event => set(event.target.value)} />`;

const Line = ({ field, text, set, common }) => html`<input ...${common} type="text" spellcheck=${false} autocomplete="off"
  list=${field.path === "train.template" ? "packaged" : undefined} inputmode=${field.kind === "number" ? "decimal" : undefined}
  placeholder=${placeholder(field)} value=${text} onInput=${event => set(event.target.value)} />`;

const INPUTS = { choice: Select, choices: Boxes, json: Area };

function Field({ field, text, set, problems }) {
  const id = `field-${field.path}`, Input = INPUTS[field.kind] ?? Line;
  const common = {
    id, "aria-describedby": `${id}-hint`, "aria-invalid": problems.length ? "true" : undefined,
    "aria-required": field.needed ? "true" : undefined,
  };
  const size = field.kind === "choices" ? "broad" : PLACES.includes(field.path) ? "double" : "";
  const readBy = field.readBy && field.readBy !== "every architecture" && ` Read by ${field.readBy}.`;
  return html`<div class=${`field ${problems.length ? "bad" : ""} ${size}`}><label for=${id}>${field.name.replaceAll("_", " ")}
    ${field.needed && html`<span class="muted"> needed</span>`}</label>
    <${Input} ...${{ field, text, set, common }} />
    <div id=${`${id}-hint`} class="hint">${problems.map(reason => html`<p class="failed">${reason}</p>`)}
      <p class="muted">${field.hint}${readBy}</p></div></div>`;
}
