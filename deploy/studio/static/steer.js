// Steering: a prompt continued unsteered, steered and randomly pushed, side by side with what was measured.
import { html, useState } from "./view.js";
import { post } from "./api.js";
import { shell } from "./actions.js";
import { Chart } from "./charts.js";
import { number } from "./format.js";
import { Job, useJob } from "./jobs.js";
import { folder, SaeChoice } from "./latents.js";
import { attempt, Command, download } from "./parts.js";
import { link } from "./routes.js";

const OPS = ["add", "scale", "clamp", "ablate"], WHERE = ["all", "prompt", "generated"];
const fresh = (sae = "", latent = "") => ({ sae, latent, op: "add", amount: "2", unit: "maximum", where: "all", when: "" });

export function Steer({ parameters, about }) {
  const [edits, setEdits] = useState([fresh(parameters.sae, parameters.latent)]), [prompt, setPrompt] = useState(""), [text, setText] = useState("");
  const [options, setOptions] = useState({ length: "48", temperature: "0.7", seed: "0", samples: "1", doses: false });
  const [started, start] = useState(null), [written, write] = useState({});
  const { job, problem } = useJob(started, ({ event, data: { name, sample, text: piece } }) => {
    if (event === "text") write(now => ({ ...now, [name]: { ...now[name], [sample]: (now[name]?.[sample] ?? "") + piece } }));
  });
  const change = (i, fields) => setEdits(now => now.map((one, at) => at === i ? { ...one, ...fields } : one));
  const edit = one => ({ sae: one.sae, latent: Number(one.latent), op: one.op, where: one.where, ...(one.op === "ablate" ? {} : { amount: Number(one.amount), ...(one.op === "scale" ? {} : { unit: one.unit }) }),
    ...(one.when === "" ? {} : { when: { latent: Number(one.when) } }) });
  const request = () => ({ prompt, configurations: { steered: edits.map(edit) }, samples: Number(options.samples), doses: options.doses, text: text.trim() || null,
    sampling: { length: Number(options.length), temperature: Number(options.temperature), seed: Number(options.seed) } });
  const run = async event => {
    event.preventDefault();
    write({});
    const begun = await attempt(() => post("steer", request()));
    if (begun) start(begun);
  };
  const option = (name, title, size = 4) => html`<label><span class="muted">${title}</span> <input size=${size} inputmode="decimal"
    value=${options[name]} onInput=${event => setOptions(now => ({ ...now, [name]: event.target.value }))} /></label>`;
  const first = edits[0], steering = job?.state === "running";
  return html`<h1 class="title">Steer</h1><form onSubmit=${run}>
    <label class="block"><span class="muted">Prompt</span><textarea rows="3" required value=${prompt}
      onInput=${event => setPrompt(event.target.value)} /></label>
    ${edits.map((one, i) => html`<fieldset class="filters"><legend>Edit ${i + 1}</legend>
      <${SaeChoice} sae=${one.sae} evidence=${false} change=${sae => change(i, { sae })} />
      <label><span class="muted">Latent</span> <input size="6" required inputmode="numeric" pattern="[0-9]+" value=${one.latent}
        onInput=${event => change(i, { latent: event.target.value })} /></label>
      ${one.sae && one.latent !== "" && html`<a href=${link(`latent/${one.latent}`, { sae: one.sae })}>what it means</a>`}
      <label><span class="muted">Operation</span> <select value=${one.op} onChange=${event => change(i, { op: event.target.value })}>
        ${OPS.map(op => html`<option>${op}</option>`)}</select></label>
      ${one.op !== "ablate" && html`<label><span class="muted">${one.op === "scale" ? "Factor" : "Amount"}</span> <input size="5" required
        inputmode="decimal" value=${one.amount} onInput=${event => change(i, { amount: event.target.value })} /></label>`}
      ${["add", "clamp"].includes(one.op) && html`<label><span class="muted">in</span> <select value=${one.unit}
        onChange=${event => change(i, { unit: event.target.value })}><option value="maximum">largest activations</option><option
        value="raw">raw activations</option></select></label>`}
      <label><span class="muted">Where</span> <select value=${one.where} onChange=${event => change(i, { where: event.target.value })}>
        ${WHERE.map(where => html`<option>${where}</option>`)}</select></label>
      <label><span class="muted">Only where latent</span> <input size="6" inputmode="numeric" pattern="[0-9]*" value=${one.when}
        onInput=${event => change(i, { when: event.target.value })} /> <span class="muted">fires</span></label>
      ${edits.length > 1 && html`<button type="button" class="plain" aria-label=${`Remove edit ${i + 1}`}
        onClick=${() => setEdits(now => now.filter((_, at) => at !== i))}>Remove</button>`}</fieldset>`)}
    <div class="filters">${option("length", "Tokens")}${option("temperature", "Temperature")}${option("seed", "Seed")}${option("samples", "Texts")}
      <label><input type="checkbox" checked=${options.doses}
        onChange=${event => setOptions(now => ({ ...now, doses: event.target.checked }))} /> doses, up to where text collapses</label></div>
    <details><summary>Text to measure on</summary><label class="block"><span
      class="muted">Absent: what the model itself writes after the prompt</span><textarea rows="3" value=${text}
      onInput=${event => setText(event.target.value)} /></label></details>
    <div class="buttons"><button class="primary" disabled=${steering || about?.read_only}>${steering ? "Steering…" : "Steer"}</button>
      <button type="button" onClick=${() => setEdits(now => [...now, fresh(first.sae)])}>Add an edit</button>
      <button type="button" onClick=${() => download("edits.json", JSON.stringify({ steered: edits.map(one => ({ ...edit(one), sae: `${about?.bucket}/${one.sae}` })) }, null, 1), "application/json")}>Download the edits</button></div>
    <${Command}>${edits.length === 1 && first.when === "" ? `scopemill steer ${folder(about, first.sae)} --latent ${first.latent || "N"} --op ${first.op}${first.op === "ablate" ? "" : ` --amount ${first.amount}`}${first.unit === "raw" ? " --unit raw" : ""} --where ${first.where} --prompt ${shell(prompt || "…")} --length ${options.length} --temperature ${options.temperature} --seed ${options.seed} --samples ${options.samples}${options.doses ? " --doses" : ""}`
      : `scopemill steer --file edits.json --prompt ${shell(prompt || "…")}${options.doses ? " --doses" : ""}`}<//></form>
    <${Job} job=${job} problem=${problem} what="Steering" />
    <${Columns} result=${job?.result} written=${written} prompt=${prompt} />`;
}

const shownTexts = (one, streamed) => one?.texts ?? Object.values(streamed ?? {});

function Columns({ result, written, prompt }) {
  const results = result?.columns ?? {}, names = [...new Set([...Object.keys(results), ...Object.keys(written)])];
  if (!names.length) return null;
  return html`<div class="beside" aria-live="polite">${names.map(name => html`<section class="card" key=${name} aria-label=${name}><h2>
    ${name}</h2>
      ${shownTexts(results[name], written[name]).map(text => html`<p class="free"><span class="muted">${prompt}</span>
        ${text.startsWith(prompt) ? text.slice(prompt.length) : text}</p>`)}
      ${results[name] && html`<${Figures} one=${results[name]} />`}</section>`)}</div>
    ${names.filter(name => results[name]?.doses?.length).map(name => html`<${Doses} name=${name} one=${results[name]} />`)}`;
}

const Figures = ({ one: { effect, scores } }) => html`<dl class="pairs">
  ${effect ? [["KL (nats a token)", number(effect.kl)], ["delta loss", number(effect.delta_loss)], ["promoted tokens", `${(100 * effect.promoted).toFixed(2)}%`], ["of the model", `${(100 * effect.promoted_before).toFixed(2)}%`]]
  .map(([title, value]) => html`<div><dt>${title}</dt><dd>${value}</dd></div>`) : html`<div>
    <dt>the text that others are measured against</dt></div>`}
  ${Object.entries(scores ?? {}).map(([latent, score]) => html`<div><dt>output score of latent ${latent}</dt><dd>${number(score)}</dd>
    </div>`)}</dl>`;

function Doses({ name, one }) {
  const steps = one.doses.map(dose => dose.dose), of = (side, figure) => one.doses.map(dose => dose[side][figure]);
  return html`<section aria-label=${`Doses of ${name}`}><h2>Doses of ${name}</h2><p>
    ${one.collapse ? `Text collapses at dose ${number(one.collapse)}.` : "Text does not collapse at these doses."}</p><div class="charts">
    ${[["kl", "KL"], ["delta_loss", "Delta loss"]].map(([figure, title]) => html`<${Chart} key=${figure}
      title=${`${title} by dose`} lines=${[{ name: "steered", steps, values: of("steered", figure) }, { name: "random push", steps, values: of("control", figure) }]} />`)}</div></section>`;
}
